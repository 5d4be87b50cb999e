"""Where the tokens of a layer stand: positions that are given, and documents packed without padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, torch
from shared.running import LIBRARIES, Floats, apart, applied, bench_of, drawn, mapped, normal, torch_gradients

from polyattn import layers
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

on_every_library = pytest.mark.parametrize("library", LIBRARIES)

LAYER = layers.GroupedQueryAttention(
    8, 4, num_kv_heads=2, rotary=Rotary(base=100.0), is_causal=True, qkv_bias=False, out_bias=False
)
BOTH_WAYS = layers.MultiHeadAttention(8, 2, sinks=True)
ENDS = [0, 3, 4, 4, 9]
DOCUMENTS = [(0, 3), (3, 4), (4, 9)]  # and an empty one
PARAMS, X = drawn(LAYER), normal(2, 9, 8)


def turned(x: Any, positions: Any) -> Any:
    """The only pair of a head of width 2 turns by its position, for its frequency is 1."""
    at = positions * 1.0 if formulas.of(x) is np else torch.as_tensor(positions, dtype=x.dtype)
    cos, sin = formulas.of(x).cos(at), formulas.of(x).sin(at)
    a, b = x[..., 0], x[..., 1]
    return formulas.of(x).stack([a * cos - b * sin, a * sin + b * cos], -1)


def heads(p: Any, x: Any, positions: Any) -> Any:
    """LAYER by hand: head h reads kv head h // 2, and no token reads a later one."""
    out = 0
    for h in range(4):
        q, k = turned(x @ p["w_q"][:, h], positions), turned(x @ p["w_k"][:, h // 2], positions)
        head, _ = formulas.attend(q, k, x @ p["w_v"][:, h // 2], allowed=np.tri(x.shape[-2]))
        out = out + head @ p["w_o"][h]
    return out


def one_by_one(p: Any, x: Any) -> Any:
    """A call for each document, whose positions begin with 0."""
    return formulas.of(x).concatenate([heads(p, x[:, a:b], np.arange(b - a)) for a, b in DOCUMENTS], 1)


def room(f: Any, *inputs: Any) -> float:
    return 4 * noise(lambda number: f(mapped(number, PARAMS), *map(number, inputs)))


def packed(library: str, layer: Any, params: Any, x: Floats, ends: Any, **options: Any) -> Floats:
    """float32; the boundaries are an argument of what JAX compiles, and an array that can be read elsewhere."""
    bench = bench_of(library)

    def f(p: Any, x: Any, ends: Any) -> Any:
        return layer(p, x, cu_seqlens=ends, **options)

    given = mapped(lambda w: bench.array(w, "float32"), params)
    call = jax.jit(f) if library == "jax" else f
    return bench.numpy(call(given, bench.array(x, "float32"), bench.array(np.asarray(ends, np.int32))))


# positions


@on_every_library
@pytest.mark.parametrize(
    "at",
    [
        np.arange(9) + 5,
        np.asarray([0, 1, 2, 0, 1, 2, 3, 4, 5]),
        np.stack([np.arange(9) * 3, 8 - np.arange(9)]),
    ],
    ids=["moved", "that begin anew", "of each item"],
)
def test_positions_say_where_rotary_takes_the_tokens_to_stand(library: str, at: Any) -> None:
    """The mask goes by the order of the tokens even so."""
    positions = bench_of(library).array(at.astype(np.int32))
    out = applied(library, lambda p, x: LAYER(p, x, positions=positions), PARAMS, X)
    bound = room(lambda p, x: heads(p, x, at), X)
    assert np.abs(out - heads(PARAMS, X, at)).max() <= bound < 1e-4
    moved = np.abs(out - heads(PARAMS, X, np.arange(9))).max()
    assert moved <= bound if (np.diff(at) == 1).all() else moved > 0.01  # distances alone count


# packed documents


@on_every_library
def test_packed_documents_equal_one_call_for_each(library: str) -> None:
    out = packed(library, LAYER, PARAMS, X, ENDS)
    assert np.abs(out - one_by_one(PARAMS, X)).max() <= room(one_by_one, X) < 1e-4
    assert np.abs(out - heads(PARAMS, X, np.arange(9))).max() > 0.01


@on_every_library
def test_packed_documents_that_look_both_ways_equal_one_call_for_each(library: str) -> None:
    params = drawn(BOTH_WAYS)

    def formula(p: Any, x: Any) -> Any:
        return np.concatenate([formulas.multihead(p, x[:, a:b])[0] for a, b in DOCUMENTS], 1)

    bound = 4 * noise(lambda number: formula(mapped(number, params), number(X)))
    assert np.abs(packed(library, BOTH_WAYS, params, X, ENDS) - formula(params, X)).max() <= bound < 1e-4


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_positions_beside_packed_documents_are_taken_as_they_are(library: str) -> None:
    at = np.arange(9) * 2

    def formula(p: Any, x: Any) -> Any:
        return np.concatenate([heads(p, x[:, a:b], at[a:b]) for a, b in DOCUMENTS], 1)

    positions = bench_of(library).array(at.astype(np.int32))
    out = packed(library, LAYER, PARAMS, X, ENDS, positions=positions)
    assert np.abs(out - formula(PARAMS, X)).max() <= room(formula, X)
    assert np.abs(out - one_by_one(PARAMS, X)).max() > 0.01


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_another_document_changes_no_bit(library: str) -> None:
    other = X.copy()
    other[:, 3] = 1000.0 - other[:, 3]
    before, after = (packed(library, LAYER, PARAMS, x, ENDS) for x in (X, other))
    assert np.array_equal(np.delete(before, 3, 1), np.delete(after, 3, 1))
    assert np.abs(before[:, 3] - after[:, 3]).max() > 1


def test_a_token_behind_the_last_of_traced_documents_sees_nothing() -> None:
    out = packed("jax", LAYER, PARAMS, X, [0, 3, 4, 4, 7])
    assert not out[:, 7:].any()
    assert np.array_equal(out[:, :4], packed("jax", LAYER, PARAMS, X, ENDS)[:, :4])


def test_blocks_and_stacks_hand_packed_documents_to_their_attention() -> None:
    norm, mlp = layers.RMSNorm(8, epsilon=1e-6), layers.MLP(8, 12, activation="swiglu")
    stack = layers.Encoder(layers.EncoderBlock(LAYER, mlp, norm, norm_first=True), 2)
    params = drawn(stack)
    each = np.concatenate([stack(params, X[:, a:b]) for a, b in DOCUMENTS], 1)
    bound = 4 * noise(lambda number: stack(mapped(number, params), number(X)))
    assert np.abs(packed("torch", stack, params, X, ENDS) - each).max() <= bound < 1e-3


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_gradients_of_packed_documents_are_the_sums_over_documents(library: str) -> None:
    """Against the formula in float64: no further off than four times what the same in float32 is."""
    true, plain = (torch_gradients(one_by_one, PARAMS, X, dtype) for dtype in ("float64", "float32"))
    bench = bench_of(library)
    ends = bench.array(np.asarray(ENDS, np.int32))
    if library == "torch":
        found = torch_gradients(lambda p, x: LAYER(p, x, cu_seqlens=ends), PARAMS, X, "float32")
    else:
        given = mapped(lambda w: bench.array(w, "float32"), PARAMS)
        loss = lambda p, x: (LAYER(p, x, cu_seqlens=ends) * x).sum()  # noqa: E731
        of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(given, bench.array(X, "float32"))
        found = [bench.numpy(x) for x in (*(of_params[name] for name in PARAMS), of_x)]
    assert apart(found, true) <= 4 * apart(plain, true) < 1e-4
