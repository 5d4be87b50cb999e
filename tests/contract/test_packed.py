"""Packed documents are one attention for each of them: on every library, traced, differentiated, without the work between."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, Blockwise, attention, attention_vjp, masks, mods
from polyattn.implementations.blockwise.plan import plan
from polyattn.problem import packed_positions, pose
from polyattn.testing import Bench
from polyattn.truth import Spec, eta, truth

pytestmark = pytest.mark.rule("rule-28")

ROWS, KEYS = (
    np.array([2, 4, 0, 3, 1]),
    np.array([5, 4, 2, 3, 0]),
)  # of documents; one has no rows, one has no keys
ENDS, KEY_ENDS = (np.concatenate([[0], np.cumsum(n)]).astype(np.int32) for n in (ROWS, KEYS))
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=s).astype(np.float32).astype(float) for s in ((10, 4, 8), (14, 2, 8), (14, 2, 5)))
COTANGENT = RNG.choice([-1.0, 1.0], size=(10, 4, 5))
SINKS = np.array([0.5, -1.0, 0.0, 2.0])
PACKED: dict[str, Any] = {"layout": "BLHD", "cu_seqlens_q": ENDS, "cu_seqlens_k": KEY_ENDS}

#: what is said of every document -> options, and the same of positions q and kv in it as fields of a Spec
SAID: dict[str, tuple[dict[str, Any], Callable[[Any, Any], dict[str, Any]]]] = {
    "nothing": ({}, lambda q, kv: {}),
    "causal": ({"is_causal": True}, lambda q, kv: {"allowed": kv <= q}),
    "window": ({"mask": masks.window(1, 1)}, lambda q, kv: {"allowed": abs(q - kv) <= 1}),
    "chunks": ({"mask": masks.chunked(2), "sinks": SINKS}, lambda q, kv: {"allowed": q // 2 == kv // 2, "sinks": SINKS}),
    "a function": ({"mask": lambda b, h, q, kv: (q + kv) % 2 == 0}, lambda q, kv: {"allowed": (q + kv) % 2 == 0}),
    "alibi": ({"score_mod": mods.alibi([1.0, 0.5, 0.25, 0.125])}, lambda q, kv: {"shift": -abs(q - kv) * np.array([1.0, 0.5, 0.25, 0.125])[:, None, None]}),
}  # fmt: skip


def documents() -> Iterator[tuple[slice, slice]]:
    """The rows and the keys of each document that has rows."""
    for (a, b), (c, d) in zip(zip(ENDS, ENDS[1:]), zip(KEY_ENDS, KEY_ENDS[1:])):  # noqa: B905, RUF007
        if a < b:
            yield slice(a, b), slice(c, d)


def spec_of(rows: slice, keys: slice, said: Callable[[Any, Any], dict[str, Any]]) -> Spec:
    """One document as a problem of its own, its last row beside its last key."""
    kv = np.arange(keys.stop - keys.start)
    q = np.arange(rows.stop - rows.start)[:, None] + len(kv) - (rows.stop - rows.start)
    more = {
        n: x[None, None] if n == "allowed" else x[None] if n == "shift" else x for n, x in said(q, kv).items()
    }
    return Spec(*(np.swapaxes(x, 0, 1)[None] for x in (Q[rows], K[keys], V[keys])), **more)


def right(out: np.ndarray, said: Callable[[Any, Any], dict[str, Any]], name: str = "out") -> bool:
    """Whether rows (or keys, for dk and dv) of every document are those of that document alone."""
    for rows, keys in documents():
        cotangent = np.swapaxes(COTANGENT[rows], 0, 1)[None]
        judged = truth(spec_of(rows, keys, said), cotangent)[name]
        found = np.swapaxes(out[keys if name in ("dk", "dv") else rows], 0, 1)[None]
        if eta(found, judged, "float32") > 4:
            return False
    return True


def given(bench: Bench, options: dict[str, Any]) -> dict[str, Any]:
    def convert(x: Any) -> Any:
        return bench.array(x, None if x.dtype.kind == "i" else "float32") if isinstance(x, np.ndarray) else x

    return {name: convert(x) for name, x in options.items()}


@pytest.mark.parametrize(("said", "way"), [("causal", "reference"), ("chunks", Blockwise(3, 4))], ids=str)
def test_packed_documents_are_one_attention_for_each(eager: Bench, said: str, way: Any) -> None:
    options, spec = SAID[said]
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    out = eager.numpy(attention(q, k, v, **given(eager, PACKED | options), implementation=way))
    assert right(out, spec)
    assert (out[9] == 0).all()  # of a document without keys


@pytest.mark.parametrize("way", ["reference", Blockwise(3, 4)], ids=str)
@pytest.mark.parametrize("said", SAID)
def test_what_is_said_is_said_of_every_document(said: str, way: Any) -> None:
    options, spec = SAID[said]
    arrays = [x.astype(np.float32) for x in (Q, K, V)]
    assert right(attention(*arrays, **PACKED | options, implementation=way), spec)
    if said == "causal":  # a guard that can fail
        assert not right(attention(*arrays, layout="BLHD", is_causal=True, query_offset="end"), spec)


def test_packed_documents_are_segments_with_positions_bit_for_bit(eager: Bench) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    rows, keys = np.repeat(np.arange(5), ROWS), np.repeat(np.arange(5), KEYS)
    said = {
        "mask": masks.segments(eager.array(rows), eager.array(keys)),
        "query_positions": eager.array(
            np.concatenate([np.arange(n) + s - n for n, s in zip(ROWS, KEYS, strict=True)])
        ),
        "key_positions": eager.array(np.concatenate([np.arange(s) for s in KEYS])),
    }
    for way in ("reference", Blockwise(3, 4))[: 2 if eager.name == "numpy" else 1]:
        how: dict[str, Any] = {"is_causal": True, "implementation": way}
        packed = attention(q, k, v, **given(eager, PACKED), **how)
        assert np.array_equal(
            eager.numpy(packed), eager.numpy(attention(q, k, v, layout="BLHD", **said, **how))
        )


def test_every_layout_and_item_has_the_same_documents() -> None:
    out = attention(Q, K, V, **PACKED, is_causal=True)
    heads = [np.swapaxes(x, 0, 1) for x in (Q, K, V)]
    turned = attention(*heads, **PACKED | {"layout": "BHLD"}, is_causal=True)
    assert np.array_equal(np.swapaxes(turned, 0, 1), out)
    stacked = [np.stack([x, 2 * x]) for x in (Q, K, V)]
    both = attention(*stacked, **PACKED, is_causal=True)
    assert np.array_equal(both[0], out)
    assert np.array_equal(both[1], attention(2 * Q, 2 * K, 2 * V, **PACKED, is_causal=True))


def test_the_keys_end_where_the_rows_end_if_nothing_else_is_said() -> None:
    x = Q[:, :2]
    one = attention(x, x, x, layout="BLHD", cu_seqlens_q=ENDS, is_causal=True)
    assert np.array_equal(
        one, attention(x, x, x, layout="BLHD", cu_seqlens_q=ENDS, cu_seqlens_k=ENDS, is_causal=True)
    )


@pytest.mark.parametrize("way", ["reference", Blockwise(3, 4)], ids=str)
def test_gradients_are_those_of_every_document(way: Any) -> None:
    options, spec = SAID["chunks"]

    def loss_jax(q: Any, k: Any, v: Any, ends: Any, key_ends: Any) -> Any:
        said = (
            PACKED
            | options
            | {"cu_seqlens_q": ends, "cu_seqlens_k": key_ends, "sinks": jnp.asarray(SINKS, jnp.float32)}
        )
        return (attention(q, k, v, **said, implementation=way) * jnp.asarray(COTANGENT, jnp.float32)).sum()

    found = jax.jit(jax.grad(loss_jax, (0, 1, 2)))(*(jnp.asarray(x, jnp.float32) for x in (Q, K, V)), jnp.asarray(ENDS), jnp.asarray(KEY_ENDS))  # fmt: skip
    by_library = [[np.asarray(x) for x in found]]
    tensors = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (Q, K, V)]
    said = (
        PACKED
        | options
        | {n: torch.tensor(x) for n, x in (("cu_seqlens_q", ENDS), ("cu_seqlens_k", KEY_ENDS))}
    )
    out = attention(
        *tensors, **said | {"sinks": torch.tensor(SINKS, dtype=torch.float32)}, implementation=way
    )
    (out * torch.tensor(COTANGENT, dtype=torch.float32)).sum().backward()
    by_library.append([x.grad.numpy() for x in tensors])
    if isinstance(way, Blockwise):
        arrays = (x.astype(np.float32) for x in (Q, K, V))
        _, pullback = attention_vjp(*arrays, **PACKED | options, implementation=way)
        by_library.append([pullback(COTANGENT.astype(np.float32))[n] for n in ("query", "key", "value")])
    for gradients in by_library:
        for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
            assert right(gradient, spec, name)
            if name != "dq":
                assert (gradient[9:11] == 0).all()  # of a document without rows


@pytest.mark.parametrize("way", ["reference", Blockwise(4, 4)], ids=str)
def test_traced_boundaries_may_leave_room_whose_tokens_reach_nobody(way: Any) -> None:
    room = [np.concatenate([x, np.full((4, *x.shape[1:]), np.nan)]) for x in (Q, K, V)]

    def run(q: Any, k: Any, v: Any, ends: Any, key_ends: Any) -> Any:
        return attention(
            q, k, v, layout="BLHD", cu_seqlens_q=ends, cu_seqlens_k=key_ends, is_causal=True, implementation=way
        )  # fmt: skip

    in_jax = jax.jit(run)(
        *(jnp.asarray(x, jnp.float32) for x in room), jnp.asarray(ENDS), jnp.asarray(KEY_ENDS)
    )
    found = [np.asarray(in_jax)]
    if way == "reference":
        tensors = (torch.tensor(x, dtype=torch.float32) for x in room)
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        found.append(compiled(*tensors, torch.tensor(ENDS), torch.tensor(KEY_ENDS)).numpy())
    for out in found:
        assert right(out[:10], SAID["causal"][1])
        assert (out[10:] == 0).all()


def test_dropout_counts_the_rows_and_keys_of_the_whole(eager: Bench) -> None:
    """Positions repeat, so by them all documents would lose the same weights."""
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    rows, keys = np.repeat(np.arange(5), ROWS), np.repeat(np.arange(5), KEYS)
    ids = masks.segments(eager.array(rows), eager.array(keys))
    for way in ("reference", Blockwise(3, 4))[: 2 if eager.name == "numpy" else 1]:
        how: dict[str, Any] = {"dropout_rate": 0.4, "dropout_seed": 5, "implementation": way}
        out = attention(q, k, v, **given(eager, PACKED), **how)
        assert np.array_equal(
            eager.numpy(out), eager.numpy(attention(q, k, v, layout="BLHD", mask=ids, **how))
        )


def test_lse_is_that_of_every_document() -> None:
    _, aux = attention(Q, K, V, **PACKED, is_causal=True, return_aux=AuxRequest(lse=True))
    for rows, keys in documents():
        judged = truth(spec_of(rows, keys, SAID["causal"][1]))["lse"]
        assert eta(aux.lse[None, :, rows], judged, "float64") <= 4


@pytest.mark.parametrize("traced", [False, True])
def test_tiles_between_documents_are_not_met(traced: bool) -> None:
    """64 documents of 64 tokens in tiles of 64: each meets itself. Boundaries closed over are read while JAX traces."""
    ends, x = np.arange(0, 4097, 64), np.zeros((1, 4096, 8), np.float32)

    def tiles(x: Any, ends: Any) -> Any:
        visits = plan(pose("test", x, x, x, cu_seqlens_q=ends, is_causal=True), Blockwise(64, 64)).by_query
        return visits.part_n, visits.full

    there = jnp.asarray(ends)
    part, full = jax.jit(lambda x: tiles(x, there))(jnp.asarray(x)) if traced else tiles(x, ends)
    assert (np.asarray(part) == 1).all()
    assert np.asarray(full).size == 1  # there is none anywhere


def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    peaks = []
    for n in (4096, 8192):
        x, ends = np.ones((n, 1, 4), np.float32), np.arange(0, n + 1, 128)
        attention(
            x, x, x, layout="BLHD", cu_seqlens_q=ends, is_causal=True, implementation=Blockwise(128, 128)
        )
        tracemalloc.start()
        attention(
            x, x, x, layout="BLHD", cu_seqlens_q=ends, is_causal=True, implementation=Blockwise(128, 128)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3 * peaks[0]  # and not 4
    assert peaks[1] < 8192**2  # a byte for each score


def test_positions_begin_anew_in_each_document_traced_or_not(eager: Bench) -> None:
    expected = [*range(2), *range(4), *range(3), 0, -1, -1]
    found = packed_positions(eager.array(ENDS), 12)
    assert eager.numpy(found).tolist() == expected
    traced = jax.jit(lambda ends: packed_positions(ends, 12))(jnp.asarray(ENDS))
    assert traced.tolist() == expected


@pytest.mark.rule("rule-13")
@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"cu_seqlens_k": ENDS}, ValueError, "expected cu_seqlens_q beside cu_seqlens_k, got None; say where the documents of the queries end too"),
        ({"cu_seqlens_q": ENDS}, ValueError, "expected cu_seqlens_k, because L = 10 differs from S = 14, got None; say where the documents of the keys end"),
        (PACKED | {"query_offset": "end"}, ValueError, "expected cu_seqlens_q or query_offset, got both; positions begin anew in every document, the last query of which stands at its last key"),
        (PACKED | {"key_positions": np.arange(14)}, ValueError, "expected cu_seqlens_q or key_positions, got both; positions begin anew in every document, the last query of which stands at its last key"),
        (PACKED | {"cu_seqlens_q": ENDS[:-1]}, ValueError, "expected cu_seqlens_q to go from 0 to L = 10 and never to fall, got [0, 2, 6, 6, 9]; it is 0 and then the sums of the lengths"),
        (PACKED | {"cu_seqlens_q": ENDS[1:]}, ValueError, "expected cu_seqlens_q to go from 0 to L = 10 and never to fall, got [2, 6, 6, 9, 10]; it is 0 and then the sums of the lengths"),
        (PACKED | {"cu_seqlens_k": np.array([0, 5, 4, 11, 14, 14])}, ValueError, "expected cu_seqlens_k to go from 0 to S = 14 and never to fall, got [0, 5, 4, 11, 14, 14]; it is 0 and then the sums of the lengths"),
        (PACKED | {"cu_seqlens_k": np.array([0, 14])}, ValueError, "expected as many documents of keys as of queries, got cu_seqlens_q of shape (6,) and cu_seqlens_k of (2,); a document without keys ends where the one before it does"),
        (PACKED | {"cu_seqlens_q": np.array([0])}, ValueError, "expected cu_seqlens_q of shape (n + 1,) for n >= 1 documents, got (1,); it is 0 and then the sums of their lengths"),
        (PACKED | {"cu_seqlens_q": ENDS * 1.0}, TypeError, "expected cu_seqlens_q of an integer dtype, got float64; cast it"),
        (PACKED | {"cu_seqlens_q": [0, 10]}, TypeError, "expected cu_seqlens_q to be an array of an array API library (NumPy, JAX, PyTorch, ...), got list; convert it, for example with numpy.asarray"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_boundaries_is_said(options: dict[str, Any], kind: Any, sentence: str) -> None:
    with pytest.raises(kind) as caught:
        attention(Q, K, V, **{"layout": "BLHD", **options})
    assert str(caught.value) == f"polyattn.attention: {sentence}"


def test_boundaries_of_another_shape_have_no_positions() -> None:
    with pytest.raises(ValueError) as caught:
        packed_positions(np.array([0]), 3)
    assert str(caught.value) == (
        "polyattn.problem.packed_positions: expected cu_seqlens of shape (n + 1,), n >= 1, got (1,); it is 0 and then the sums of "
        "the lengths"
    )
