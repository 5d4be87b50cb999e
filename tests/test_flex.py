"""FlexAttention: masks and mods go there unchanged, and its own run here on every library."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polyattn_torch.flex
import pytest
import torch
from polyattn_torch.aten import OPERATIONS
from polyattn_torch.flex import from_flex
from polyattn_torch.program import Program
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, flex_attention

from polyattn import AuxRequest, Blockwise, attention, masks, mods
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask
from polyattn.parity import ACCEPTANCE, Judged, Spec, eta, round_to, truth
from polyattn.testing import Bench, JaxBench, NumpyBench, StrictBench, TorchBench

Floats = np.ndarray[Any, Any]


def flex(*given: torch.Tensor, **options: Any) -> torch.Tensor:
    """FlexAttention without its compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather be compiled
        out: torch.Tensor = flex_attention(
            *given, enable_gqa=given[0].shape[1] != given[1].shape[1], **options
        )
        return out


def numbers(*shape: int, seed: int = 0) -> Floats:
    """Normal numbers that every dtype has."""
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float16")


def seen(computed: Floats, judged: Judged) -> tuple[Floats, Judged]:
    """The rows that see something: FlexAttention leaves open what the others are."""
    rows = np.broadcast_to(np.asarray(judged.condition).any(-1), judged.value.shape[:-1])
    return computed[rows], Judged(*(np.broadcast_to(x, judged.value.shape)[rows] for x in judged))


# There: 2 items, 4 heads over 2, 8 queries, 12 keys

Q, K, V = numbers(2, 4, 8, 16), numbers(2, 2, 12, 16), numbers(2, 2, 12, 16, seed=1)
AT, KEY = np.arange(8)[:, None], np.arange(12)
HEAD = np.arange(4)[:, None, None]
IDS = np.sort(np.random.default_rng(0).integers(0, 3, (2, 8)))
KEY_IDS = np.sort(np.random.default_rng(1).integers(0, 3, (2, 12)))
ALLOWED = np.random.default_rng(2).random((2, 4, 8, 12)) < 0.6
ALL = np.ones((8, 12), bool)


def per_item(*lengths: int) -> Floats:
    return np.array(lengths)[:, None, None, None]


# name -> the mask, and what it must be in NumPy's words
THERE: dict[str, tuple[Callable[[], Mask], Any]] = {
    "causal": (masks.causal, KEY <= AT),
    "window": (lambda: masks.window(2, 1), (KEY >= AT - 2) & (KEY <= AT + 1)),
    "window to the left": (lambda: masks.window(3, None), KEY >= AT - 3),
    "window of all": (lambda: masks.window(None, None), ALL),
    "sliding window": (lambda: masks.sliding_window(3), (KEY <= AT) & (AT - KEY < 3)),
    "prefix": (lambda: masks.prefix(4), ALL & (KEY < 4)),
    "prefix per item": (lambda: masks.prefix([4, 9]), ALL & (per_item(4, 9) > KEY)),
    "chunked": (lambda: masks.chunked(3), AT // 3 == KEY // 3),
    "dilated": (lambda: masks.dilated(3), (AT - KEY) % 3 == 0),
    "key lengths": (lambda: masks.key_lengths(5), ALL & (KEY < 5)),
    "key lengths per item": (lambda: masks.key_lengths([4, 11]), ALL & (per_item(4, 11) > KEY)),
    "key lengths as a tensor": (
        lambda: masks.key_lengths(torch.tensor([4, 11])),
        ALL & (per_item(4, 11) > KEY),
    ),
    "query lengths": (lambda: masks.query_lengths(3), ALL & (AT < 3)),
    "query lengths per item": (lambda: masks.query_lengths([3, 8]), ALL & (per_item(3, 8) > AT)),
    "segments": (
        lambda: masks.segments(torch.tensor(IDS[0]), torch.tensor(KEY_IDS[0])),
        IDS[0][:, None] == KEY_IDS[0],
    ),
    "segments per item": (
        lambda: masks.segments(torch.tensor(IDS), torch.tensor(KEY_IDS)),
        IDS[:, None, :, None] == KEY_IDS[:, None, None],
    ),
    "from array": (lambda: masks.from_array(torch.tensor(ALLOWED)), ALLOWED),
    "from array of keys": (
        lambda: masks.from_array(torch.tensor(ALLOWED[:, :1, :1])),
        ALLOWED[:, :1, :1] & ALL,
    ),
    "function": (
        lambda: masks.mask_mod(lambda b, h, q, kv: (q + kv + b + h) % 2 == 0),
        (AT + KEY + HEAD + per_item(0, 1)) % 2 == 0,
    ),
    "and": (lambda: masks.causal() & masks.prefix([4, 9]), (KEY <= AT) & (per_item(4, 9) > KEY)),
    "or": (lambda: masks.sliding_window(2) | masks.chunked(4), ((KEY <= AT) & (AT - KEY < 2)) | (AT // 4 == KEY // 4)),
    "not": (lambda: ~masks.dilated(2), (AT - KEY) % 2 != 0),
    "all together": (
        lambda: (masks.causal() | masks.prefix(2)) & ~masks.from_array(torch.tensor(ALLOWED)) & masks.key_lengths([5, 12]),
        ((KEY <= AT) | (KEY < 2)) & ~ALLOWED & (per_item(5, 12) > KEY),
    ),
}  # fmt: skip


def to_block_mask(mask: Mask) -> BlockMask:
    block_mask: BlockMask = mask.to_block_mask(B=2, H=4, Q_LEN=8, KV_LEN=12, device="cpu", BLOCK_SIZE=4)
    return block_mask


@pytest.mark.parametrize("name", THERE)
def test_a_mask_goes_to_flex_attention_as_a_block_mask(name: str) -> None:
    make, literal = THERE[name]
    out = flex(*(torch.tensor(x) for x in (Q, K, V)), block_mask=to_block_mask(make()))
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(literal, (2, 4, 8, 12))))["out"]
    assert eta(*seen(out.numpy(), judged), "float64") <= ACCEPTANCE


def listed(counts: torch.Tensor, indices: torch.Tensor, b: int, h: int, row: int) -> set[int]:
    """The blocks that a BlockMask lists for a row of blocks."""
    return set(indices[b, h, row, : counts[b, h, row]].tolist())


@pytest.mark.parametrize("name", THERE)
def test_flex_attention_skips_the_tiles_that_the_mask_says_are_empty(name: str) -> None:
    mask = THERE[name][0]()
    theirs = to_block_mask(mask)
    met = set()
    for b, h, row in np.ndindex(2, 4, 2):
        full = listed(theirs.full_kv_num_blocks, theirs.full_kv_indices, b, h, row)
        part = listed(theirs.kv_num_blocks, theirs.kv_indices, b, h, row)
        for column in range(3):
            is_at = FULL if column in full else PARTIAL if column in part else EMPTY
            ours = mask.tile(range(row * 4, row * 4 + 4), range(column * 4, column * 4 + 4), b=b, h=h)
            assert ours is (is_at if mask.exact else PARTIAL)
            met.add(is_at)
    assert met


BIAS = numbers(8, 4, seed=2)
DISTANCE = np.abs(AT - KEY)
SLOPES = np.array(mods.alibi_slopes(4))[:, None, None]
BUCKETS = mods.relative_bucket(KEY - AT, 8, bidirectional=True, max_distance=10)
T5 = np.moveaxis(BIAS[BUCKETS], -1, 0)

# name -> the mod, and the same in a Spec
MODS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "softcap": (lambda: mods.softcap(2.0), {"softcap": 2.0}),
    "softcap as a tensor": (lambda: mods.softcap(torch.tensor(2.0)), {"softcap": 2.0}),
    "alibi": (lambda: mods.alibi(4), {"shift": -SLOPES * DISTANCE}),
    "alibi of numbers": (lambda: mods.alibi([0.5, 0.25, 2.0, 0.0]), {"shift": -np.array([0.5, 0.25, 2.0, 0.0])[:, None, None] * DISTANCE}),
    "alibi of a tensor": (lambda: mods.alibi(torch.tensor(SLOPES.ravel())), {"shift": -SLOPES * DISTANCE}),
    "relative position bias": (lambda: mods.relative_position_bias(torch.tensor(BIAS), max_distance=10), {"shift": T5}),
    "compose": (lambda: mods.compose(mods.softcap(2.0), mods.alibi(4), lambda s, b, h, q, kv: s + (b - h) * 0.5), {"softcap": 2.0, "shift": (per_item(0, 1) - HEAD) * 0.5 - SLOPES * DISTANCE}),
    "function": (lambda: lambda s, b, h, q, kv: s - abs(q - kv) / 4, {"shift": -DISTANCE / 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODS)
def test_a_mod_runs_unchanged_in_flex_attention(name: str) -> None:
    make, says = MODS[name]
    says = {key: x[(None,) * (4 - x.ndim)] if isinstance(x, np.ndarray) else x for key, x in says.items()}
    out = flex(*(torch.tensor(x) for x in (Q, K, V)), score_mod=make())
    assert eta(out.numpy(), truth(Spec(Q, K, V, **says))["out"], "float64") <= ACCEPTANCE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("mask", "mod"),
    [
        ("key lengths per item", "relative position bias"),
        ("all together", "alibi"),
        ("segments per item", "compose"),
        ("from array", "softcap as a tensor"),
    ],
)
def test_they_run_unchanged_in_compiled_flex_attention(mask: str, mod: str) -> None:
    torch.compiler.reset()
    (make_mask, literal), (make_mod, says) = THERE[mask], MODS[mod]
    says = {key: x[(None,) * (4 - x.ndim)] if isinstance(x, np.ndarray) else x for key, x in says.items()}
    compiled = torch.compile(flex_attention, dynamic=False)
    given = [torch.tensor(x, dtype=torch.float32) for x in (Q, K, V)]
    with torch.no_grad():
        out = compiled(*given, score_mod=make_mod(), block_mask=to_block_mask(make_mask()), enable_gqa=True)
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(literal, (2, 4, 8, 12)), **says))["out"]
    assert eta(*seen(out.numpy(), judged), "float32") <= ACCEPTANCE


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("mask", "mod"), [("key lengths per item", "alibi"), ("and", "softcap")])
def test_they_run_in_compiled_flex_attention_on_cuda_with_gradients(mask: str, mod: str) -> None:
    assert torch.cuda.is_available(), "the GPU tests were asked for and there is no GPU"
    (make_mask, literal), (make_mod, says) = THERE[mask], MODS[mod]
    says = {key: x[(None,) * (4 - x.ndim)] if isinstance(x, np.ndarray) else x for key, x in says.items()}
    given = [torch.tensor(x, dtype=torch.float32, device="cuda", requires_grad=True) for x in (Q, K, V)]
    block_mask = make_mask().to_block_mask(B=2, H=4, Q_LEN=8, KV_LEN=12, device="cuda")
    out = torch.compile(flex_attention)(*given, score_mod=make_mod(), block_mask=block_mask, enable_gqa=True)
    ours = attention(*given, mask=make_mask(), score_mod=make_mod(), query_offset=0)
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(literal, (2, 4, 8, 12)), **says), np.ones(out.shape))
    theirs = torch.autograd.grad(out.sum(), given)
    for computed, result in ((ours, torch.autograd.grad(ours.sum(), given)), (out, theirs)):
        assert eta(*seen(computed.detach().cpu().numpy(), judged["out"]), "float32") <= ACCEPTANCE
        for name, gradient in zip(("dq", "dk", "dv"), result, strict=True):
            assert eta(gradient.cpu().numpy(), judged[name], "float32") <= ACCEPTANCE


@pytest.mark.parametrize(
    ("mask", "sizes", "sentence"),
    [
        (masks.key_lengths([3, 5]), {"B": None, "H": None}, "polyattn.masks.to_block_mask: expected the lengths of masks.key_lengths as one integer or as one per batch item, shape (1,), got shape (2,); the batch is every axis before the head axis (give a rank-3 query a head axis: query[:, None])"),
        (masks.from_array(torch.tensor(ALLOWED)), {"B": 2, "H": None}, "polyattn.masks.to_block_mask: expected a mask that broadcasts to the scores (..., Hq, L, S) = (2, 1, 8, 12), got shape (2, 4, 8, 12); write a key padding mask of shape (B, S) as mask[:, None, None, :], an (L, S) one as mask[None, None]"),
    ],
)  # fmt: skip
def test_a_block_mask_of_other_sizes_than_the_mask_is_refused(
    mask: Mask, sizes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        mask.to_block_mask(**sizes, Q_LEN=8, KV_LEN=12, device="cpu")
    assert str(caught.value) == sentence


# Back: 2 items, 4 heads, 16 tokens that are also a 4 x 4 image

X, Y, Z = numbers(2, 4, 16, 8), numbers(2, 4, 16, 8, seed=1), numbers(2, 4, 16, 8, seed=2)
ROW, COLUMN = np.arange(16)[:, None], np.arange(16)
DOCUMENTS = np.repeat([0, 1, 2, 3, 4], [10, 6, 3, 4, 9]).reshape(2, 16)
PREFIXES = np.array([3, 10])
TABLE, RELATIVE = numbers(2, 4, 16, 16, seed=3), numbers(4, 31, seed=4)
HEADS = np.arange(4)[:, None, None]
documents, prefixes, table, relative = map(torch.tensor, (DOCUMENTS, PREFIXES, TABLE, RELATIVE))
small = torch.arange(16, dtype=torch.uint8)
starts, ends = torch.tensor([0, 5, 11]), torch.tensor([3, 9, 16])


def a_causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def a_sliding_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.logical_and(q_idx >= kv_idx, q_idx - kv_idx < 5)


def a_prefix(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(kv_idx < prefixes[b], True, q_idx >= kv_idx)


def one_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return documents[b, q_idx] == documents[b][kv_idx]


def dilated_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    distance = (q_idx - kv_idx).abs()
    return torch.le(distance, 6) & (torch.remainder(distance, 2) == 0)


def neighbourhood(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    row, column = torch.clamp(q_idx // 4, 1, 2), (q_idx % 4).clamp(1, 2)
    return ((row - kv_idx // 4).abs() <= 1) & ((column - kv_idx % 4).abs() <= 1)


def a_disk(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    down = torch.div(q_idx, 4, rounding_mode="floor") - torch.div(kv_idx, 4, rounding_mode="trunc")
    across = torch.fmod(q_idx, 4) - kv_idx % 4
    return torch.sqrt((down**2 + across**2).float()) < 1.5 + h / 2


def spans(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (((starts <= q_idx) & (q_idx < ends)) * ((starts <= kv_idx) & (kv_idx < ends))).any()


def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score - torch.exp2(-((h + 1) * 8.0 / 4)) * (q_idx - kv_idx).abs()


def a_softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.tanh(score / 2) * 2


def a_table(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    score += table[b, h, q_idx, kv_idx]
    return score


def relative_table(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + relative[h][kv_idx - q_idx + 15]


def hidden_by_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx >= kv_idx, score, -float("inf"))


def capped_slopes(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return alibi(a_softcap(score, b, h, q_idx, kv_idx), b, h, q_idx, kv_idx)


DOWN, ACROSS = np.divmod(np.arange(16), 4)  # row and column of a pixel
GAP = np.abs(ROW - COLUMN)
NEAR = np.all([np.abs(np.clip(x, 1, 2)[:, None] - x) <= 1 for x in (DOWN, ACROSS)], axis=0)
RADIUS = np.hypot(DOWN[:, None] - DOWN, ACROSS[:, None] - ACROSS)
SPAN = np.array([0, 0, 0, -1, -2, 1, 1, 1, 1, -3, -4, 2, 2, 2, 2, 2])
ALIBI = -(2.0 ** (-2 * (HEADS + 1))) * GAP

# name -> the mod of a user of FlexAttention, and the same in a Spec
BACK: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "causal": (a_causal, {"allowed": ROW >= COLUMN}),
    "sliding window": (a_sliding_window, {"allowed": (ROW >= COLUMN) & (GAP < 5)}),
    "prefix LM": (a_prefix, {"allowed": (PREFIXES[:, None, None, None] > COLUMN) | (ROW >= COLUMN)}),
    "documents": (one_document, {"allowed": DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]}),
    "dilated sliding window": (dilated_window, {"allowed": (GAP <= 6) & (GAP % 2 == 0)}),
    "neighbourhood": (neighbourhood, {"allowed": NEAR}),
    "disk per head": (a_disk, {"allowed": RADIUS < 1.5 + HEADS / 2}),
    "spans": (spans, {"allowed": SPAN[:, None] == SPAN * (SPAN >= 0) + 9 * (SPAN < 0)}),
    "alibi": (alibi, {"shift": ALIBI}),
    "softcap": (a_softcap, {"softcap": 2.0}),
    "table": (a_table, {"shift": TABLE}),
    "relative table": (relative_table, {"shift": RELATIVE[:, COLUMN - ROW + 15]}),
    "causal by its score": (hidden_by_score, {"allowed": ROW >= COLUMN}),
    "softcap, then alibi": (capped_slopes, {"softcap": 2.0, "shift": ALIBI}),
}
COTANGENT = np.random.default_rng(5).choice([-1.0, -0.5, 0.5, 1.0], size=X.shape)


def judge_back(says: dict[str, Any]) -> dict[str, Judged]:
    says = {key: x[(None,) * (4 - x.ndim)] if isinstance(x, np.ndarray) else x for key, x in says.items()}
    return truth(Spec(X, Y, Z, **says), COTANGENT)


def option(mod: Callable[..., Any]) -> dict[str, Any]:
    return {"score_mod" if mod.__code__.co_argcount == 5 else "mask": from_flex(mod)}


@pytest.mark.parametrize("name", BACK)
def test_the_mods_of_this_file_are_right_in_flex_attention_itself(name: str) -> None:
    mod, says = BACK[name]
    if mod.__code__.co_argcount == 4:
        options = {"block_mask": create_block_mask(mod, 2, 4, 16, 16, device="cpu")}
    else:
        options = {"score_mod": mod}
    out = flex(*(torch.tensor(x) for x in (X, Y, Z)), **options)
    assert eta(*seen(out.numpy(), judge_back(says)["out"]), "float64") <= ACCEPTANCE


RUNS: dict[str, tuple[Callable[[], Bench], str, Any]] = {
    "numpy": (NumpyBench, "float64", "reference"),
    "numpy blockwise": (NumpyBench, "float32", Blockwise(5, 3)),
    "strict": (StrictBench, "float64", "reference"),
    "strict blockwise": (StrictBench, "float32", Blockwise(5, 3)),
    "jax": (lambda: JaxBench(jit=False), "float32", "reference"),
    "jax jit": (JaxBench, "float32", "reference"),
    "jax jit blockwise": (JaxBench, "float32", Blockwise(5, 3)),
    "torch": (TorchBench, "float64", "reference"),
    "torch blockwise": (TorchBench, "float32", Blockwise(5, 3)),
}


# The engine of JAX compiles forward and backward for seconds: a mask and a mod stand for the others there.
@pytest.mark.parametrize(
    ("name", "run"),
    [(n, r) for n in BACK for r in RUNS if r != "jax jit blockwise" or n in ("documents", "relative table")],
)
def test_a_mod_of_flex_attention_runs_here(name: str, run: str) -> None:
    (mod, says), (make, dtype, implementation) = BACK[name], RUNS[run]
    bench = make()
    options = option(mod)

    def f(given: Any) -> Any:
        out, aux = attention(
            given["query"],
            given["key"],
            given["value"],
            **options,
            implementation=implementation,
            return_aux=AuxRequest(lse=True),
        )
        return out, aux.lse  # fmt: skip

    arrays = {name: bench.array(x, dtype) for name, x in (("query", X), ("key", Y), ("value", Z))}
    out, lse, gradients = bench.run(f, arrays, bench.array(COTANGENT, dtype))
    judged = judge_back(says)
    assert eta(bench.numpy(out), judged["out"], dtype) <= ACCEPTANCE
    assert eta(bench.numpy(lse), judged["lse"], dtype) <= ACCEPTANCE
    assert (gradients is None) == (bench.name in ("numpy", "strict"))
    for argument, gradient in (gradients or {}).items():
        assert eta(bench.numpy(gradient), judged[f"d{argument[0]}"], dtype) <= ACCEPTANCE


@pytest.mark.parametrize("run", ["numpy", "jax", "jax jit"])
def test_a_mod_of_operators_alone_runs_here_as_it_is(run: str) -> None:
    make, dtype, _ = RUNS[run]
    bench = make()
    ids = bench.array(DOCUMENTS)

    def f(given: Any) -> Any:
        out, aux = attention(
            given["query"],
            given["key"],
            given["value"],
            mask=lambda b, h, q_idx, kv_idx: (ids[b, q_idx] == ids[b, kv_idx]) & (q_idx >= kv_idx),
            score_mod=lambda score, b, h, q_idx, kv_idx: score - 0.25 * abs(q_idx - kv_idx),
            return_aux=AuxRequest(lse=True),
        )
        return out, aux.lse

    arrays = {name: bench.array(x, dtype) for name, x in (("query", X), ("key", Y), ("value", Z))}
    out, _, _ = bench.run(f, arrays, None)
    allowed = (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]) & (ROW >= COLUMN)
    judged = judge_back({"allowed": allowed, "shift": -0.25 * GAP})
    assert eta(bench.numpy(out), judged["out"], dtype) <= ACCEPTANCE


# BlockMask

CAUSAL_DOCUMENTS = (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]) & (ROW >= COLUMN)


def attends(mask: Mask, allowed: Floats) -> None:
    """The mask is `allowed` to NumPy and to JAX, whole and in tiles."""
    judged = judge_back({"allowed": allowed})["out"]
    for implementation in ("reference", Blockwise(4, 4), Blockwise(5, 7)):
        out = attention(X, Y, Z, mask=mask, implementation=implementation)
        assert eta(out, judged, "float64") <= ACCEPTANCE
    given = [jnp.asarray(x, jnp.float32) for x in (X, Y, Z)]
    out = jax.jit(lambda *xs: attention(*xs, mask=mask, implementation=Blockwise(4, 4)))(*given)
    assert eta(np.asarray(out), judged, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("name", THERE)
def test_a_mask_comes_back_from_a_block_mask_as_itself(name: str) -> None:
    mask = THERE[name][0]()
    assert from_flex(to_block_mask(mask)) is mask
    assert from_flex(mask) is mask


def test_a_block_mask_runs_here_and_its_blocks_are_tiles() -> None:
    mask = from_flex(
        create_block_mask(and_masks(one_document, a_causal), 2, None, 16, 16, "cpu", BLOCK_SIZE=4)
    )
    assert np.array_equal(mask.dense(16, batch=2, heads=1), CAUSAL_DOCUMENTS)
    for b in range(2):
        blocks = CAUSAL_DOCUMENTS[b, 0].reshape(4, 4, 4, 4).swapaxes(1, 2)
        expected = [[FULL if x.all() else PARTIAL if x.any() else EMPTY for x in row] for row in blocks]
        assert mask.tiles(16, 16, (4, 4), b=b) == expected
        assert {EMPTY, FULL, PARTIAL} == {x for row in expected for x in row}
    assert mask.tile(range(4), range(12, 16)) is EMPTY
    assert mask.tile(range(4), range(4), query_offset=13) is PARTIAL  # beyond what the BlockMask knows
    attends(mask, CAUSAL_DOCUMENTS)


def test_a_mask_of_flex_attention_combines_with_those_here() -> None:
    mask = from_flex(one_document) & masks.causal()
    assert str(mask) == "mask_mod(one_document) & causal()"
    attends(mask, CAUSAL_DOCUMENTS)
    with_ours = create_block_mask(and_masks(one_document, masks.causal()), 2, None, 16, 16, device="cpu")
    attends(from_flex(with_ours), CAUSAL_DOCUMENTS)


def of_blocks(blocks: Floats, full: Floats | None = None, **options: Any) -> BlockMask:
    """A BlockMask that lists blocks (B, H, rows, columns), those of no sense behind the others."""

    def pair(x: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        order = np.argsort(~x, axis=-1, kind="stable").astype(np.int32)
        return torch.tensor(x.sum(-1), dtype=torch.int32), torch.tensor(order)

    more = () if full is None else pair(full)
    return BlockMask.from_kv_blocks(*pair(blocks), *more, BLOCK_SIZE=4, **options)


BLOCKS = np.random.default_rng(6).random((2, 1, 4, 4)) < 0.5
FILLED = BLOCKS & (np.random.default_rng(7).random((2, 1, 4, 4)) < 0.5)
SPREAD, FILL = (x.repeat(4, -1).repeat(4, -2) for x in (BLOCKS, FILLED))


def test_a_block_mask_of_blocks_alone_is_its_blocks() -> None:
    mask = from_flex(of_blocks(BLOCKS))
    attends(mask, SPREAD)
    assert mask.tiles(16, 16, (4, 4), b=0) == [[PARTIAL if x else EMPTY for x in row] for row in BLOCKS[0, 0]]


def test_full_blocks_are_visible_whatever_mask_mod_says() -> None:
    mask = from_flex(of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=a_causal))
    attends(mask, FILL | (SPREAD & (ROW >= COLUMN)))
    ours = from_flex(of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=masks.causal()))
    attends(ours, FILL | (SPREAD & (ROW >= COLUMN)))


def test_blocks_that_were_made_for_one_item_bind_all_of_them() -> None:
    mask = from_flex(create_block_mask(one_document, None, None, 16, 16, device="cpu", BLOCK_SIZE=4))
    blocks = (DOCUMENTS[0][:, None] == DOCUMENTS[0]).reshape(4, 4, 4, 4)
    full, met = (x.repeat(4, 0).repeat(4, 1) for x in (blocks.all((1, 3)), blocks.any((1, 3))))
    attends(mask, full | (met & (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None])))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_flex_attention_reads_blocks_in_the_same_way() -> None:
    torch.compiler.reset()
    block_mask = of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=a_causal)
    with torch.no_grad():
        out = torch.compile(flex_attention, dynamic=False)(
            *(torch.tensor(x, dtype=torch.float32) for x in (X, Y, Z)), block_mask=block_mask
        )
    judged = judge_back({"allowed": FILL | (SPREAD & (ROW >= COLUMN))})["out"]
    assert eta(*seen(out.numpy(), judged), "float32") <= ACCEPTANCE


# Captured tensors


def test_a_captured_tensor_is_read_at_every_call() -> None:
    ids = documents.clone()
    mask = from_flex(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx])
    before = mask.dense(16, batch=2, heads=1)
    ids.zero_()
    after = mask.dense(16, batch=2, heads=1)
    assert after.all()
    assert not before.all()


def test_blocks_bind_whatever_becomes_of_a_captured_tensor() -> None:
    ids = torch.tensor([0] * 8 + [1] * 8)
    mask = from_flex(
        create_block_mask(lambda b, h, q, kv: ids[q] == ids[kv], None, None, 16, 16, "cpu", BLOCK_SIZE=4)
    )
    ids[:] = torch.arange(16) // 6
    attends(mask, np.broadcast_to(ROW // 8 == COLUMN // 8, (2, 4, 16, 16)))  # the blocks are full or empty
    assert not np.array_equal(ROW // 6 == COLUMN // 6, ROW // 8 == COLUMN // 8)


@pytest.mark.parametrize("run", ["numpy blockwise", "strict blockwise", "jax jit", "torch blockwise"])
def test_the_least_number_of_the_dtype_of_the_score_stays_finite(run: str) -> None:
    make, _, implementation = RUNS[run]
    bench = make()
    mod = from_flex(lambda score, b, h, q, kv: torch.where(q >= kv + 3, score, torch.finfo(score.dtype).min))
    index = [bench.array(np.arange(2, dtype=np.int32)) for _ in range(4)]
    least = bench.numpy(mod(bench.array(np.ones(2), "float32"), *index))
    assert np.array_equal(least, np.full(2, np.finfo(np.float32).min))
    assert np.isinf(
        bench.numpy(from_flex(hidden_by_score)(bench.array(np.ones(2), "float32"), *index[:3], index[3] + 1))
    ).all()
    given = [bench.array(x, "float32") for x in (X, Y, Z)]
    out = bench.numpy(attention(*given, score_mod=mod, implementation=implementation))
    # The first rows see no key; to FlexAttention, they see all of them alike.
    alike = truth(Spec(0 * X[:, :, :3], Y, Z))["out"]
    assert eta(out[:, :, :3], alike, "float32") <= ACCEPTANCE


def test_a_captured_tensor_of_float64_in_a_mask_is_of_the_widest_dtype_that_there_is() -> None:
    limits = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    mask = from_flex(lambda b, h, q_idx, kv_idx: limits[q_idx % 2] > 0.5)
    assert np.array_equal(mask.dense(2), [[False, False], [True, True]])
    assert not mask.dense(2, like=jnp.zeros(())).any()  # without a warning
    with jax.enable_x64(True):
        assert np.array_equal(mask.dense(2, like=jnp.zeros(())), mask.dense(2))


def test_a_module_is_a_mod_of_the_arguments_of_its_forward() -> None:
    class Relative(torch.nn.Module):
        def forward(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return relative_table(score, b, h, q_idx, kv_idx)

    out = attention(X, Y, Z, score_mod=from_flex(Relative()))
    assert eta(out, judge_back(BACK["relative table"][1])["out"], "float64") <= ACCEPTANCE


def test_a_gradient_for_a_captured_tensor_flows_on_torch_call_after_call() -> None:
    bias = torch.nn.Parameter(relative.clone())
    mod = from_flex(lambda score, b, h, q_idx, kv_idx: score + (2 * bias)[h, kv_idx - q_idx + 15])
    given = [torch.tensor(x) for x in (X, Y, Z)]
    gradients = [
        torch.autograd.grad(attention(*given, score_mod=mod), bias, torch.tensor(COTANGENT))[0]
        for _ in range(2)
    ]
    d_scores = truth(Spec(X, Y, Z, bias=2 * RELATIVE[None, :, COLUMN - ROW + 15]), COTANGENT)["dbias"]
    assert d_scores.value.shape == (1, 4, 16, 16)
    expected = [np.zeros((4, 31), np.longdouble) for _ in range(2)]
    for total, part in zip(expected, (d_scores.value, d_scores.condition), strict=True):
        np.add.at(total, (HEADS, COLUMN - ROW + 15), 2 * part[0])
    for gradient in gradients:
        assert eta(gradient.numpy(), Judged(*expected), "float64") <= ACCEPTANCE


def test_a_captured_tensor_that_requires_a_gradient_is_refused_elsewhere() -> None:
    bias = relative.clone().requires_grad_()
    mod = from_flex(lambda score, b, h, q_idx, kv_idx: score + bias[h, kv_idx - q_idx + 15])
    with pytest.raises(ValueError) as caught:
        attention(X, Y, Z, score_mod=mod)
    assert str(caught.value) == (
        "polyattn_torch.flex.from_flex: expected captured tensors without a gradient on numpy arrays, got one of shape "
        "(4, 31) that requires it; detach it, or call under torch.no_grad()"
    )
    with torch.no_grad():
        out = attention(X, Y, Z, score_mod=mod)
    judged = judge_back({"shift": RELATIVE[:, COLUMN - ROW + 15]})["out"]
    assert eta(out, judged, "float64") <= ACCEPTANCE


def test_captured_integers_that_jax_has_not_are_refused_there() -> None:
    ids = torch.tensor([0, 2**40] * 8)
    mask = from_flex(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx])
    assert np.array_equal(mask.dense(16), (ROW - COLUMN) % 2 == 0)
    with pytest.raises(ValueError) as caught:
        mask.dense(16, like=jnp.zeros(()))
    assert str(caught.value) == (
        "polyattn_torch.flex.from_flex: expected captured integers up to 2147483647 on jax arrays, got 0 to "
        "1099511627776; number them anew"
    )


def test_the_example_of_from_flex_is_true() -> None:
    result = doctest.testmod(polyattn_torch.flex)
    assert (result.failed, result.attempted > 3) == (0, True)


# Operations

OPS: dict[str, Callable[..., Any]] = {
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s))(getattr(torch, name))
        for name in (
            *("tanh", "exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "atan", "asinh", "sigmoid"),
            *("abs", "sign", "floor", "ceil", "round", "trunc", "erf", "relu", "neg", "square", "reciprocal"),
            *("isnan", "isinf", "isfinite", "clone", "logical_not"),
        )
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s.abs() + 1.25))(getattr(torch, name))
        for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "acosh")
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(torch.tanh(s) / 2))(getattr(torch, name))
        for name in ("asin", "acos", "atanh")
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s, q - kv))(getattr(torch, name))
        for name in (
            *("atan2", "hypot", "maximum", "minimum", "add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge"),
            *("logical_and", "logical_or", "logical_xor"),
        )
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(q - 2, kv + 1))(getattr(torch, name))
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "fmod", "remainder", "floor_divide")
    },
    "softplus": lambda s, b, h, q, kv: torch.nn.functional.softplus(s),
    "silu": lambda s, b, h, q, kv: torch.nn.functional.silu(s),
    "masked fill": lambda s, b, h, q, kv: s.masked_fill(q < kv, -0.1),
    "beyond the dtype": lambda s, b, h, q, kv: (small[kv] * -1 + (small[q] > -1) + (small[q] < 300)) * (q * 2654435761 >> 3),
    "negative powers": lambda s, b, h, q, kv: s + (q - 2) ** (kv - 3) + 2 ** (-(h + 1)) + (-1) ** (kv - q),
    "shift left": lambda s, b, h, q, kv: (q << kv) + torch.bitwise_left_shift(kv, 2),
    "shift right": lambda s, b, h, q, kv: (q >> 1) + torch.bitwise_right_shift(kv, q),
    "invert": lambda s, b, h, q, kv: s + ~q + ~(q < kv),
    "powers": lambda s, b, h, q, kv: s**2 + 2.0**s + s.abs() ** kv + 2**q,
    "alpha": lambda s, b, h, q, kv: torch.add(s, q, alpha=3) - torch.sub(kv, q, alpha=2),
    "from the left": lambda s, b, h, q, kv: 1 - s + 1 / (1 + s.abs()) + 2 * (3 - kv),
    "whole division": lambda s, b, h, q, kv: torch.div(q - 2, kv + 1, rounding_mode="trunc") + s // 0.75,
    "rest of division": lambda s, b, h, q, kv: torch.fmod(s, 0.75) + s % 0.75 + (q - kv) % 3,
    "true division": lambda s, b, h, q, kv: (q - kv) / 4 + torch.true_divide(q, 1 << kv),
    "clamp": lambda s, b, h, q, kv: s.clamp(max=0.5) + s.clamp(min=q - kv) + torch.clamp(kv, 1, 2),
    "casts": lambda s, b, h, q, kv: s.int() + s.long() + q.float() / 4 + (q - kv).bool() + s.to(torch.int16),
    "bools": lambda s, b, h, q, kv: s + ((q < kv) + (q > 1)) * ((kv < 2) ^ (q == kv)),
    "in place": lambda s, b, h, q, kv: s.mul_(2).add_(q).clamp_(-1, 1),
    "as another": lambda s, b, h, q, kv: s + torch.ones_like(s) + torch.full_like(q, 3) + s.new_zeros(()),
    "as the score": lambda s, b, h, q, kv: s.to(s.dtype) + q.to(s.dtype) + s.detach(),
    "where": lambda s, b, h, q, kv: torch.where(q > kv, torch.where(s > 0, s, 0.1), q),
    "lookups": lambda s, b, h, q, kv: s + relative[0][kv] + relative[1, q + starts[1]] + starts[-1] * table[b, h][q][kv],
    "sum": lambda s, b, h, q, kv: (starts * q).sum() + ((starts < kv) & (ends > q)).sum(),
    "extremes": lambda s, b, h, q, kv: (starts * (q - kv)).amax() + (ends - s).amin(dim=0),
    "all and any": lambda s, b, h, q, kv: (ends > q).all() & (starts > kv).any(dim=-1),
    "axes": lambda s, b, h, q, kv: (relative[:, :3] * s + starts * q).sum(dim=1, keepdim=True).amax(dim=(0, 1)),
    "rows": lambda s, b, h, q, kv: (relative[h] * s).amax(0) + (relative[starts // 5] + q)[starts // 6][h - 1].amax(),
    "a number": lambda s, b, h, q, kv: 2 * starts[1],
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_that_of_torch(name: str) -> None:
    mod = OPS[name]
    scores = numbers(2, 3, 4, 5)
    value = np.zeros(scores.shape, np.longdouble)
    for place in np.ndindex(scores.shape):
        index = [torch.tensor(i, dtype=torch.int32) for i in place]
        value[place] = mod(torch.tensor(scores[place]), *index).item()
    for bench in (NumpyBench(), StrictBench(), JaxBench(jit=False), TorchBench()):
        dtype = "float32" if bench.name == "jax" else "float64"
        index = [
            bench.array(np.arange(n, dtype=np.int32).reshape(-1, *(1,) * (3 - i)))
            for i, n in enumerate(scores.shape)
        ]
        given = [bench.array(scores, dtype), *index]
        ours = bench.numpy(from_flex(mod)(*given))
        assert eta(ours, Judged(value, 1 + np.abs(value)), dtype) <= ACCEPTANCE, bench.name


def test_every_operation_is_on_trial() -> None:
    given = [torch.zeros((), dtype=torch.float64), *(torch.zeros((), dtype=torch.int32) for _ in range(4))]
    programs = [Program(mod, given, "") for mod in OPS.values()]
    assert {step.name for p in programs for step in p.steps if step.varies and step.name} == set(OPERATIONS)


# Refusals

WHO = "polyattn_torch.flex.from_flex: expected "
ONLY = "elementwise operations, reductions and lookups in captured tensors, got "


def of_three(b, h, q_idx, kv_idx=0):  # type: ignore[no-untyped-def]
    return q_idx >= 0


def branching(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score if q_idx >= kv_idx else -score


def sorting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.cumsum(relative[h] * score, 0)[kv_idx]


def drawing(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score * (torch.rand(()) < 0.5)


def overwriting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + prefixes.mul_(1)[b]


def unfinished(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + relative[h]


def inner_slices(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + (relative + score)[:, starts // 6].amax()


@pytest.mark.parametrize(
    ("mod", "error", "sentence"),
    [
        (np.ones(3), TypeError, "a score_mod (score, b, h, q_idx, kv_idx), a mask_mod (b, h, q_idx, kv_idx) or a BlockMask, got ndarray, which cannot be called; an array goes to masks.from_array or bias="),
        (of_three, TypeError, "a score_mod (score, b, h, q_idx, kv_idx), a mask_mod (b, h, q_idx, kv_idx) or a BlockMask, got of_three of 3 arguments; those with defaults do not count"),
        (lambda *given: given[0], TypeError, "a mod with named parameters, score_mod (score, b, h, q_idx, kv_idx) or mask_mod (b, h, q_idx, kv_idx), got <lambda> with *given; name them, as their number tells which of the two it is"),
        (lambda score, b, h, q_idx, kv_idx: 0.5, TypeError, "a score_mod to return an array made from score, got float from <lambda>; write a number as torch.full_like(score, number)"),
        (branching, TypeError, "one computation for all scores, got branching, which asks for the value of a tensor (if, while, int(), item()); write torch.where, and read captured tensors outside of it"),
        (sorting, NotImplementedError, ONLY + "cumsum in sorting: that has no counterpart here; compute it outside, or write it otherwise"),
        (drawing, NotImplementedError, ONLY + "rand in drawing: other libraries draw other numbers; capture a tensor of them"),
        (overwriting, NotImplementedError, ONLY + "mul_ in overwriting: it changes a tensor in place that others may hold; write it without"),
        (unfinished, ValueError, "one value for every score, got an array of shape (31,) from unfinished; look up all of its axes, or reduce them"),
    ],
)  # fmt: skip
def test_what_cannot_come_here_is_refused_with_a_sentence(mod: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        from_flex(mod)
    assert str(caught.value) == WHO + sentence


def test_a_lookup_behind_a_slice_is_refused_with_a_sentence() -> None:
    with pytest.raises(NotImplementedError) as caught:
        attention(X, Y, Z, score_mod=from_flex(inner_slices))
    assert str(caught.value) == (
        WHO
        + "a lookup whose index tensors stand in front, got slices before an index of 1 axes; write the axes in "
        "another order"
    )


def test_a_part_of_a_block_mask_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        from_flex(create_block_mask(one_document, 2, None, 16, 16, device="cpu")[0])
    assert str(caught.value).startswith(
        WHO + "a BlockMask whose mask_mod can be called, got one where it says: "
    )
    assert str(caught.value).endswith("; give the whole BlockMask, not a part of it")


def test_a_block_mask_of_another_size_than_the_scores_is_refused() -> None:
    mask = from_flex(create_block_mask(a_prefix, 2, None, 16, 16, device="cpu"))
    with pytest.raises(ValueError) as caught:
        attention(*(np.zeros((3, 1, 20, 4)),) * 3, mask=mask)
    assert str(caught.value) == (
        "polyattn.attention: expected a BlockMask for scores (B, Hq, L, S) = (3, 1, 20, 20), got one of shape "
        "(2, 1, 16, 16); make it with create_block_mask for these lengths"
    )


def test_attention_says_where_a_block_mask_goes() -> None:
    with pytest.raises(TypeError) as caught:
        attention(X, Y, Z, mask=create_block_mask(a_causal, None, None, 16, 16, device="cpu"))
    assert str(caught.value) == (
        "polyattn.attention: expected mask to be a bool array, a polyattn.masks mask or a function (b, h, q_idx, "
        "kv_idx) -> bool, got BlockMask; polyattn_torch.flex.from_flex makes a mask of it"
    )


def test_a_mod_of_flex_attention_becomes_part_of_an_onnx_model() -> None:
    import onnxruntime

    from polyattn.onnx import export

    table = torch.tensor(numbers(4, 12))
    mask = from_flex(lambda b, h, q, kv: (q // 4 == kv // 4) & (q >= kv))
    mod = from_flex(lambda s, b, h, q, kv: 2 * torch.tanh(s / 2) + table[h, (q - kv).abs()])
    inputs = {name: x.astype(np.float32) for name, x in zip("qkv", (Q, K, V), strict=True)}
    model = export(lambda q, k, v: attention(q, k, v, mask=mask, score_mod=mod, query_offset=0), inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, inputs)
    allowed, shift = (AT // 4 == KEY // 4) & (KEY <= AT), table.numpy()[HEAD, DISTANCE]
    spec = Spec(Q, K, V, softcap=2.0, shift=shift[None], allowed=allowed[None, None])
    assert eta(out, truth(spec)["out"], "float32") <= ACCEPTANCE
