"""Positions of rows and keys, given one by one or by an offset: what compares them, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import AuxRequest, Blockwise, attention, attention_vjp, masks, mods
from polyattn.dropout import keep_factors
from polyattn.implementations import choose
from polyattn.masks import EMPTY, FULL
from polyattn.masks.tiles import grid
from polyattn.places import Places, positions
from polyattn.problem import pose
from polyattn.testing import Bench
from polyattn.truth import Spec, eta, round_to, truth

pytestmark = pytest.mark.rule("rule-18")

WAYS = ["reference", Blockwise(4, 3), "auto"]
B, H, L, S = 2, 4, 7, 11
RNG = np.random.default_rng(0)
Q, K, V = (
    round_to(RNG.normal(size=shape), "float16") for shape in ((B, H, L, 4), (B, 2, S, 4), (B, 2, S, 4))
)
ROWS = np.array(
    [[3, 9, 4, 0, 8, 2, 6], [1, 5, 10, 7, 7, 0, 3]], np.int32
)  # in any order, twice the same place
KEYS = np.array([[5, -1, 0, 3, 8, 2, -1, 9, 1, 7, 4], [0, 1, 2, 3, -1, -1, 10, 9, 8, 7, 6]], np.int32)
DISTANCE = ROWS[:, None, :, None] - KEYS[:, None, None, :]
FILLED = KEYS[:, None, None, :] >= 0
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])[:, None, None]

#: what is asked -> what may be seen, and what is added to the scores
CASES: dict[str, tuple[dict[str, Any], np.ndarray, Any]] = {
    "nothing that compares": ({}, FILLED, None),
    "causal": ({"is_causal": True}, FILLED & (DISTANCE >= 0), None),
    "window": ({"mask": masks.window(3, 1)}, FILLED & (DISTANCE <= 3) & (DISTANCE >= -1), None),
    "chunked": ({"mask": masks.chunked(4)}, FILLED & (ROWS[:, None, :, None] // 4 == KEYS[:, None, None, :] // 4), None),
    "dilated": ({"mask": masks.dilated(2)}, FILLED & (DISTANCE % 2 == 0), None),
    "prefix": ({"mask": masks.causal() | masks.prefix(3)}, FILLED & ((DISTANCE >= 0) | (KEYS[:, None, None, :] < 3)), None),
    "a function": ({"mask": lambda b, h, q, kv: q - kv != 2}, FILLED & (DISTANCE != 2), None),
    "alibi": ({"score_mod": mods.alibi(SLOPES.ravel().tolist())}, FILLED, -SLOPES * np.abs(DISTANCE)),
    "rows and columns": (
        {"mask": masks.key_lengths([9, 11]) & masks.query_lengths([7, 5])},
        FILLED & (np.arange(S) < np.array([9, 11])[:, None, None, None]) & (np.arange(L)[:, None] < np.array([7, 5])[:, None, None, None]),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_listed_positions_are_what_masks_and_modifications_compare(bench: Bench, name: str) -> None:
    compiled = bench.name == "jax" or getattr(bench, "compile", None)
    if compiled and name not in (
        "prefix",
        "alibi",
    ):  # every comparison where nothing is compiled, two where it is
        return
    for way in WAYS:
        _compare(bench, name, way)


def _compare(bench: Bench, name: str, way: Any) -> None:
    options, allowed, shift = CASES[name]
    k = np.where(FILLED.swapaxes(2, 3), K, np.nan)  # what an empty slot holds reaches nobody
    arrays = {"query": Q, "key": k, "value": V}
    given = {name: bench.array(x, "float32") for name, x in arrays.items()}
    places = {"query_positions": bench.array(ROWS), "key_positions": bench.array(KEYS)}

    def f(a: Any) -> Any:
        out, aux = attention(
            a["query"], a["key"], a["value"], **options, **places,
            implementation=way, return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        return out, aux.lse

    cotangent = np.sign(np.random.default_rng(1).normal(size=Q.shape))
    out, lse, gradients = bench.run(f, given, bench.array(cotangent, "float32"))
    spec = Spec(Q, K, V, allowed=np.broadcast_to(allowed, (B, H, L, S)), shift=shift)
    judged = truth(spec, cotangent)
    assert eta(bench.numpy(out), judged["out"], "float32") <= 4
    assert eta(bench.numpy(lse), judged["lse"], "float32") <= 4
    if gradients is None and name != "a function":
        _, pullback = attention_vjp(**given, **options, **places, implementation=Blockwise(4, 3))
        gradients = pullback(bench.array(cotangent, "float32"))
    for short, of in (("dq", "query"), ("dk", "key"), ("dv", "value")) if gradients else ():
        assert eta(bench.numpy(gradients[of]), judged[short], "float32") <= 4, of


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_list_of_neighbours_is_an_offset(eager: Bench, way: Any) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    options = {"mask": masks.window(4, 2), "dropout_rate": 0.3, "dropout_seed": 5, "implementation": way}
    by_list = attention(
        q, k, v, query_positions=eager.array(np.arange(L) + 6), key_positions=eager.array(np.arange(S) + 2), **options
    )  # fmt: skip
    by_offset = attention(q, k, v, query_offset=6, key_offset=2, **options)
    assert (eager.numpy(by_list) == eager.numpy(by_offset)).all()


def test_a_permutation_of_the_keys_that_takes_their_positions_along_changes_nothing() -> None:
    order = np.random.default_rng(2).permutation(S)
    options = {"is_causal": True, "query_offset": 4, "dropout_rate": 0.4, "dropout_seed": 1}
    out = attention(Q, K, V, **options)
    turned = attention(Q, K[:, :, order], V[:, :, order], key_positions=order, **options)
    allowed = (np.arange(L)[:, None] + 4 >= np.arange(S))[None, None]
    keep = keep_factors(0.4, 1, positions(pose("test", Q, K, V).backend, Q, (B, H, L, S), Places(4)), Q.dtype)
    judged = truth(Spec(Q, K, V, allowed=allowed, keep=keep))["out"]
    assert eta(turned, judged, "float64") <= 4
    assert eta(out, judged, "float64") <= 4


def test_end_counts_from_where_the_keys_stand() -> None:
    far = attention(Q, K, V, is_causal=True, query_offset="end", key_offset=100)
    assert (far == attention(Q, K, V, is_causal=True, query_offset="end")).all()


def test_a_negative_offset_of_the_keys_empties_their_first_slots() -> None:
    out = attention(Q, K, V, key_offset=-4)
    filled = (np.arange(S) >= 4)[None, None, None, :]
    assert eta(out, truth(Spec(Q, K, V, allowed=filled))["out"], "float64") <= 4


def test_traced_positions_go_through_jit() -> None:
    import jax

    options, allowed, _ = CASES["causal"]

    @jax.jit
    def f(q: Any, k: Any, v: Any, rows: Any, keys: Any) -> Any:
        places = {"query_positions": rows, "key_positions": keys}
        return [attention(q, k, v, **options, **places, implementation=way) for way in WAYS]

    arrays = (jax.numpy.asarray(x, "float32") for x in (Q, K, V))
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(allowed, (B, 1, L, S))))["out"]
    for out in f(*arrays, ROWS, KEYS):
        assert eta(np.asarray(out), judged, "float32") <= 4


def test_tiles_know_where_listed_keys_stand() -> None:
    """The two halves of a zigzag layout: keys 0 .. 3 and 12 .. 15, queries 4 .. 7 and 8 .. 11."""
    rows, keys = np.arange(4, 12)[None], np.array([[0, 1, 2, 3, 12, 13, 14, 15]])
    assert grid(masks.causal(), 8, 8, (4, 4), places=Places(rows, keys)) == ((FULL, EMPTY), (FULL, EMPTY))
    per_item = Places(np.array([0, 100]), 0)
    assert masks.causal().tile(range(4), range(4), query_offset=np.array([50, 100])) is FULL
    assert grid(masks.causal(), 4, 4, (4, 4), b=1, places=per_item) == ((FULL,),)


@pytest.mark.rule("rule-19")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_shard_of_heads_and_items_draws_the_bits_and_slopes_of_the_whole(eager: Bench, way: Any) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, np.repeat(K, 2, 1), np.repeat(V, 2, 1)))
    slopes = mods.alibi(eager.array(SLOPES.ravel(), "float32"))
    options = {
        "score_mod": slopes,
        "mask": lambda b, h, q, kv: (q + kv + h + 2 * b) % 3 != 0,
        "query_offset": 0,
        "dropout_rate": 0.5,
        "dropout_seed": 3,
    }
    whole = eager.numpy(attention(q, k, v, **options, implementation=way))
    origin = Places(0, 0, batch=1, head=2)
    p = pose("test", *(x[1:, 2:, ...] for x in (q, k, v)), origin=origin, **options)
    part = eager.numpy(choose(p, way).run(p).out)
    assert (part == whole[1:, 2:]).all()


POSITIONS = np.arange(L)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"query_positions": POSITIONS, "query_offset": 0}, ValueError, "expected query_positions or query_offset, got both; positions say where every row stands, an offset only where the first does"),
        ({"key_positions": np.arange(S), "key_offset": 0}, ValueError, "expected key_positions or key_offset, got both; positions say where every key stands, an offset only where the first does"),
        ({"key_positions": np.arange(S), "is_causal": True}, ValueError, "expected query_positions or query_offset beside key_positions, because the mask or score_mod compares positions; got None, which leaves open where the queries stand: pass both"),
        ({"key_positions": np.arange(S), "query_offset": "end"}, ValueError, "expected query_offset to be a number beside key_positions, got 'end', which only an offset of the keys defines; pass query_positions"),
        ({"query_positions": [0, 1]}, TypeError, "expected query_positions to be an integer array (L,) or (B, L), got list; make it an array of query's library"),
        ({"key_positions": np.zeros(S)}, TypeError, "expected key_positions to be of an integer dtype, got float64; positions are whole numbers"),
        ({"query_positions": np.zeros((3, L), int)}, ValueError, f"expected query_positions of shape ({L},) or ({B}, {L}), got (3, {L}); give one position per query row, or one list per batch item"),
        ({"key_offset": "end"}, ValueError, "expected key_offset to be an integer, an integer array, got 'end'; it is the position of key 0"),
        ({"key_offset": 0.5}, TypeError, "expected key_offset to be an integer, an integer array, got 0.5; it is the position of key 0"),
        ({"key_offset": np.zeros(3, int)}, ValueError, f"expected key_offset to be one integer or of shape ({B},), one per batch item, got shape (3,); the batch is every axis before the head axis"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_positions_is_said(options: dict[str, Any], kind: Any, sentence: str) -> None:
    with pytest.raises(kind) as caught:
        attention(Q, K, V, **options)
    assert str(caught.value) == f"polyattn.attention: {sentence}"


def test_packed_documents_have_their_own_alignment() -> None:
    """What varlen calls with a causal mask aligned to the end mean: every document by itself, the last rows last."""
    queries, keys = np.array([2, 4, 1]), np.array([5, 4, 3])
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 6)) for n in (queries.sum(), keys.sum(), keys.sum()))
    documents = masks.segments(np.repeat(np.arange(3), queries), np.repeat(np.arange(3), keys))
    rows = np.concatenate([np.arange(s - n, s) for n, s in zip(queries, keys, strict=True)])
    slots = np.concatenate([np.arange(s) for s in keys])
    out = attention(q, k, v, mask=documents, is_causal=True, query_positions=rows, key_positions=slots)
    first = np.repeat(np.cumsum(keys) - keys, queries)
    kept = np.repeat(np.arange(3), queries)[:, None] == np.repeat(np.arange(3), keys)
    judged = truth(Spec(q[None], k[None], v[None], allowed=(kept & (slots <= rows[:, None]))[None, None]))[
        "out"
    ]
    for found in (out, attention(q, k, v, mask=masks.key_ranges(first, first + rows + 1))):
        assert eta(found[None], judged, "float64") <= 4
    q_ends, k_ends = np.cumsum(queries), np.cumsum(keys)
    for i in range(3):
        mine, theirs = slice(q_ends[i] - queries[i], q_ends[i]), slice(k_ends[i] - keys[i], k_ends[i])
        alone = attention(q[:, mine], k[:, theirs], v[:, theirs], is_causal=True, query_offset="end")
        assert eta(alone[None], type(judged)(*(x[:, :, mine] for x in judged)), "float64") <= 4


@pytest.mark.rule("rule-13")
@pytest.mark.parametrize(
    "fact",
    [
        {"query_offset": 5},
        {"key_offset": 5},
        {"query_positions": np.array([7, 1, 4])},
        {"key_positions": np.array([3, 0, 9])},
        {"dropout_seed": 7},
    ],
    ids=lambda fact: next(iter(fact)),
)
def test_positions_and_a_seed_may_be_stated_where_nothing_asks(eager: Bench, fact: dict[str, Any]) -> None:
    x = eager.array(np.random.default_rng(0).normal(size=(1, 2, 3, 4)), "float32")
    given = {name: eager.array(n) if isinstance(n, np.ndarray) else n for name, n in fact.items()}
    assert np.array_equal(eager.numpy(attention(x, x, x, **given)), eager.numpy(attention(x, x, x)))
    with pytest.raises((TypeError, ValueError)):
        attention(x, x, x, **dict.fromkeys(fact, "start"))
