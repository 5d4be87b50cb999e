"""FlexAttention: masks and mods of polyattn go there unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from polyattn import attention, masks, mods
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask
from polyattn.parity import ACCEPTANCE, Judged, Spec, eta, round_to
from polyattn.truth import truth

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
    return computed[rows], judged.moved(lambda x: np.broadcast_to(x, judged.value.shape)[rows])


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
    "key ranges per item": (
        lambda: masks.key_ranges(torch.tensor(IDS), torch.tensor(IDS + 6)),
        (IDS[:, None, :, None] <= KEY) & (IDS[:, None, :, None] + 6 > KEY),
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
