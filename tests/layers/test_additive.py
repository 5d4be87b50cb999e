"""Additive attention: the scores in tiles, their derivative, what options do, what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, torch
from shared.running import LIBRARIES, Floats, bench_of, normal

from polyattn import AuxRequest, additive, masks, mods
from polyattn.additive import additive_attention, additive_scores
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.truth.rounding import noise

#: lead of q, lead of k: batch and heads; 7 queries, 5 keys, width 3
LEADS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "rank 2": ((), ()),
    "heads": ((2, 4), (2, 4)),
    "grouped heads": ((2, 4), (2, 2)),
    "one kv head": ((2, 4), (2, 1)),
    "broadcast batch": ((1, 4), (3, 2)),
}
RUNS = [
    ("numpy", "float64"),
    ("strict", "float32"),
    ("jax", "float32"),
    ("torch", "float64"),
    ("torch", "float32"),
]


def arrays(lead: str) -> tuple[Floats, Floats, Floats]:
    q, k = LEADS[lead]
    return normal(*q, 7, 3, seed=1), normal(*k, 5, 3, seed=2), normal(3, seed=3)


def formula(q: Any, k: Any, v: Any) -> Any:
    """The scores with every kv head repeated for its group."""
    if q.ndim > 2:
        group = q.shape[-3] // k.shape[-3]
        k = formulas.of(k).stack([k[..., h // group, :, :] for h in range(q.shape[-3])], -3)
    return formulas.additive_scores(q, k, v)


def rows_per_tile(monkeypatch: pytest.MonkeyPatch, rows: int, lead: str) -> None:
    """TILE such that a tile has that many rows; 7 rows are 7, 3 + 1 left over, or 2 + 1 left over of them."""
    q, k, v = arrays(lead)
    numbers = formula(q, k, v).size // 7 * 3
    monkeypatch.setattr(additive, "TILE", rows * numbers)


def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each tile that is computed has."""
    seen: list[int] = []
    tile = additive._tile

    def watched(backend: Any, q: Any, k: Any, v: Any) -> Any:
        seen.append(q.shape[-2])
        return tile(backend, q, k, v)

    monkeypatch.setattr(additive, "_tile", watched)
    return seen


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
def test_scores_do_not_depend_on_the_tile_by_one_bit(
    library: str, lead: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(library)
    given = [bench.array(x, "float32") for x in arrays(lead)]
    whole = bench.numpy(additive_scores(*given))
    rows_per_tile(monkeypatch, rows, lead)
    seen = spy(monkeypatch)
    assert np.array_equal(bench.numpy(additive_scores(*given)), whole)
    assert seen == [rows] * (7 // rows) + [7 % rows] * (7 % rows > 0)


@pytest.mark.parametrize(("library", "dtype"), RUNS)
@pytest.mark.parametrize("lead", LEADS)
def test_tiled_scores_are_the_formula(
    library: str, dtype: str, lead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_per_tile(monkeypatch, 2, lead)
    bench, given = bench_of(library), arrays(lead)
    call = jax.jit(additive_scores) if library == "jax" else additive_scores
    out = bench.numpy(call(*(bench.array(x, dtype) for x in given)))
    true = formula(*given)
    room = 4 * noise(lambda number: formula(*map(number, given))) * UNIT_ROUNDOFF[dtype] / 2.0**-24
    assert out.shape == true.shape
    assert np.abs(out - true).max() <= room < 1e-4


def gradients(f: Callable[..., Any], given: Any, cotangent: Floats, dtype: torch.dtype) -> list[Floats]:
    leaves = [torch.from_numpy(x).to(dtype).requires_grad_() for x in given]
    (f(*leaves) * torch.from_numpy(cotangent).to(dtype)).sum().backward()
    return [leaf.grad.double().numpy() for leaf in leaves]


def jax_gradients(f: Callable[..., Any], given: Any, cotangent: Floats, jit: bool) -> list[Floats]:
    bench = bench_of("jax")
    c = bench.array(cotangent, "float32")
    derived = jax.grad(lambda *x: (f(*x) * c).sum(), argnums=(0, 1, 2))
    derived = jax.jit(derived) if jit else derived
    return [bench.numpy(g) for g in derived(*(bench.array(x, "float32") for x in given))]


HOW: dict[str, Callable[..., list[Floats]]] = {
    "torch float64": lambda *x: gradients(*x, torch.float64),
    "torch float32": lambda *x: gradients(*x, torch.float32),
    "jax jit": lambda *x: jax_gradients(*x, jit=True),
    "jax eager": lambda *x: jax_gradients(*x, jit=False),
}


def slopes(q: Any, k: Any, v: Any, cotangent: Any) -> list[Any]:
    """The derivatives by hand: d tanh = 1 - tanh^2, summed over what was broadcast or shared by a group."""
    group = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
    repeated = np.repeat(k, group, -3) if group > 1 else k
    bent = np.tanh(q[..., :, None, :] + repeated[..., None, :, :])
    inner = cotangent[..., None] * v * (1 - bent * bent)
    d_k = inner.sum(-3)
    if group > 1:
        d_k = d_k.reshape((*d_k.shape[:-3], -1, group, *d_k.shape[-2:])).sum(-3)
    return [
        fitted(inner.sum(-2), q.shape),
        fitted(d_k, k.shape),
        (cotangent[..., None] * bent).reshape((-1, v.size)).sum(0),
    ]


def fitted(x: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the leading axes that are 1 in `shape`."""
    for axis in range(len(shape) - 2):
        x = x.sum(axis, keepdims=True) if shape[axis] == 1 else x
    return x


@pytest.mark.parametrize(
    ("how", "lead"),
    [(how, lead) for how in ("torch float64", "torch float32") for lead in LEADS]
    + [("jax jit", lead) for lead in ("rank 2", "grouped heads", "broadcast batch")]
    + [("jax eager", "rank 2")],
)
def test_the_derivative_in_tiles_is_that_of_the_formula(
    how: str, lead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arrays(lead)
    cotangent = normal(*formula(*given).shape, seed=4)
    true = slopes(*given, cotangent)
    rows_per_tile(monkeypatch, 2, lead)
    ours = HOW[how](additive_scores, given, cotangent)
    unit = 2.0**-29 if how == "torch float64" else 1.0
    for i, (mine, x) in enumerate(zip(ours, true, strict=True)):
        room = 4 * unit * noise(lambda number, i=i: slopes(*map(number, given), cotangent)[i])
        assert mine.shape == x.shape
        assert np.abs(mine - x).max() <= room < 1e-3


def test_the_derivative_of_attention_goes_through_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = arrays("grouped heads")
    values = normal(2, 2, 5, 4, seed=5)
    mask = np.random.default_rng(6).random((2, 4, 7, 5)) < 0.7

    def plain(q: Any, k: Any, v: Any) -> Any:
        weights = formulas.softmax(formula(q, k, v), mask)
        repeated = torch.from_numpy(values).to(q.dtype).repeat_interleave(2, 1)
        return weights @ repeated

    def ours(q: Any, k: Any, v: Any) -> Any:
        return additive_attention(q, k, torch.from_numpy(values), v, mask=torch.from_numpy(mask))

    cotangent = normal(2, 4, 7, 4, seed=7)
    rows_per_tile(monkeypatch, 2, "grouped heads")
    found = gradients(ours, (q, k, v), cotangent, torch.float64)
    true = gradients(plain, (q, k, v), cotangent, torch.float64)
    naive = gradients(plain, (q, k, v), cotangent, torch.float32)
    for mine, x, theirs in zip(found, true, naive, strict=True):
        error = max(np.abs(theirs - x).max(), 2.0**-24 * np.abs(x).max())
        assert np.abs(mine - x).max() <= 4 * error * 2.0**-29


# what options do

MASKED = np.random.default_rng(6).random((2, 4, 7, 5)) < 0.7
MASKED[0, 1, 3] = False  # a row that sees nothing


@pytest.mark.parametrize("library", LIBRARIES)
def test_hidden_keys_weigh_nothing_and_rows_without_keys_are_zero(library: str) -> None:
    bench, (q, k, v) = bench_of(library), arrays("grouped heads")
    values = normal(2, 2, 5, 4, seed=5)

    def plain(q: Any, k: Any, v: Any, values: Any) -> Any:
        return formulas.softmax(formula(q, k, v), MASKED) @ np.repeat(values, 2, 1)

    def call(q: Any, k: Any, values: Any, v: Any) -> Any:
        return additive_attention(
            q, k, values, v, mask=bench.array(MASKED), return_aux=AuxRequest(weights=True)
        )

    out, aux = (jax.jit(call) if library == "jax" else call)(
        *(bench.array(x, "float32") for x in (q, k, values, v))
    )
    room = 4 * noise(lambda number: plain(*map(number, (q, k, v, values))))
    assert np.abs(bench.numpy(out) - plain(q, k, v, values)).max() <= room < 1e-4
    assert not bench.numpy(aux.weights)[~MASKED].any()
    assert not bench.numpy(out)[0, 1, 3].any()


def test_bias_and_sinks_come_after_the_scores() -> None:
    q, k, v = arrays("heads")
    values, bias, sinks = normal(2, 4, 5, 4), normal(1, 4, 7, 5), normal(4)
    scores = formula(q, k, v) + bias
    e = np.exp(scores) * np.tri(7, 5)
    weights = e / (e.sum(-1) + np.exp(sinks)[:, None])[..., None]
    out = additive_attention(q, k, values, v, bias=bias, sinks=sinks, mask=masks.causal(), query_offset=0)

    def plain(number: Any) -> Any:
        e = np.exp(formula(*map(number, (q, k, v))) + bias) * np.tri(7, 5)
        return e / (e.sum(-1) + np.exp(sinks)[:, None])[..., None] @ values

    assert np.abs(out - weights @ values).max() <= 4 * noise(plain) * 2.0**-29


@pytest.mark.parametrize("hidden_by", ["mask", "bias"])
@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_a_hidden_key_of_nan_has_no_influence_on_results_and_gradients(
    library: str, rows: int, hidden_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = arrays("heads")
    values, poisoned = normal(2, 4, 5, 4), k.copy()
    poisoned[..., 3, 1] = np.nan
    rows_per_tile(monkeypatch, rows, "heads")
    bench, seen = bench_of(library), np.arange(5)[None, None, None] != 3
    hides = bench.array(seen) if hidden_by == "mask" else bench.array(np.where(seen, 0.0, -np.inf), "float32")

    def out(q: Any, k: Any, v: Any) -> Any:
        return additive_attention(q, k, bench.array(values, "float32"), v, **{hidden_by: hides})

    results = []
    for keys in (k, poisoned):
        given = [bench.array(x, "float32") for x in (q, keys, v)]
        results.append([bench.numpy(out(*given))])
        if library == "jax":
            results[-1] += jax_gradients(out, (q, keys, v), normal(2, 4, 7, 4), jit=True)
        if library == "torch":
            results[-1] += gradients(out, (q, keys, v), normal(2, 4, 7, 4), torch.float32)
    for clean, dirty in zip(*results, strict=True):
        assert np.array_equal(clean, dirty)
        assert np.isfinite(clean).all()


def test_a_key_of_nan_that_is_seen_is_seen() -> None:
    q, k, v = arrays("rank 2")
    k[3, 1] = np.nan
    assert np.isnan(additive_attention(q, k, k, v)).all()
    assert np.isnan(additive_scores(q, k, v)[:, 3]).all()


def test_scores_are_carried_in_float32_whatever_the_input() -> None:
    q, k, v = (bench_of("numpy").array(x, "bfloat16") for x in arrays("rank 2"))
    assert additive_scores(q, k, v).dtype == np.float32
    assert additive_attention(q, k, k, v).dtype == q.dtype


@pytest.mark.parametrize("rows", [0, 7])
def test_nothing_to_see_gives_nothing(rows: int) -> None:
    q, v = np.ones((2, rows, 3)), np.ones(3)
    assert np.array_equal(additive_attention(q, q[:, :0], q[:, :0], v), np.zeros((2, rows, 3)))


def test_a_compiled_function_in_pytorch_is_one_graph() -> None:
    q, k, v = (torch.from_numpy(x) for x in arrays("grouped heads"))
    compiled = torch.compile(additive_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, k, v), additive_attention(q, k, k, v))


# memory


def test_memory_stays_far_below_one_number_for_every_query_key_and_feature() -> None:
    """1024 x 1024 scores take 4 MiB, a tile at most 4 MiB; with the features it would be 256 MiB."""
    x = np.random.default_rng(0).normal(size=(1024, 64)).astype(np.float32)
    tracemalloc.start()
    out = additive_attention(x, x, x, np.ones(64, np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.shape == (1024, 64)
    assert 2**22 < peak < 1024 * 1024 * 64 * 4 / 4


# refusals

Q, V = np.zeros((2, 4, 7, 3)), np.zeros(3)
SHAPED = "got query (2, 4, 7, 3), key {0}, value {0} in layout BHLD"
NO_PRODUCTS = "the scores are not products, and heads come before the length"
BIASES = (
    "write a key padding mask of shape (B, S) as bias[:, None, None, :], an (L, S) one as bias[None, None]"
)
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "another library": ((Q, torch.zeros(2, 4, 5, 3), Q, V), {}, TypeError, "expected key to be an array of the library of query (numpy), got one of torch; convert it, or keep one library per call"),
    "a list": ((Q, Q, Q, [1.0]), {}, TypeError, "expected weight of the library and dtype of query, numpy and float64, got list (no array); convert it"),
    "a tensor": ((Q, Q, Q, torch.zeros(3, dtype=torch.float64)), {}, TypeError, "expected weight of the library and dtype of query, numpy and float64, got Tensor (torch.float64); convert it"),
    "two dtypes": ((Q, Q.astype("f4"), Q, V), {}, TypeError, "expected query, key and value of one dtype, got float64, float32, float64; cast them to the dtype in which you want the result"),
    "weight of another dtype": ((Q, Q, Q, V.astype("f4")), {}, TypeError, "expected weight of the library and dtype of query, numpy and float64, got ndarray (float32); convert it"),
    "integers": ((Q.astype(int), Q, Q, V), {}, TypeError, "expected query, key and value of a real floating dtype, got int64; cast them to the dtype in which you want the result"),
    "rank": ((Q, Q[0], Q[0], V), {}, ValueError, f"expected query, key and value of one rank, 2 or more, {SHAPED.format((4, 7, 3))}; add the axes that are missing, of size 1"),
    "weight of rank 2": ((Q, Q, Q, V[None]), {}, ValueError, "expected weight of shape (3,), as wide as query and key, got (1, 3); project query and key to its width"),
    "width of weight": ((Q, Q, Q, np.zeros(4)), {}, ValueError, "expected weight of shape (3,), as wide as query and key, got (4,); project query and key to its width"),
    "widths": ((Q, Q[..., :2], Q[..., :2], V), {}, ValueError, f"expected query and key of one width D, {SHAPED.format((2, 4, 7, 2))}; project them to the same width"),
    "heads": ((Q, Q[:, :3], Q[:, :3], V), {}, ValueError, f"expected a number of query heads that is a multiple of the number of key heads, {SHAPED.format((2, 3, 7, 3))}; grouped heads read key head h // (Hq // Hkv); check the layout"),
    "no heads": ((Q, Q[:, :0], Q[:, :0], V), {}, ValueError, f"expected a number of query heads that is a multiple of the number of key heads, {SHAPED.format((2, 0, 7, 3))}; grouped heads read key head h // (Hq // Hkv); check the layout"),
    "bias of integers": ((Q, Q, Q, V), {"bias": np.zeros((1, 4, 7, 7), int)}, TypeError, "expected a real floating bias, got int64; a bool mask goes to mask= (True = may attend), integers are cast by the caller"),
    "bias of another shape": ((Q, Q, Q, V), {"bias": np.zeros((1, 4, 6, 7))}, ValueError, f"expected a bias that broadcasts to the scores (..., Hq, L, S) = (2, 4, 7, 7), got shape (1, 4, 6, 7); {BIASES}"),
    "bias that is none": ((Q, Q, Q, V), {"bias": 1.0}, TypeError, "expected bias to be an array of an array API library (NumPy, JAX, PyTorch, ...), got float; convert it, for example with numpy.asarray"),
    "mask": ((Q, Q, Q, V), {"mask": np.zeros((1, 4, 6, 7), bool)}, ValueError, f"expected a mask that broadcasts to the scores (..., Hq, L, S) = (2, 4, 7, 7), got shape (1, 4, 6, 7); {BIASES.replace('bias', 'mask')}"),
    "scale": ((Q, Q, Q, V), {"scale": 2.0}, ValueError, f"expected no scale, got 2.0; {NO_PRODUCTS}"),
    "score_mod": ((Q, Q, Q, V), {"score_mod": mods.softcap(2.0)}, ValueError, f"expected no score_mod, got {mods.softcap(2.0)!r}; {NO_PRODUCTS}"),
    "layout": ((Q, Q, Q, V), {"layout": "BLHD"}, ValueError, f"expected no layout, got 'BLHD'; {NO_PRODUCTS}"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_with_a_sentence(name: str) -> None:
    args, options, error, sentence = REFUSED[name]
    with pytest.raises(error) as caught:
        additive_attention(*args, **options)
    assert str(caught.value) == f"polyattn.additive.additive_attention: {sentence}"


def test_scores_by_themselves_are_refused_in_their_own_name() -> None:
    with pytest.raises(ValueError) as caught:
        additive_scores(Q, Q, np.zeros(4))
    assert str(caught.value).startswith("polyattn.additive.additive_scores: expected weight of shape (3,)")


def test_heads_of_rank_three_are_grouped_too() -> None:
    q, k, v = normal(4, 5, 3), normal(2, 6, 3, seed=1), normal(3, seed=2)
    assert np.array_equal(additive_scores(q, k, v), additive_scores(q[None], k[None], v)[0])
