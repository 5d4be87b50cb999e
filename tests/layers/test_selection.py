"""Attention to selected keys: equal to the mask of the selection, with memory O(L K)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, polyattn_autograd, torch
from shared.mechanisms import masked
from shared.running import LIBRARIES, Floats, bench_of, normal

from polyattn.parity import UNIT_ROUNDOFF
from polyattn.selection import gathered, selected_attention
from polyattn.truth.rounding import noise

L, S, KEYS = 6, 11, 3
Q, K, V = normal(2, 4, L, 5, seed=1), normal(2, 2, S, 5, seed=2), normal(2, 2, S, 3, seed=3)
SINKS = np.array([0.5, -1.0, 0.0, 2.0])
OFFSET = S - L


def drawn_indices(*lead: int, blocks: int = S, picks: int = KEYS) -> np.ndarray[Any, Any]:
    """Distinct or not, some of them none; one row has none at all."""
    found = np.random.default_rng(5).integers(-1, blocks, size=(*lead, L, picks)).astype(np.int32)
    found[..., 2, :] = -1
    return found


def mask_of(indices: np.ndarray[Any, Any], block_size: int = 1, causal: bool = False) -> np.ndarray[Any, Any]:
    """(..., L, S): True where a row selected the key."""
    chosen = (indices[..., None] == np.arange(S) // block_size).any(-2)
    return chosen & (np.arange(S) <= np.arange(L)[:, None] + OFFSET) if causal else chosen


CASES: dict[str, tuple[np.ndarray[Any, Any], int, bool]] = {
    "keys, one selection for all heads": (drawn_indices(2, 1), 1, False),
    "keys of every kv head": (drawn_indices(2, 2), 1, False),
    "keys of every query head, causal": (drawn_indices(2, 4), 1, True),
    "one selection for all items": (drawn_indices(1, 2), 1, True),
    "blocks, the last one shorter": (drawn_indices(2, 2, blocks=3, picks=2), 4, True),
}


def called(name: str) -> Callable[..., Any]:
    _, block_size, causal = CASES[name]
    options = {"is_causal": causal, "query_offset": "end"} if causal else {}
    return lambda q, k, v, sinks, chosen: selected_attention(
        q, k, v, chosen, block_size=block_size, sinks=sinks, **options
    )


def cut(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    """TILE such that so many rows are computed at a time: 6, or 4 and then 2."""
    indices, block_size, _ = CASES[name]
    heads = indices.shape[1] if indices.shape[1] > 1 else 2
    monkeypatch.setattr(gathered, "TILE", rows * 2 * heads * indices.shape[-1] * block_size * (5 + 3))


#: so many rows at a time; compiled, 4 are both, a loop and what is left over
ROWS = [(library, rows) for library in LIBRARIES for rows in (1, 4, 6) if library != "jax" or rows == 4]


@pytest.mark.parametrize(("library", "rows"), ROWS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_attention_under_the_mask_of_the_selection(
    library: str, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, name, rows)
    bench = bench_of(library)
    arrays, (indices, block_size, causal) = (Q, K, V, SINKS), CASES[name]
    given = [*(bench.array(x, "float32") for x in arrays), bench.array(indices, "float32")]
    f = jax.jit(called(name)) if library == "jax" else called(name)
    found = bench.numpy(f(*given))
    allowed = mask_of(indices, block_size, causal)
    true = masked(*arrays, allowed)
    room = 4 * noise(lambda number: masked(*map(number, arrays), allowed))
    assert np.abs(found - true).max() <= room < 1e-4
    assert (found[:, :, 2] == 0).all()


@pytest.mark.parametrize("name", ["keys of every query head, causal", "blocks, the last one shorter"])
@pytest.mark.parametrize("library", ["autograd", "jax", "torch"])
def test_gradients_are_those_under_the_mask(library: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, name, 4)
    indices, block_size, causal = CASES[name]
    allowed, arrays, f = mask_of(indices, block_size, causal), (Q, K, V, SINKS), called(name)
    weight = normal(2, 4, L, 3, seed=7)

    def of_torch(f: Callable[..., Any], dtype: Any, last: Any) -> list[Floats]:
        given = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in arrays]
        (f(*given, last) * torch.tensor(weight, dtype=dtype)).sum().backward()
        return [x.grad.double().numpy() for x in given]

    if library == "torch":
        found = of_torch(f, torch.float32, torch.tensor(indices))
    elif library == "autograd":
        given = [x.astype(np.float32) for x in arrays]
        _, pullback = polyattn_autograd.vjp(
            lambda xs: f(*xs, bench_of("autograd").array(indices, "float32")), given
        )
        found = list(pullback(weight.astype(np.float32)))
    else:
        bench = bench_of("jax")
        given = [bench.array(x, "float32") for x in (*arrays, weight)]
        found = jax.jit(
            jax.grad(lambda *x: (f(*x[:4], jax.numpy.asarray(indices)) * x[4]).sum(), argnums=(0, 1, 2, 3))
        )(*given)
    true, rounded = (of_torch(masked, dtype, allowed) for dtype in (torch.float64, torch.float32))
    for ours, theirs, their_rounded in zip(found, true, rounded, strict=True):
        unit = max(np.abs(their_rounded - theirs).max(), UNIT_ROUNDOFF["float32"] * np.abs(theirs).max())
        assert np.abs(np.asarray(ours) - theirs).max() <= 4 * unit < 1e-3


def test_what_nobody_selected_reaches_nobody() -> None:
    indices = CASES["keys of every kv head"][0]
    hidden = ~mask_of(indices).any(-2)  # (B, Hkv, S)
    assert hidden.any()
    k, v = (np.where(hidden[..., None], np.nan, x) for x in (K, V))
    assert np.array_equal(selected_attention(Q, K, V, indices), selected_attention(Q, k, v, indices))
    given = [torch.tensor(x, requires_grad=True) for x in (Q, k, v)]
    selected_attention(*given, torch.tensor(indices)).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in given)


def test_without_a_batch_and_without_heads() -> None:
    indices = CASES["keys of every query head, causal"][0]
    whole = selected_attention(Q, K, V, indices)
    assert np.array_equal(selected_attention(Q[0], K[0], V[0], indices[0]), whole[0])
    alone = selected_attention(Q[0, 3], K[0, 1], V[0, 1], indices[0, 3])
    assert np.abs(alone - whole[0, 3]).max() <= 4 * UNIT_ROUNDOFF["float64"] * np.abs(V).max() * KEYS
    assert selected_attention(Q, K, V, indices[..., :0]).shape == (2, 4, L, 3)


@pytest.mark.parametrize("length", [2048])
def test_memory_grows_with_the_selection_and_not_with_the_keys(length: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, length, 8)).astype(np.float32)
    indices = rng.integers(0, length, size=(1, length, 16)).astype(np.int32)
    tracemalloc.start()
    selected_attention(q, q, q, indices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tile = 4 * gathered.TILE  # bytes; before and after it is masked, and what of it is being computed
    assert peak <= 8 * tile + 16 * length * 16 * 4 < 4 * 4 * length * length


def test_the_gradient_keeps_no_gathered_keys() -> None:
    """What PyTorch holds for the backward pass, counted where it is stored."""
    length, picks, width = 1024, 64, 32
    q = torch.randn(1, length, width, requires_grad=True)
    indices = torch.randint(0, length, (1, length, picks), dtype=torch.int32)
    kept: dict[int, int] = {}

    def keep(x: Any) -> Any:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = selected_attention(q, q, q, indices)
    out.sum().backward()
    assert sum(kept.values()) < length * picks * width * 4 / 4  # a quarter of the gathered keys alone


def test_it_compiles_and_transforms() -> None:
    indices = torch.tensor(CASES["keys of every kv head"][0])
    q, k, v = (torch.tensor(x) for x in (Q, K, V))
    whole = selected_attention(q, k, v, indices)
    compiled = torch.compile(lambda *x: selected_attention(*x), fullgraph=True, backend="eager")(
        q, k, v, indices
    )
    assert torch.equal(whole, compiled)
    gradient = torch.func.grad(lambda q: selected_attention(q, k, v, indices).sum())(q)
    q = q.requires_grad_()
    selected_attention(q, k, v, indices).sum().backward()
    assert torch.equal(gradient, q.grad)


WHO = "polyattn.selection"
INDICES = CASES["keys of every kv head"][0]
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "rows": (
        lambda: selected_attention(Q, K, V, INDICES[..., :2, :]),
        f"{WHO}.selected_attention: expected indices of shape (2, 1 or 2 or 4, 6, K), got (2, 2, 2, 3); K keys or blocks "
        "for every row",
    ),
    "beyond": (
        lambda: selected_attention(Q, K, V, INDICES, block_size=4),
        f"{WHO}.selected_attention: expected indices of at most 2, got 10; there are 11 keys in blocks of 4, and a "
        "negative index is none",
    ),
    "floats": (
        lambda: selected_attention(Q, K, V, INDICES * 1.0),
        f"{WHO}.selected_attention: expected indices of an integer dtype, got float64; cast it",
    ),
    "block_size": (
        lambda: selected_attention(Q, K, V, INDICES, block_size=0),
        f"{WHO}.selected_attention: expected block_size >= 1, got 0; pass a larger number",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence
