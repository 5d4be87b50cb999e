"""Every cache gives the rows of the full causal result, whatever the pieces: grouped heads, rotary, a window, sinks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import Floats, bench_of, normal

from polyattn import AuxRequest, attention, layers, masks, mods, rotary
from polyattn.arrays import backend_of
from polyattn.caches import (
    Cache,
    CircularCache,
    EvictingCache,
    KVCache,
    LatentCache,
    PagedCache,
    QuantizedCache,
    cached_attention,
)
from polyattn.testing import Bench
from polyattn.truth import Spec, eta, truth
from polyattn.truth.measure import ACCEPTANCE

B, H, HKV, D, E, N, W = 2, 4, 2, 4, 3, 21, 5
PIECES = [(1,) * 6, (3,) * 7, (17, 1, 3)]
IDS = ["1", "3", "17"]
#: How each kind is made: each holds N tokens, or a window of W.
KINDS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: KVCache.empty(B, HKV, N + 3, D, E, like=x),
    "circular": lambda x: CircularCache.empty(B, HKV, W, D, E, capacity=W + 2, like=x),
    "paged": lambda x: PagedCache.empty(B, HKV, D, E, pages=13, page_size=4, pages_per_sequence=6, like=x),
    "evicting": lambda x: EvictingCache.empty(B, HKV, N + 3, D, E, like=x),
    "quantised": lambda x: QuantizedCache.empty(B, HKV, N + 3, D, E, like=x),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
K, V, Q = normal(B, HKV, N, D, seed=1), normal(B, HKV, N, E, seed=2), normal(B, H, N, D, seed=3, size=2)
SINKS = normal(H, seed=4)


def stored(kind: str) -> tuple[Floats, Floats]:
    """What is to come out of a cache: for bytes, numbers that bytes hold exactly, largest 127 / 64 in every token."""
    if kind != "quantised":
        return K, V
    exact = []
    for x in (K, V):
        whole = np.clip(np.round(x * 64), -127, 127)
        whole[..., 0] = 127
        exact.append(whole / 64)
    return exact[0], exact[1]


def judged(kind: str) -> Any:
    key, value = stored(kind)
    row, column = np.arange(N)[:, None], np.arange(N)[None, :]
    allowed = (column <= row) & (row - column < W)
    return truth(Spec(Q, key, value, allowed[None, None], sinks=SINKS))


def rows(judged: Any, n: int) -> Any:
    """Of the first n queries."""
    parts = (np.broadcast_to(x, judged.value.shape)[:, :, :n] for x in judged)
    return type(judged)(*parts)


def decoded(
    bench: Bench, kind: str, pieces: tuple[int, ...], of: str | None = None, **options: Any
) -> tuple[Floats, Any]:
    """The rows of all pieces, and the cache in the end; of: the kind whose tokens come."""
    key, value = stored(of or kind)
    cache, out, start = KINDS[kind](bench.array(np.zeros(()), "float32")), [], 0
    for n in pieces:
        q, k, v = (bench.array(x[:, :, start : start + n], "float32") for x in (Q, key, value))
        cache = cache.append(k, v)
        sinks = bench.array(SINKS, "float32")
        found = cached_attention(q, cache, sinks=sinks, mask=masks.sliding_window(W), **options)
        out.append(bench.numpy(found))
        start += n
    return np.concatenate(out, 2), cache


@every_kind
@pytest.mark.parametrize("pieces", PIECES, ids=IDS)
@pytest.mark.parametrize("library", ["numpy", "autograd", "strict", "torch"])
def test_decoding_in_pieces_gives_the_rows_of_the_full_result(
    library: str, pieces: tuple[int, ...], kind: str
) -> None:
    out, cache = decoded(bench_of(library), kind, pieces)
    assert isinstance(cache, Cache)
    assert eta(out, rows(judged(kind)["out"], sum(pieces)), "float32") <= ACCEPTANCE


def steps(library: str, *, donate: bool) -> tuple[Callable[..., Any], list[int]]:
    """A step of decoding, compiled, and a list to which each of its programs adds an entry."""
    programs: list[int] = []

    def step(cache: Any, q: Any, k: Any, v: Any, sinks: Any) -> Any:
        if library == "jax":
            programs.append(1)
        cache = cache.append(k, v)
        return cache, cached_attention(q, cache, sinks=sinks, mask=masks.sliding_window(W))

    def kept(graph: Any, inputs: Any) -> Any:
        programs.append(1)
        return graph.forward

    if library == "jax":
        return jax.jit(step, donate_argnums=(0,) if donate else ()), programs
    torch.compiler.reset()
    return torch.compile(step, fullgraph=True, backend=kept), programs


@pytest.mark.parametrize(
    ("library", "kind", "pieces", "count"),
    [
        *(("jax", kind, (1,) * 9, 1) for kind in KINDS if kind != "linear"),  # which has tests of its own
        ("jax", "circular", (3,) * 5, 1),
        # A prompt is a program, and the step behind it one more where the prompt leaves more slots.
        *(("jax", kind, (17, 1, 1), 3 if kind == "circular" else 2) for kind in ("circular", "evicting")),
        *(("torch", kind, (1,) * 9, 1) for kind in ("circular", "paged")),
    ],
)
def test_compiled_steps_do_so_too_and_one_serves_every_position(
    library: str, kind: str, pieces: tuple[int, ...], count: int
) -> None:
    bench = bench_of(library)
    call, programs = steps(library, donate=count == 1)
    cache, out, start = KINDS[kind](bench.array(np.zeros(()), "float32")), [], 0
    if isinstance(cache.length, int):
        cache = cache._replace(length=jnp.asarray(0) if library == "jax" else torch.tensor(0))
    sinks = bench.array(SINKS, "float32")
    key, value = stored(kind)
    for n in pieces:
        new = (bench.array(x[:, :, start : start + n], "float32") for x in (Q, key, value))
        cache, found = call(cache, *new, sinks)
        out.append(bench.numpy(found))
        start += n
    assert eta(np.concatenate(out, 2), rows(judged(kind)["out"], start), "float32") <= ACCEPTANCE
    assert len(programs) == count


@pytest.mark.parametrize("n", range(1, 10))
def test_no_piece_overwrites_what_its_first_query_looks_back_to(n: int) -> None:
    pieces = (n,) * (N // n)
    out, _ = decoded(bench_of("numpy"), "circular", pieces)
    assert eta(out, rows(judged("circular")["out"], sum(pieces)), "float32") <= ACCEPTANCE


@pytest.mark.parametrize("pieces", PIECES, ids=IDS)
@pytest.mark.parametrize("kind", ["paged", "evicting", "quantised"])
def test_in_the_definition_caches_with_the_same_slots_give_the_same_bits(
    kind: str, pieces: tuple[int, ...]
) -> None:
    out, linear = (
        decoded(bench_of("numpy"), cache, pieces, of=kind, implementation="reference")[0]
        for cache in (kind, "linear")
    )
    assert np.array_equal(out, linear)


@every_kind
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_every_implementation_reads_every_cache(implementation: str, kind: str) -> None:
    out, _ = decoded(bench_of("numpy"), kind, (17, 1, 3), implementation=implementation)
    assert eta(out, judged(kind)["out"], "float32") <= ACCEPTANCE


@pytest.mark.parametrize("kind", ["paged", "quantised"])
@pytest.mark.parametrize("library", ["numpy", "strict", "jax", "torch"])
def test_a_fold_over_several_tiles_gives_the_same(
    library: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of two pages, or of ten keys with a rest of four; known lengths, and lengths that a compiler traces."""
    for name in ("FEW_ROWS", "MANY_ROWS"):
        monkeypatch.setattr(f"polyattn.caches.folding.{name}", 10)
    bench = bench_of(library)
    out, cache = decoded(bench, kind, (N,))
    assert eta(out, judged(kind)["out"], "float32") <= ACCEPTANCE
    if library == "jax":
        q, sinks = bench.array(Q, "float32"), bench.array(SINKS, "float32")
        cache = cache._replace(length=jnp.full((B,), N, jnp.int32))
        call = jax.jit(lambda cache: cached_attention(q, cache, mask=masks.sliding_window(W), sinks=sinks))
        assert eta(bench.numpy(call(cache)), judged(kind)["out"], "float32") <= ACCEPTANCE


@every_kind
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_old_cache_is_as_it_was(library: str, kind: str) -> None:
    bench = bench_of(library)
    _, old = decoded(bench, kind, (6,))
    before = [bench.numpy(x).copy() for x in old if hasattr(x, "dtype")]
    old.append(
        bench.array(np.ones((B, HKV, 1, D)), "float32"), bench.array(np.ones((B, HKV, 1, E)), "float32")
    )
    after = [bench.numpy(x) for x in old if hasattr(x, "dtype")]
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(before, after, strict=True))


def poisoned(cache: Any, poison: float) -> Any:
    """The cache with something in every empty slot."""
    positions = np.broadcast_to(np.asarray(cache.positions), (B, cache.key.shape[-2]))
    empty = (positions < 0)[:, None, :, None]
    if isinstance(cache, PagedCache):
        used = np.zeros((cache.pages, cache.page_size), bool)
        for b, p in np.argwhere(positions >= 0):
            used[cache.table[b, p // cache.page_size], p % cache.page_size] = True
        empty, names = ~used[:, None, :, None], ("key_pages", "value_pages")
    elif isinstance(cache, QuantizedCache):
        names = ("key_scale", "value_scale")
    else:
        names = ("key", "value")
    return cache._replace(
        **{name: np.where(empty, np.float32(poison), getattr(cache, name)) for name in names}
    )


@every_kind
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_what_an_empty_slot_holds_changes_no_bit(poison: float, kind: str) -> None:
    _, cache = decoded(bench_of("numpy"), kind, (3,))
    other, q = poisoned(cache, poison), Q[:, :, 2:3].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # what is hidden is multiplied all the same
        for implementation in ("auto", "reference", "blockwise"):
            clean, dirty = (cached_attention(q, c, implementation=implementation) for c in (cache, other))
            assert np.array_equal(clean, dirty)


@every_kind
def test_without_a_causal_mask_all_that_is_there_is_seen_and_nothing_else(kind: str) -> None:
    _, cache = decoded(bench_of("numpy"), kind, (3, 1))
    key, value = stored(kind)
    out = cached_attention(Q[:, :, 3:4].astype(np.float32), cache)
    true = truth(Spec(Q[:, :, 3:4], key[:, :, :4], value[:, :, :4]))["out"]
    assert eta(out, true, "float32") <= ACCEPTANCE


@every_kind
def test_the_test_of_poison_puts_it_where_it_would_be_seen(kind: str) -> None:
    _, cache = decoded(bench_of("numpy"), kind, (3,))
    other = poisoned(cache, np.nan)
    assert np.isnan(other.key).any()
    assert not np.isnan(cache.key).any()


@every_kind
@pytest.mark.parametrize("library", ["numpy", "strict", "jax", "torch"])
def test_each_item_goes_on_from_its_own_length(library: str, kind: str) -> None:
    """Item 0 holds nine tokens and item 1 four: the next three of each are those they would get alone."""
    key, value = stored(kind)
    held, bench = np.asarray([9, 4], np.int32), bench_of(library)
    like = np.zeros((), np.float32)
    empty = (
        CircularCache.empty(B, HKV, W, D, E, capacity=10, like=like)
        if kind == "circular"
        else KINDS[kind](like)
    )
    cache = empty
    for start in (0, 3, 6):
        cache = cache.append(*(x[:, :, start : start + 3].astype(np.float32) for x in (key, value)))
    # What lies beyond a length is nobody's.
    cache = cache._replace(length=held)
    if kind == "evicting":
        cache = cache.evict(cache.positions < held[:, None])
    cache = cache._make(bench.array(x) for x in cache)
    new = (np.stack([x[b, :, n : n + 3] for b, n in enumerate(held)]) for x in (Q, key, value))

    def step(cache: Any, q: Any, k: Any, v: Any) -> Any:
        cache = cache.append(k, v)
        sinks = bench.array(SINKS, "float32")
        return cached_attention(q, cache, mask=masks.sliding_window(W), sinks=sinks)

    out = (jax.jit(step) if library == "jax" else step)(cache, *(bench.array(x, "float32") for x in new))
    whole = judged(kind)["out"]
    parts = (np.broadcast_to(x, whole.value.shape) for x in whole)
    true = (np.stack([x[b, :, n : n + 3] for b, n in enumerate(held)]) for x in parts)
    assert eta(bench.numpy(out), type(whole)(*true), "float32") <= ACCEPTANCE


@pytest.mark.parametrize("kind", ["paged", "quantised"])
def test_a_cache_that_folds_gives_the_lse_and_takes_all_that_attention_takes(kind: str) -> None:
    _, cache = decoded(bench_of("numpy"), kind, (N,))
    q, bias = Q.astype(np.float32), normal(1, H, N, cache.key.shape[-2], seed=9).astype(np.float32)
    options: dict[str, Any] = {
        "is_causal": True, "query_offset": 0, "bias": bias, "scale": 0.3, "sinks": SINKS.astype(np.float32),
        "score_mod": mods.softcap(5.0), "dropout_rate": 0.25, "dropout_seed": 3,
        "mask": lambda b, h, q, kv: (q + kv) % 3 != 1, "return_aux": AuxRequest(lse=True),
    }  # fmt: skip
    out, aux = cache.attend(q, **options)
    assert aux.implementation == "blockwise"
    options["mask"] = masks.mask_mod(options["mask"]) & cache.mask
    whole, other = attention(q, cache.key, cache.value, **options, implementation="reference")
    room = 2.0**-24 * 64
    assert np.abs(out - whole).max() <= room * np.abs(cache.value).max()
    assert np.abs(aux.lse - other.lse).max() <= room * (1 + np.abs(other.lse).max())
    asked = AuxRequest(weights=True)
    weights = cache.attend(q, is_causal=True, query_offset=0, return_aux=asked)[1].weights
    assert weights.shape == (B, H, N, cache.key.shape[-2])


def test_a_latent_cache_is_one_kv_head_of_which_the_value_is_a_part() -> None:
    """Against keys and values of every head, made from the latents in float64."""
    bench = bench_of("numpy")
    rank, rotated, length = 6, 2, 9
    rng = np.random.default_rng(5)
    w_uk, w_uv = rng.normal(size=(H, rank, D)), rng.normal(size=(H, rank, E))
    c, r = rng.normal(size=(B, length, rank)), rng.normal(size=(B, length, rotated))
    q_c, q_r = rng.normal(size=(B, H, length, D)), rng.normal(size=(B, H, length, rotated))
    absorbed = np.concatenate([np.einsum("bhld,hrd->bhlr", q_c, w_uk), q_r], -1)
    scale = (D + rotated) ** -0.5
    cache, out = LatentCache.empty(B, 12, rank, rotated, like=c), []
    for start, n in ((0, 3), (3, 1), (4, 5)):
        at = slice(start, start + n)
        cache = cache.append(c[:, at], r[:, at])
        assert isinstance(cache, Cache)
        found = cached_attention(absorbed[:, :, at], cache, is_causal=True, scale=scale)
        out.append(np.einsum("bhlr,hre->bhle", found, w_uv))
    k = np.concatenate(
        [np.einsum("blr,hrd->bhld", c, w_uk), np.broadcast_to(r[:, None], (B, H, length, rotated))], -1
    )
    v = np.einsum("blr,hre->bhle", c, w_uv)
    s = scale * np.einsum("bhld,bhsd->bhls", np.concatenate([q_c, q_r], -1), k)
    w = np.exp(s) * np.tri(length)
    true = np.einsum("bhls,bhse->bhle", w / w.sum(-1, keepdims=True), v)
    assert np.abs(np.concatenate(out, 2) - true).max() <= 2.0**-53 * 2**10
    assert np.shares_memory(cache.key, cache.value)
    assert bench.numpy(cache.positions).tolist() == [*range(9), -1, -1, -1]


@pytest.mark.parametrize("kind", ["circular", "paged"])
def test_a_cache_goes_through_scan(kind: str) -> None:
    bench = bench_of("jax")
    key, value = stored(kind)
    cache = KINDS[kind](bench.array(np.zeros(()), "float32"))
    cache = cache._replace(length=jnp.asarray(cache.length, jnp.int32))

    def step(cache: Any, token: Any) -> Any:
        q, k, v = (x[:, :, None] for x in token)
        cache = cache.append(k, v)
        return cache, cached_attention(
            q, cache, mask=masks.sliding_window(W), sinks=bench.array(SINKS, "float32")
        )

    tokens = tuple(bench.array(np.moveaxis(x, 2, 0), "float32") for x in (Q, key, value))
    cache, out = jax.jit(lambda cache, tokens: jax.lax.scan(step, cache, tokens))(cache, tokens)
    assert (
        eta(bench.numpy(out)[:, :, :, 0].transpose(1, 2, 0, 3), judged(kind)["out"], "float32") <= ACCEPTANCE
    )
    assert np.asarray(cache.length).max() == N


def test_keys_are_rotated_before_they_come() -> None:
    """A layer with rotary positions beside a circular cache that went around twice."""
    layer = layers.MultiHeadAttention(
        8, 4, num_kv_heads=2, rotary=rotary.Rotary(), sinks=True, mask=masks.sliding_window(W), is_causal=True
    )
    params, x = layer.init(0, like=K), normal(B, N, 8)
    full, out, start = layer(params, x), [], 0
    caches: Any = (
        CircularCache.empty(B, 2, W, 2, capacity=W + 2, like=x),
        PagedCache.empty(B, 2, 2, pages=12, page_size=4, pages_per_sequence=6, like=x),
    )
    for cache in caches:
        out, start = [], 0
        for n in (3, 1, 1, 3, 10, 1, 2):
            found, cache, _ = layer.run(params, x[:, start : start + n], cache=cache)
            out.append(found)
            start += n
        assert np.abs(np.concatenate(out, 1) - full).max() <= 2.0**-53 * 64 * np.abs(full).max()


@pytest.mark.parametrize(
    ("library", "kind"),
    [*product(("autograd", "torch"), ("linear", "circular", "paged", "evicting")), ("jax", "circular")],
)
def test_gradients_reach_the_tokens_of_earlier_pieces(library: str, kind: str) -> None:
    """Bytes have none, and pages are gathered for it."""
    bench, n = bench_of(library), 9
    cotangent = normal(B, H, n, E, seed=8)
    sinks = bench.array(SINKS, "float32")

    def f(given: Any) -> tuple[Any, Any]:
        q, k, v = (given[name] for name in "qkv")
        cache, out = KINDS[kind](bench.array(np.zeros(()), "float32")), 0.0
        for new in (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 9)):
            cache = cache.append(k[:, :, new, :], v[:, :, new, :])
            options = {"mask": masks.sliding_window(W), "sinks": sinks, "implementation": "reference"}
            found = cached_attention(q[:, :, new, :], cache, **options)
            out = out + backend_of(found).xp.sum(found * bench.array(cotangent[:, :, new], "float32"))
        return out, out

    arrays = {name: bench.array(x[:, :, :n], "float32") for name, x in (("q", Q), ("k", K), ("v", V))}
    _, _, found = bench.run(f, arrays, bench.array(np.ones(()), "float32"))
    assert found is not None
    row, column = np.arange(n)[:, None], np.arange(n)[None, :]
    allowed = ((column <= row) & (row - column < W))[None, None]
    true = truth(Spec(*(x[:, :, :n] for x in (Q, K, V)), allowed, sinks=SINKS), cotangent)
    for name in "qkv":
        assert eta(bench.numpy(found[name]), true[f"d{name}"], "float32") <= ACCEPTANCE
