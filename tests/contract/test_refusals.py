"""Nothing is mixed, nothing is guessed: libraries, devices, dtypes, layouts, and what masks and mods refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jnp, torch

from polyattn import attention, layers, masks, mods
from polyattn.testing import Bench, StrictBench

pytestmark = pytest.mark.rule("rule-13")

Q, K, V = (np.ones(s, np.float32) for s in ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)))
CAST = "; cast them to the dtype in which you want the result"

BUILDERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "window below 0": (
        lambda: masks.window(-1, 0),
        ValueError,
        "polyattn.masks.window: expected both sides >= 0, got -1; use None for an unbounded side",
    ),
    "window to the right below 0": (
        lambda: masks.window(0, -2),
        ValueError,
        "polyattn.masks.window: expected both sides >= 0, got -2; use None for an unbounded side",
    ),
    "window of a float": (
        lambda: masks.window(1.5, 0),
        TypeError,
        "polyattn.masks.window: expected both sides to be an integer, got 1.5; pass a Python int",
    ),
    "sliding_window of 0": (
        lambda: masks.sliding_window(0),
        ValueError,
        "polyattn.masks.sliding_window: expected size >= 1, got 0; pass a larger number",
    ),
    "prefix below 0": (
        lambda: masks.prefix(-1),
        ValueError,
        "polyattn.masks.prefix: expected the length >= 0, got -1; pass a larger number",
    ),
    "chunks of 0": (
        lambda: masks.chunked(0),
        ValueError,
        "polyattn.masks.chunked: expected n >= 1, got 0; pass a larger number",
    ),
    "steps of 0": (
        lambda: masks.dilated(0),
        ValueError,
        "polyattn.masks.dilated: expected step >= 1, got 0; pass a larger number",
    ),
    "float lengths": (
        lambda: masks.key_lengths([1.5]),
        TypeError,
        "polyattn.masks.key_lengths: expected every length to be an integer, got 1.5; pass a Python int",
    ),
    "float ids": (
        lambda: masks.segments(np.ones(3)),
        TypeError,
        "polyattn.masks.segments: expected arrays of integer ids, got float64; number the documents",
    ),
    "ranges of floats": (
        lambda: masks.key_ranges(np.zeros(3, int), np.ones(3)),
        TypeError,
        "polyattn.masks.key_ranges: expected stops of an integer dtype, got float64; cast it",
    ),
    "ranges of lists": (
        lambda: masks.key_ranges([0], np.ones(1, int)),
        TypeError,
        "polyattn.masks.key_ranges: expected starts to be an array of an array API library (NumPy, JAX, PyTorch, ...), "
        "of integers, got list; convert it, for example with numpy.asarray",
    ),
    "one range": (
        lambda: masks.key_ranges(np.array(0), np.array(1)),
        ValueError,
        "polyattn.masks.key_ranges: expected starts of shape (L,) or (batch, L), got a single number; give one per "
        "query row",
    ),
    "ranges of other rows": (
        lambda: attention(
            *(np.ones((2, 3, 5, 4)),) * 3, mask=masks.key_ranges(np.zeros(4, int), np.ones(4, int))
        ),
        ValueError,
        "polyattn.attention: expected starts of masks.key_ranges to have shape (5,) or (2, 5), got (4,); give one per "
        "query row",
    ),
    "from_array of floats": (
        lambda: masks.from_array(np.ones((2, 2))),
        TypeError,
        "polyattn.masks.from_array: expected a bool mask (True = may attend), got dtype float64; write "
        "masks.from_array(allowed != 0) if its numbers are 1 and 0, attention(..., bias=allowed) if they are 0 and -inf "
        "or large negative ones",
    ),
    "mask_mod of a number": (
        lambda: masks.mask_mod(3),
        TypeError,
        "polyattn.masks.mask_mod: expected a function (b, h, q_idx, kv_idx) -> bool, got 3; a bool array goes "
        "to masks.from_array",
    ),
    "the truth value of a mask": (
        lambda: masks.causal() and masks.window(1, 1),
        TypeError,
        "polyattn.masks: the mask causal() has no truth value; combine masks with & | ~ (not and, or, not)",
    ),
    "softcap of 0": (
        lambda: mods.softcap(0),
        ValueError,
        "polyattn.mods.softcap: expected a cap between 0 and 2**60, got 0; leave the mod out for no cap",
    ),
    "softcap below 0": (
        lambda: mods.softcap(-1.0),
        ValueError,
        "polyattn.mods.softcap: expected a cap between 0 and 2**60, got -1.0; leave the mod out for no cap",
    ),
    "alibi of no heads": (
        lambda: mods.alibi(0),
        ValueError,
        "polyattn.mods.alibi_slopes: expected heads >= 1, got 0; pass the number of heads",
    ),
    "compose of a number": (
        lambda: mods.compose(1),
        TypeError,
        "polyattn.mods.compose: expected functions (score, b, h, q_idx, kv_idx) -> score, got 1; an array of "
        "additive values is attention's bias=",
    ),
}


@pytest.mark.parametrize("what", BUILDERS)
def test_a_mask_or_mod_that_makes_no_sense_is_refused_when_built(what: str) -> None:
    build, kind, text = BUILDERS[what]
    with pytest.raises(kind) as error:
        build()
    assert str(error.value) == text


def _mixture(bench: Bench, *dtypes: str) -> tuple[Any, ...]:
    """query, key and value in those dtypes."""
    return tuple(
        bench.array(x.astype(d), d if d.startswith("float") else None)
        for x, d in zip((Q, K, V), dtypes, strict=True)
    )


@pytest.mark.parametrize("dtypes", [("float32", "float32", "int32"), ("float32", "float16", "float32")])
def test_mixed_dtypes_are_refused(eager: Bench, dtypes: tuple[str, ...]) -> None:
    if eager.name == "strict":
        dtypes = tuple("float64" if d == "float16" else d for d in dtypes)
    arrays = _mixture(eager, *dtypes)
    with pytest.raises(TypeError) as error:
        attention(*arrays)
    came = ", ".join(str(x.dtype) for x in arrays)
    assert (
        str(error.value)
        == f"polyattn.attention: expected query, key and value of one dtype, got {came}{CAST}"
    )


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_integers_and_bools_are_refused(eager: Bench, dtype: str) -> None:
    arrays = _mixture(eager, dtype, dtype, dtype)
    with pytest.raises(TypeError) as error:
        attention(*arrays)
    came = arrays[0].dtype
    text = f"polyattn.attention: expected query, key and value of a real floating dtype, got {came}{CAST}"
    assert str(error.value) == text


MIXED: dict[str, tuple[Callable[[], Any], str]] = {
    "torch keys": (
        lambda: attention(Q, torch.tensor(K), torch.tensor(V)),
        "expected key to be an array of the library of query (numpy), got one of torch",
    ),
    "numpy keys": (
        lambda: attention(jnp.asarray(Q), K, V),
        "expected key to be an array of the library of query (jax), got one of numpy",
    ),
    "torch values": (
        lambda: attention(jnp.asarray(Q), jnp.asarray(K), torch.tensor(V)),
        "expected value to be an array of the library of query (jax), got one of torch",
    ),
    "torch bias": (
        lambda: attention(Q, K, V, bias=torch.ones(3, 5)),
        "expected bias to be an array of the library of query (numpy), got one of torch",
    ),
    "numpy mask": (
        lambda: attention(*map(torch.tensor, (Q, K, V)), mask=np.ones((3, 5), bool)),
        "expected the arrays of mask to be an array of the library of query (torch), got one of numpy",
    ),
    "lengths inside a mask": (
        lambda: attention(Q, K, V, mask=masks.prefix(1) | masks.key_lengths(torch.tensor([1, 2]))),
        "expected the arrays of mask to be an array of the library of query (numpy), got one of torch",
    ),
    "slopes inside a mod": (
        lambda: attention(Q, K, V, score_mod=mods.alibi(torch.ones(4)), query_offset=0),
        "expected the arrays of score_mod to be an array of the library of query (numpy), got one of torch",
    ),
}


@pytest.mark.parametrize("what", MIXED)
def test_mixed_libraries_are_refused(what: str) -> None:
    call, text = MIXED[what]
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == f"polyattn.attention: {text}; convert it, or keep one library per call"


@pytest.mark.parametrize("what", ["key", "bias", "the arrays of mask"])
def test_mixed_devices_are_refused(what: str) -> None:
    here, there = StrictBench(), StrictBench("device1")
    options = {
        "bias": {"bias": there.array(np.ones((3, 5), np.float32))},
        "the arrays of mask": {"mask": masks.key_lengths(there.array(np.array([1, 2])))},
        "key": {},
    }[what]
    elsewhere = there if what == "key" else here
    with pytest.raises(ValueError) as error:
        attention(here.array(Q), elsewhere.array(K), elsewhere.array(V), **options)
    assert str(error.value) == (
        f"polyattn.attention: expected {what} on the device of query "
        "(array_api_strict.Device('CPU_DEVICE')), got array_api_strict.Device('device1'); move it"
    )


@pytest.mark.parametrize("keys", [3, 5])
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_padding_mask_that_could_be_an_l_by_s_mask_is_refused(eager: Bench, name: str, keys: int) -> None:
    q, k, v = (eager.array(np.ones((3, 2, n, 4)), "float32") for n in (3, keys, keys))
    given = np.ones((3, keys), bool if name == "mask" else np.float32)
    with pytest.raises(ValueError) as error:
        attention(q, k, v, **{name: eager.array(given)})
    assert str(error.value) == (
        f"polyattn.attention: expected a {name} whose first axis can be told apart, got shape (3, {keys}) for "
        f"scores (B, Hq, L, S) = (3, 2, 3, {keys}), where its first axis could be B or L; write a key padding "
        f"mask of shape (B, S) as {name}[:, None, None, :], an (L, S) one as {name}[None, None]"
    )
    out = eager.numpy(attention(q, k, v, **{name: eager.array(given[:, None, None, :])}))
    assert (out == 1).all()


def test_a_single_head_has_no_layout_but_bhld(eager: Bench) -> None:
    q, k, v = (eager.array(np.ones((3, 8)), "float32") for _ in range(3))
    with pytest.raises(ValueError) as error:
        attention(q, k, v, layout="BLHD")
    assert str(error.value) == (
        "polyattn.attention: expected rank 3 or more (..., length, heads, width), got query (3, 8), key (3, 8), "
        "value (3, 8) in layout BLHD; use layout 'BHLD' for a single head (L, D)"
    )


def test_shapes_are_named_in_the_layout_of_the_caller(eager: Bench) -> None:
    q, k, v = (eager.array(np.ones(s), "float32") for s in ((2, 3, 4, 8), (2, 5, 3, 8), (2, 5, 3, 6)))
    with pytest.raises(ValueError) as error:
        attention(q, k, v, layout="BLHD")
    assert str(error.value) == (
        "polyattn.attention: expected a number of query heads that is a multiple of the number of key heads, "
        "got query (2, 3, 4, 8), key (2, 5, 3, 8), value (2, 5, 3, 6) in layout BLHD; grouped heads read key "
        "head h // (Hq // Hkv); check the layout"
    )


@pytest.mark.parametrize(("layout", "other"), [("BHLD", "BLHD"), ("BLHD", "BHLD")])
def test_a_forgotten_transpose_that_heads_reveal_is_asked_about(
    eager: Bench, layout: str, other: str
) -> None:
    shapes = [(2, 6, 4, 8), (2, 5, 4, 8)] if layout == "BHLD" else [(2, 4, 6, 8), (2, 4, 5, 8)]
    q, k = (eager.array(np.ones(s), "float32") for s in shapes)
    with pytest.raises(ValueError, match=f"; did you mean layout='{other}', in which they fit\\?$"):
        attention(q, k, k, layout=layout)
    attention(q, k, k, layout=other)


def test_a_mask_that_fits_the_other_layout_asks_about_it(eager: Bench) -> None:
    x = eager.array(np.ones((2, 6, 4, 8)), "float32")  # (B, L, H, D)
    mask = eager.array(np.tril(np.ones((6, 6), bool)))
    with pytest.raises(ValueError) as error:
        attention(x, x, x, mask=mask)
    assert str(error.value) == (
        "polyattn.attention: expected a mask that broadcasts to the scores (..., Hq, L, S) = (2, 6, 4, 4), got shape "
        "(6, 6); did you mean the other layout, in which the scores are (2, 4, 6, 6)?"
    )
    attention(x, x, x, mask=mask, layout="BLHD")


def test_flags_and_rates_of_numpy_are_flags_and_rates(eager: Bench) -> None:
    x = eager.array(np.random.default_rng(0).normal(size=(1, 2, 3, 4)), "float32")
    plain = attention(x, x, x, is_causal=True, dropout_rate=0.5, dropout_seed=0)
    numpys = {"is_causal": np.bool_(True), "dropout_rate": np.float32(0.5), "dropout_seed": np.int64(0)}
    if eager.name != "numpy":
        numpys["dropout_seed"] = 0  # an array of another library there
    assert np.array_equal(eager.numpy(attention(x, x, x, **numpys)), eager.numpy(plain))


def test_a_mask_is_a_static_argument_of_a_compiled_function() -> None:
    import jax

    traced: list[Any] = []

    def masked(x: Any, mask: Any) -> Any:
        traced.append(mask)
        return attention(x, x, x, mask=mask)

    x = jnp.asarray(Q)
    compiled = jax.jit(masked, static_argnames="mask")
    for _ in range(2):  # equal masks are one program
        assert np.array_equal(compiled(x, masks.causal()), attention(x, x, x, is_causal=True))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (np.ma.masked_array, "numpy.ma.MaskedArray" if np.ma.MaskedArray.__module__ == "numpy.ma" else "numpy.ma.core.MaskedArray", "whose mask attention does not see; pass x.filled(0), and say by mask= what may be seen"),
        (np.matrix, "numpy.matrix", "whose product is not that of arrays; pass numpy.asarray(x)"),
    ],
    ids=["masked", "matrix"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_an_array_that_is_more_than_an_array_is_refused(make: Any, name: str, reason: str) -> None:
    x, allowed = np.ones((3, 3)), np.ones((3, 3), bool)
    calls: list[Any] = [
        lambda: attention(make(x), x, x),
        lambda: attention(x, make(x), x),
        lambda: attention(x, x, make(x)),
        lambda: attention(x, x, x, mask=make(allowed)),
        lambda: attention(x, x, x, bias=make(x)),
        lambda: masks.from_array(make(allowed)),
        lambda: masks.segments(make(x.astype(int))),
        lambda: layers.RMSNorm(3, epsilon=1e-5)({"scale": x[0]}, make(x)),
    ]
    for call in calls:
        with pytest.raises(TypeError) as caught:
            call()
        who, _, rest = str(caught.value).partition(" a plain array of numpy, got ")
        assert who.startswith("polyattn")
        assert ": expected" in who
        assert rest == f"{name}, {reason}"


def test_an_array_in_a_file_is_an_array(tmp_path: Any) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 4))
    x[:] = np.random.default_rng(0).normal(size=x.shape)
    assert (attention(x, x, x) == attention(*[np.array(x)] * 3)).all()
