"""Mistakes of which array lies where: heads, layouts, packings, operands, batch items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..defect import MASKED, Defect, defect
from ..problems import Problem

PLAINLY = f"{MASKED} bias sinks gqa rotary alibi"
SQUARE = "square heads equal"


def moved(name: str, named: str, f: Callable[[Tensor], Tensor], **how: str) -> Defect:
    """Every query head reads kv heads as f orders them."""

    def kv_heads(x: Tensor, heads: int) -> Tensor:
        return f(x).repeat_interleave(heads // x.shape[1], 1)

    return defect(name, "heads", named, kv_heads=kv_heads, **how)


def only(which: str, f: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """f of one of query, key and value."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(x) if name in which else x for name, x in zip("qkv", (q, k, v), strict=True))

    return run


HEADS: tuple[Defect, ...] = (
    defect("kv heads tiled", "heads", "heads? (tiled|h % )|tiled", "gqa", kv_heads=lambda x, heads: x.repeat(1, heads // x.shape[1], 1, 1)),
    defect("first kv head for all", "heads", "first kv head|kv heads? .*map", "gqa", kv_heads=lambda x, heads: x[:, :1].expand(-1, heads, -1, -1)),
    moved("kv heads reversed", "kv heads? .*revers|map|permut", lambda x: x.flip(1), needs="gqa"),
    moved("kv heads rolled by one", "heads", lambda x: x.roll(1, 1), needs="gqa"),
    moved("kv heads rolled by one, as many as queries", "heads", lambda x: x.roll(1, 1), needs="heads"),
    moved("last kv head for all", "head", lambda x: x[:, -1:].expand_as(x), needs="gqa"),
    moved("two kv heads exchanged", "heads", lambda x: torch.cat((x[:, :1], x[:, 2:3], x[:, 1:2], x[:, 3:]), 1), needs="heads"),
    defect("keys of the next head", "heads", "(key|head)", "heads", arguments=only("k", lambda x: x.roll(-1, 1))),
    defect("values of the next head", "heads merge", "(value|head)", "heads", arguments=only("v", lambda x: x.roll(-1, 1))),
    defect("query heads reversed", "heads", "heads", "", "sinks bias alibi", arguments=only("q", lambda x: x.flip(1))),
    defect("heads of the output reversed", "merge", "heads", "", output=lambda p, out: out.flip(1)),
    defect("heads of the output rolled", "merge", "heads", "", output=lambda p, out: out.roll(1, 1)),
    defect("heads of the output in a random order", "merge", "heads", "", output=lambda p, out: out[:, p.rng("heads").permutation(out.shape[1])]),
    defect("batch reversed", "batch", "batch|items", "", output=lambda p, out: out.flip(0)),
    defect("batch rolled", "batch", "batch|items", "three", output=lambda p, out: out.roll(1, 0)),
    defect("batch in another order", "batch", "batch|items", "three", output=lambda p, out: out[[1, 0, 2]]),
    defect("queries of another item", "batch", "batch|item", "", arguments=only("q", lambda x: x.roll(1, 0))),
    defect("keys and values of another item", "batch", "batch|item", "", arguments=only("kv", lambda x: x.roll(1, 0))),
    defect("keys and values of the first item", "batch", "batch|item", "", arguments=only("kv", lambda x: x[:1].expand_as(x))),
)  # fmt: skip

LAYOUTS: tuple[Defect, ...] = (
    defect("heads split without transpose", "layout", "without a transpose|split wrongly", split=lambda x: x.transpose(1, 2).reshape(x.shape)),
    defect("heads interleaved", "layout", "interleaved|D H", split=lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)),
    defect("attention over heads", "layout merge", "over the heads", "square heads", PLAINLY, split=lambda x: x.transpose(1, 2), merge=lambda out: out.transpose(1, 2)),
    defect("attention over the batch", "layout merge batch", "batch", "square", PLAINLY, split=lambda x: x.transpose(0, 2), merge=lambda out: out.transpose(0, 2)),
    defect("heads merged without transpose", "merge", "merged wrongly|without a transpose", merge=lambda out: out.reshape(out.shape[0], out.shape[2], out.shape[1], -1).transpose(1, 2)),
    defect("heads merged interleaved", "merge", "merged|interleaved|D H", merge=lambda out: out.permute(0, 2, 3, 1).reshape(out.shape[0], out.shape[2], out.shape[1], -1).transpose(1, 2)),
    defect("keys alone split without transpose", "layout", "key.*(split|transpose|layout)|(split|transpose|layout).*key", arguments=only("k", lambda x: x.transpose(1, 2).reshape(x.shape))),
    defect("values alone split without transpose", "layout", "value.*(split|transpose|layout)|(split|transpose|layout).*value", arguments=only("v", lambda x: x.transpose(1, 2).reshape(x.shape))),
    defect("query and key swapped", "operands", "query and key (swapped|exchanged)", "square heads", "gqa", arguments=lambda q, k, v: (k, q, v)),
    defect("key and value swapped", "operands", "key and value (swapped|exchanged)", "equal", arguments=lambda q, k, v: (q, v, k)),
    defect("query and value swapped", "operands", "query and value|value.*quer|packed|q, k", SQUARE, "gqa", arguments=lambda q, k, v: (v, k, q)),
    defect("query, key and value in turn", "operands", "quer.*key.*value|k, v, q|operands|packed", SQUARE, "gqa", arguments=lambda q, k, v: (k, v, q)),
    defect("keys used as values", "operands", "key.*(as|for|instead|used|read).*value|value.*key", "equal", arguments=lambda q, k, v: (q, k, k)),
    defect("values used as keys", "operands", "value.*(as|for|instead|used|read).*key|key.*value", "equal", arguments=lambda q, k, v: (q, v, v)),
    defect("self attention of the queries, cross was meant", "operands", "self|quer", SQUARE, "gqa", arguments=lambda q, k, v: (q, q, q)),
    defect("self attention of the keys, cross was meant", "operands", "self|key", SQUARE, "gqa", arguments=lambda q, k, v: (k, k, v)),
    defect("queries used as keys", "operands", "quer.*key|self", SQUARE, "gqa", arguments=lambda q, k, v: (q, q, v)),
)  # fmt: skip

# packings

PACKED = "pack|fused|projection"


def flat(*parts: Tensor) -> Tensor:
    """Arrays (B, H, L, D) side by side, (B, L, sum of H D)."""
    return torch.cat([x.transpose(1, 2).flatten(2) for x in parts], -1)


def apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def thirds(x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """A fused projection read as queries, then keys, then values."""
    wide, slim = q.shape[1] * q.shape[3], k.shape[1] * k.shape[3]
    parts = x.split((wide, slim, slim), -1)
    return tuple(apart(part, n) for part, n in zip(parts, (q.shape[1], k.shape[1], k.shape[1]), strict=True))


def by_group(x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """... as the queries of a kv head, its key, its value, then those of the next one."""
    each = q.shape[1] // k.shape[1]
    x = apart(x, k.shape[1] * (each + 2)).unflatten(1, (k.shape[1], each + 2))
    return x[:, :, :each].flatten(1, 2), x[:, :, each], x[:, :, -1]


def in_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The projection that `by_group` reads."""
    parts = q.unflatten(1, (k.shape[1], -1)), k[:, :, None], v[:, :, None]
    return flat(torch.cat(parts, 2).flatten(1, 2))


def packing(
    name: str, needs: str, read: Callable[..., tuple[Tensor, ...]], named: str = PACKED, **how: str
) -> Defect:
    def packed(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return read(q, k, v)

    return defect(name, "layout heads operands", named, needs, packed=packed, **how)


def pairs_of(k: Tensor, v: Tensor, by_head: bool) -> tuple[Tensor, Tensor]:
    """Keys and values in one array, read as if the other packing."""
    if by_head:  # written per head, read as halves
        x = flat(torch.stack((k, v), 2).flatten(1, 2))
        return tuple(apart(part, k.shape[1]) for part in x.chunk(2, -1))  # type: ignore[return-value]
    x = apart(flat(k, v), 2 * k.shape[1]).unflatten(1, (-1, 2))
    return x[:, :, 0], x[:, :, 1]


PACKINGS: tuple[Defect, ...] = (
    packing("thirds read per head", SQUARE, lambda q, k, v: by_group(flat(q, k, v), q, k), without="gqa"),
    packing("per head read as thirds", SQUARE, lambda q, k, v: thirds(in_groups(q, k, v), q, k), without="gqa"),
    packing("thirds read per kv head", "square gqa equal", lambda q, k, v: by_group(flat(q, k, v), q, k)),
    packing("per kv head read as thirds", "square gqa equal", lambda q, k, v: thirds(in_groups(q, k, v), q, k)),
    packing("keys and values per head read as halves", "equal", lambda q, k, v: (q, *pairs_of(k, v, True))),
    packing("keys and values in halves read per head", "equal", lambda q, k, v: (q, *pairs_of(k, v, False))),
    packing("width before heads in a fused projection", SQUARE, lambda q, k, v: thirds(flat(q, k, v).unflatten(2, (3, -1, q.shape[1])).transpose(-1, -2).flatten(2), q, k), f"{PACKED}|interleaved|D H", without="gqa"),
)  # fmt: skip

MOVING = HEADS + LAYOUTS + PACKINGS
