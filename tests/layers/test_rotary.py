"""Rotary and sinusoidal positions against multiplication by complex numbers in extended precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, jnp
from shared.running import LIBRARIES, Floats, applied, bench_of, drawn, mapped, normal

from polyattn import layers, weights
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary, sinusoidal
from polyattn.truth.rounding import noise

#: What float32 reaches for every position up to 2^20, in a cosine or sine: a turn is off by 2^-26, the radians round
#: twice below pi, and functions of libraries have their last digits.
REQUIRED = 2 * math.pi * (2.0**-26 + 2.0**-24) + 4 * 2.0**-24
FAR = np.array([0, 1, 2, 3, 1023, 4097, 65535, 131072, 777_777, 2**20 - 1, 2**20])


def angles(positions: Any, width: int, base: float = 10000.0) -> Floats:
    """position * base^(-2i / width) in extended precision."""
    i = np.arange(width // 2, dtype=np.longdouble)
    return np.asarray(positions).astype(np.longdouble)[..., None] * np.longdouble(base) ** (-2 * i / width)


def turned(x: Any, positions: Any, base: float = 10000.0) -> Floats:
    """Pairs (i, i + width/2) as complex numbers times exp(i angle)."""
    half = x.shape[-1] // 2
    x = np.asarray(x).astype(np.longdouble)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles(positions, 2 * half, base))
    return np.concatenate([z.real, z.imag], -1)


def rotate(library: str, rotary: Rotary, x: Floats, positions: Any, dtype: str, **options: Any) -> Floats:
    bench = bench_of(library)
    at = bench.array(np.asarray(positions, np.int32))
    return applied(library, lambda params, x: rotary(x, at, **options), {}, x, dtype=dtype)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_cosine_and_sine_are_right_at_positions_up_to_2_to_the_20_in_float32(
    library: str, base: float
) -> None:
    x = np.concatenate([np.ones((11, 32)), np.zeros((11, 32))], -1)  # (1, 0): turned, (cos, sin)
    out = rotate(library, Rotary(base=base), x, FAR, "float32")
    error = np.abs(out - turned(x, FAR, base)).max()
    assert error <= REQUIRED
    naive = FAR.astype("f4")[:, None] * base ** (-np.arange(32, dtype="f4") / 32)  # what this replaces
    assert np.abs(np.cos(naive) - turned(x, FAR, base)[:, :32]).max() > 100 * REQUIRED


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "at", [[0, 7, 4097], [[0, 7, 4097], [5, 6, 7]]], ids=["of all items", "of each item"]
)
def test_query_and_key_turned_together_are_those_turned_apart(library: str, at: Any) -> None:
    bench, rotary = bench_of(library), Rotary(width=4)
    q, k = (bench.array(normal(2, heads, 3, 6), "float32") for heads in (4, 2))
    positions = bench.array(np.asarray(at, np.int32))
    for together, x in zip(rotary.both(q, k, positions), (q, k), strict=True):
        assert (bench.numpy(together) == bench.numpy(rotary(x, positions))).all()


def test_query_and_key_of_two_widths_are_not_turned_together() -> None:
    """A wider key would be turned by the angles of the query, in pairs that are not its own."""
    q, k = np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 6))
    with pytest.raises(ValueError) as caught:
        Rotary().both(q, k, np.arange(3))
    assert str(caught.value) == (
        "polyattn.rotary.Rotary.both: expected query and key of one width, got (1, 2, 3, 4) and (1, 2, 3, 6); pairs of another "
        "width turn by other angles, so call the rotary for each"
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_up_to_2_to_the_30_only_the_frequency_rounds(library: str) -> None:
    """By three roundings of float64, times the position: what is left of float32's accuracy there."""
    at = np.array([2**20 + 1, 2**27 + 12345, 2**30 - 1, -(2**30) + 1, -777_777, -1])
    x = np.concatenate([np.ones((6, 32)), np.zeros((6, 32))], -1)
    error = np.abs(rotate(library, Rotary(), x, at, "float32") - turned(x, at))
    frequency = np.tile(10000.0 ** -(np.arange(32) / 32), 2)
    assert (error <= REQUIRED + 3 * 2.0**-53 * np.abs(at)[:, None] * frequency).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32", "float64"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_positions_may_be_of_any_kind_of_number(library: str, dtype: str) -> None:
    """Those between integers too: half of the way between two is half of the angle between them."""
    if (library, dtype[-2:]) == ("jax", "64"):
        return  # which has them where they are switched on
    bench, at = bench_of(library), np.array([0, 1, 77, 250], dtype)
    at = at + np.asarray(0.5, dtype) if dtype.startswith("float") else at
    x = normal(4, 8)
    positions = bench.array(at, dtype) if dtype.startswith("float") else bench.array(at)
    out = bench.numpy(Rotary()(bench.array(x, "float32"), positions))
    room = (REQUIRED + 3 * UNIT_ROUNDOFF["float32"]) * 2 * np.abs(x).max()
    assert np.abs(out - turned(x, at)).max() <= room


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
def test_in_float64_only_the_frequency_rounds(library: str) -> None:
    """A frequency in turns rounds three times, a turn at most eight."""
    x = np.concatenate([np.ones((11, 32)), np.zeros((11, 32))], -1)
    error = np.abs(rotate(library, Rotary(), x, FAR, "float64") - turned(x, FAR)).max(-1)
    u = UNIT_ROUNDOFF["float64"]
    assert (error <= 2 * math.pi * (FAR * 2.0**-56 + 8 * u) + 3 * FAR * u + 2 * u).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_rotation_is_multiplication_by_a_complex_number(library: str) -> None:
    x, positions = normal(2, 3, 5, 8), np.array([7, 0, 1_000_003, 3, 40])
    room = (REQUIRED + 3 * UNIT_ROUNDOFF["float32"]) * 2 * np.abs(x).max()
    out = rotate(library, Rotary(), x, positions, "float32")
    assert np.abs(out - turned(x, positions)).max() <= room
    each = np.stack([positions, positions[::-1]])
    out = rotate(library, Rotary(), x, each, "float32")
    assert np.abs(out - turned(x, each[:, None])).max() <= room
    out = rotate(library, Rotary(), x.swapaxes(1, 2), each, "float32", layout="BLHD")
    assert np.abs(out.swapaxes(1, 2) - turned(x, each[:, None])).max() <= room


@pytest.mark.parametrize("width", [8, 4])
def test_interleaved_pairs_are_the_half_split_ones_in_another_order_bit_for_bit(width: int) -> None:
    x, positions = normal(2, 5, 8), np.arange(5)
    interleaved = Rotary(width=width, interleaved=True)(x, positions)
    half = Rotary(width=width)(weights.interleaved_to_half(x, width), positions)
    assert np.array_equal(weights.interleaved_to_half(interleaved, width), half)
    pairs = x[..., 0:width:2] + 1j * x[..., 1:width:2]
    expected = pairs * np.exp(1j * angles(positions, width).astype(float))
    u = UNIT_ROUNDOFF["float64"]
    assert np.abs(interleaved[..., 0:width:2] - expected.real).max() <= 40 * u * np.abs(x).max()
    assert not np.array_equal(interleaved, Rotary(width=width)(x, positions))


def test_attention_with_converted_weights_is_that_of_the_interleaved_model() -> None:
    ours = layers.SelfAttention(8, head_dim=4, rotary=Rotary())
    theirs = layers.SelfAttention(8, head_dim=4, rotary=Rotary(interleaved=True))
    params, x = drawn(ours), normal(2, 6, 8)
    converted = params | {name: weights.interleaved_to_half(params[name]) for name in ("w_q", "w_k")}
    room = 4 * noise(lambda number: rotated_attention(mapped(number, params), number(x))) * 2.0**-29
    assert np.abs(ours(converted, x) - theirs(params, x)).max() <= room
    assert np.abs(ours(params, x) - theirs(params, x)).max() > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_only_the_first_entries_turn_where_a_width_is_given(interleaved: bool) -> None:
    x, positions = normal(2, 5, 8), np.arange(5)
    out = Rotary(width=6, interleaved=interleaved)(x, positions)
    assert np.array_equal(out[..., 6:], x[..., 6:])
    assert np.array_equal(out[..., :6], Rotary(interleaved=interleaved)(x[..., :6], positions))


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_positions_by_their_difference_alone(interleaved: bool) -> None:
    q, k = normal(3, 6, 8), normal(3, 6, 8, seed=1)
    rotary, near = Rotary(interleaved=interleaved), np.arange(6)

    def scores(shift: int) -> Floats:
        return rotary(q, near + shift) @ rotary(k, near + shift).swapaxes(-1, -2)

    # Two angles of one pair err by what the test above allows, each product of a pair by twice that.
    far = 100_000
    room = 4 * (2 * math.pi * (far * 2.0**-56) + 4 * far * 2.0**-53)
    room *= float((np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max())
    assert np.abs(scores(far) - scores(0)).max() <= 2 * room < 1e-8
    assert np.abs(rotary(q, near + 1) @ rotary(k, near).swapaxes(-1, -2) - scores(0)).max() > 0.1


def test_turning_back_gives_the_input() -> None:
    x, positions = normal(2, 5, 8), np.array([3, 70000, 5, 0, 11])
    back = Rotary()(Rotary()(x, positions), -positions)
    room = 4 * (70000 * (2 * math.pi * 2.0**-56 + 3 * 2.0**-53) + 16 * 2.0**-53) * np.abs(x).max()
    assert np.abs(back - x).max() <= room < 1e-9


def test_positions_may_be_traced() -> None:
    x, positions = normal(2, 5, 8), np.array([7, 0, 1_048_000, 3, 40])
    traces: list[int] = []

    def run(x: Any, start: Any) -> Any:
        traces.append(0)
        return Rotary()(x, jnp.asarray(positions) + start)

    compiled = jax.jit(run)
    room = (REQUIRED + 3 * UNIT_ROUNDOFF["float32"]) * 2 * np.abs(x).max()
    for start in (0, 1, 72):
        out = np.asarray(compiled(jnp.asarray(x, jnp.float32), start))
        assert np.abs(out - turned(x, positions + start)).max() <= room
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_turned_in_float32_and_rounded_once(dtype: str) -> None:
    x = np.eye(8)[:5]  # exact in every dtype
    u = UNIT_ROUNDOFF[dtype]
    for library in ("numpy", "jax", "torch"):
        out = rotate(library, Rotary(), x, np.array([0, 1, 5, 4000, 100_000]), dtype)
        true = turned(x, np.array([0, 1, 5, 4000, 100_000]))
        smallest = 2.0**-25 if dtype == "float16" else 0.0
        assert (np.abs(out - true) <= u * np.abs(true) + REQUIRED * (1 + u) + smallest).all()


# in a layer


def rotated_attention(
    p: Any, x: Any, context: Any = None, *, start: Any = 0, allowed: Any = 1.0, base: float = 10000.0
) -> Any:
    """Heads whose q and k are turned: queries stand at start, start + 1, ..., keys at 0, 1, ..."""
    context = x if context is None else context
    found = []
    for h in range(p["w_q"].shape[1]):
        q, k, v = (a @ p[f"w_{name}"][:, h] for name, a in (("q", x), ("k", context), ("v", context)))
        q = turn(q, np.arange(x.shape[-2]) + start, base)
        k = turn(k, np.arange(context.shape[-2]), base)
        found.append(formulas.attend(q, k, v, allowed=allowed)[0])
    return np.concatenate(found, -1)


def turn(x: Any, positions: Any, base: float) -> Any:
    angle = angles(positions, x.shape[-1], base).astype(float)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def room_of(f: Callable[..., Any], params: Any, *inputs: Floats) -> float:
    return 4 * noise(lambda number: f(mapped(number, params), *map(number, inputs)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_layer_turns_queries_and_keys_to_their_positions(library: str) -> None:
    layer = layers.MultiHeadAttention(
        8, 2, rotary=Rotary(base=100.0), is_causal=True, output_projection=False, qkv_bias=False
    )
    params, x = drawn(layer), normal(2, 6, 8)

    def formula(p: Any, x: Any) -> Any:
        return rotated_attention(p, x, allowed=np.tri(6), base=100.0)

    out = applied(library, layer, params, x)
    assert np.abs(out - formula(params, x)).max() <= room_of(formula, params, x) < 1e-4
    assert np.abs(out - formulas.multihead(params, x, allowed=np.tri(6))[0]).max() > 0.01


@pytest.mark.parametrize(
    ("offset", "start"),
    [(2, 2), ("end", 3), (np.array([0, 3], np.int32), np.array([[0], [3]])), (np.asarray(2, np.int32), 2)],
    ids=["int", "end", "one per item", "0-d"],
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_query_offset_says_where_the_turned_queries_stand(library: str, offset: Any, start: Any) -> None:
    layer = layers.MultiHeadAttention(
        8, 2, rotary=Rotary(), is_causal=True, output_projection=False, qkv_bias=False
    )
    params, x, context = drawn(layer), normal(2, 3, 8), normal(2, 6, 8, seed=1)
    allowed = np.arange(6) <= (np.arange(3) + start)[..., :, None]

    def formula(p: Any, x: Any, context: Any) -> Any:
        return rotated_attention(p, x, context, start=start, allowed=allowed)

    out = applied(library, layer, params, x, context, query_offset=offset)
    assert np.abs(out - formula(params, x, context)).max() <= room_of(formula, params, x, context)


# sinusoidal


@pytest.mark.parametrize("library", LIBRARIES)
def test_sinusoidal_positions_are_sines_and_cosines_side_by_side(library: str) -> None:
    angle = angles(np.arange(50), 12)
    true = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(50, 12)
    for dtype, room in (("float32", REQUIRED), ("float64", 50 * 4 * 2.0**-53 + 2.0**-49)):
        if (library, dtype) != ("jax", "float64"):
            out = applied(library, lambda params, x: sinusoidal(50, 12, x), {}, np.zeros(()), dtype=dtype)
            assert np.abs(out - true).max() <= room


def test_what_cannot_be_turned_is_refused_with_a_sentence() -> None:
    x, positions = np.zeros((5, 7)), np.arange(5)
    for rotary, given, width in ((Rotary(), x, 7), (Rotary(width=8), x, 8), (Rotary(width=0), x, 0)):
        with pytest.raises(ValueError) as caught:
            rotary(given, positions)
        assert str(caught.value) == (
            "polyattn.rotary.Rotary: expected an even width of at most 7, the width of x, got "
            f"{width}; entries are turned in pairs"
        )
    with pytest.raises(ValueError) as caught:
        sinusoidal(4, 5, x)
    assert str(caught.value) == (
        "polyattn.rotary.sinusoidal: expected an even dim of at least 2, got 5; sines come with cosines"
    )
    with pytest.raises(ValueError) as caught:
        Rotary()(x[:, :6], positions, layout="BLDH")
    assert str(caught.value) == (
        "polyattn.rotary.Rotary: expected layout 'BHLD' or 'BLHD', got 'BLDH'; name the axes of x (batch, heads, length, "
        "width)"
    )
