"""Reports on axes: heads split and merged, grouped heads, packed projections, batch and length."""

from __future__ import annotations

import numpy as np
import torch
from parity.reports.asked import Asked, Floats, Reports, heads, normal, past, textbook

REPORTS = Reports()


def side_by_side(x: Floats) -> Floats:
    """(B, H, L, D) as (B, L, H D)."""
    b, h, n, d = x.shape
    flat: Floats = x.swapaxes(1, 2).reshape(b, n, h * d)
    return flat


def apart(x: Floats, h: int) -> Floats:
    """(B, L, H D) as (B, H, L, D)."""
    b, n, width = x.shape
    split: Floats = x.reshape(b, n, h, width // h).swapaxes(1, 2)
    return split


@REPORTS("onnx/onnx#7274", "kv heads tiled where they are to be repeated", "tiled")
def tiled(wrong: bool) -> Asked:
    q, k, v = heads(q=6, kv=2)
    many = [np.tile(x, (1, 3, 1, 1)) if wrong else np.repeat(x, 3, 1) for x in (k, v)]
    return textbook(q, *many), (q, k, v), {}


@REPORTS("ekzhang/jax-js#180", "query heads of a group read different kv heads", "tiled")
def dealt_out(wrong: bool) -> Asked:
    q, k, v = heads(4, 7, q=8, kv=4)
    reads = np.arange(8) % 4 if wrong else np.arange(8) // 2
    return textbook(q, k[:, reads], v[:, reads], past(4, 7)), (q, k, v), {"is_causal": True}


@REPORTS(
    "PSAL-POSTECH/ONNXim#34", "a head divided by the number of kv heads: all read the first", "first kv head"
)
def all_read_the_first(wrong: bool) -> Asked:
    q, k, v = heads()
    reads = np.arange(4) // 4 if wrong else np.arange(4)
    return textbook(q, k[:, reads], v[:, reads]), (q, k, v), {}


@REPORTS("reczoo/FuxiCTR#30", "heads split and joined by view alone", "split wrongly.*merged wrongly")
def viewed_both_ways(wrong: bool) -> Asked:
    q, k, v = heads()
    if not wrong:
        return side_by_side(textbook(q, k, v)), (q, k, v), {}
    views = [torch.from_numpy(side_by_side(x)).view(2 * 4, -1, 8).numpy() for x in (q, k, v)]
    return textbook(*views).reshape(2, 10, 32), (q, k, v), {}


@REPORTS("pytorch/pytorch#67651", "with batch_first the heads are joined by view alone", "merged wrongly")
def joined_without_a_transpose(wrong: bool) -> Asked:
    q, k, v = heads()
    out = textbook(*(x.reshape(8, 10, 8) for x in (q, k, v)))  # (B H, L, D)
    joined = out.reshape(2, 10, 32) if wrong else side_by_side(out.reshape(2, 4, 10, 8))
    return joined, (q, k, v), {}


@REPORTS("jsbaan/transformer-from-scratch#6", "a permute is missing before the reshape", "merged wrongly")
def a_permute_is_missing(wrong: bool) -> Asked:
    q, k, v = heads(6, 9, batch=1, q=2, kv=2)
    out = torch.from_numpy(textbook(q, k, v))
    return (out if wrong else out.permute(0, 2, 1, 3)).reshape(1, 6, 16), (q, k, v), {}


@REPORTS("kyegomez/FlashMHA#1", "(B, L, H, D) into an attention that wants (B, H, L, D)", "over the heads")
def heads_taken_for_tokens(wrong: bool) -> Asked:
    q, k, v = heads()
    if not wrong:
        return textbook(q, k, v), (q, k, v), {}
    return textbook(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2), (q, k, v), {}


@REPORTS(
    "aipixel/AEMatter#3", "batch first into a module that wants the length first", r"over the (batch|items)"
)
def items_taken_for_tokens(wrong: bool) -> Asked:
    q, k, v = heads(batch=3)
    x, y, z = (torch.from_numpy(side_by_side(x)) for x in (q, k, v))
    layer = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=not wrong, dtype=torch.float64)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([torch.eye(32)] * 3))
        layer.out_proj.weight.copy_(torch.eye(32))
        return layer(x, y, z)[0], (q, k, v), {}


@REPORTS(
    "huggingface/diffusers#2011",
    "the width of a head taken for the number of heads",
    r"\bheads of\b|number of heads|head count|heads (counted|instead)",
)
def as_many_heads_as_a_head_is_wide(wrong: bool) -> Asked:
    q, k, v = heads(q=2, kv=2)  # two heads of width 8
    split = [apart(side_by_side(x), 8 if wrong else 2) for x in (q, k, v)]
    return side_by_side(textbook(*split)), (q, k, v), {}


@REPORTS(
    "NVIDIA-NeMo/RL#2802", "weights side by side read as group by group", r"packed|fused|q, k and v|interleav"
)
def packed_otherwise(wrong: bool) -> Asked:
    x, weights = normal(2, 10, 32, seed=7), [normal(32, 32, seed=i) / 6 for i in (8, 9, 10)]
    q, k, v = (apart(x @ w, 4) for w in weights)
    packed = np.concatenate([x @ w for w in weights], -1)  # q, k, v one behind the other
    if wrong:
        read = packed.reshape(2, 10, 4, 3, 8).transpose(3, 0, 2, 1, 4)
    else:
        read = packed.reshape(2, 10, 3, 4, 8).transpose(2, 0, 3, 1, 4)
    return textbook(*read, past(10)), (q, k, v), {"is_causal": True}


@REPORTS(
    "harvard-edge/cs249r_book#1953", "a cached step does not see its own token", "last key dropped|see itself"
)
def without_its_own_token(wrong: bool) -> Asked:
    q, k, v = heads(1, 9)
    kept = slice(0, 8 if wrong else 9)
    return textbook(q, k[:, :, kept], v[:, :, kept]), (q, k, v), {"is_causal": True, "query_offset": "end"}


@REPORTS(
    "meta-pytorch/gpt-fast#233",
    "the whole buffer of the cache takes part, its zeros too",
    r"zeros?|cache|buffer|padding",
)
def the_whole_buffer(wrong: bool) -> Asked:
    q, k, v = heads(1, 9)
    buffers = [np.concatenate([x, np.zeros((2, 4, 23, 8))], 2) for x in (k, v)]
    used = np.arange(32) < (32 if wrong else 9)
    return textbook(q, *buffers, used), (q, k, v), {"is_causal": True, "query_offset": "end"}
