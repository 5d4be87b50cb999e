"""What goes wrong in the projections of attention: biases, operands, norms, rotation, orders, packings, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from polyattn.parity.components.facts.torch_attention import fused_parts
from polyattn.parity.components.heads import Heads, Waves
from polyattn.parity.components.orders import likely_orders, say_order
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["NAMES", "Changes", "biases", "norms_and_turns", "operands", "orders", "rounded"]

#: Sentences, each with the attention as it would be.
Changes = Iterator[tuple[str, Heads]]
NAMES = {"q": "query", "k": "key", "v": "value", "o": "output"}


def biases(heads: Heads) -> Changes:
    there = [n for n in "qkvo" if f"{n}.bias" in heads.arrays]
    for n in there:
        yield f"bias of the {NAMES[n]} projection missing", heads.with_arrays(**{f"{n}_bias": None})
        yield (
            f"bias of the {NAMES[n]} projection added twice",
            heads.with_arrays(**{f"{n}_bias": 2 * heads.arrays[f"{n}.bias"]}),
        )
    inner = [n for n in there if n != "o"]
    if len(inner) > 1:
        gone = dict.fromkeys((f"{n}_bias" for n in inner), None)
        yield (
            f"biases of the {', '.join(NAMES[n] for n in inner)} projections missing",
            heads.with_arrays(**gone),
        )
    if inner and "o" in there:
        yield "all biases missing", heads.with_arrays(**dict.fromkeys((f"{n}_bias" for n in there), None))


def operands(heads: Heads) -> Changes:
    w = heads.arrays
    for a, b in (("k", "v"), ("q", "k"), ("q", "v")):
        names = [n for n in (f"{a}.weight", f"{b}.weight", f"{a}.bias", f"{b}.bias") if n in w]
        if w[f"{a}.weight"].shape == w[f"{b}.weight"].shape:
            other = {n: b if n.startswith(a) else a for n in names}
            swapped = {n: w.get(f"{other[n]}.{n.partition('.')[2]}") for n in names}
            yield (
                f"{NAMES[a]} and {NAMES[b]} projections exchanged",
                heads.with_arrays(**{n.replace(".", "_"): x for n, x in swapped.items()}),
            )
    for n in "qkvo":
        m = w.get(f"{n}.weight")
        if m is not None and m.shape[0] == m.shape[1]:
            yield (
                f"weight of the {NAMES[n]} projection transposed",
                heads.with_arrays(**{f"{n}_weight": m.T}),
            )
    square = [n for n in "qkv" if w[f"{n}.weight"].shape[0] == w[f"{n}.weight"].shape[1]]
    if len(square) > 1:
        turned: dict[str, Floats | None] = {f"{n}_weight": w[f"{n}.weight"].T for n in square}
        yield (
            f"weights of the {', '.join(NAMES[n] for n in square)} projections transposed",
            heads.with_arrays(**turned),
        )
    if "o.weight" in w:
        yield "output projection left out", heads.with_arrays(o_weight=None, o_bias=None)
    if 1 < heads.kv_heads < heads.heads:
        yield "kv heads tiled: query head h reads kv head h % Hkv, not h // G", replace(heads, tiled=True)


def norms_and_turns(heads: Heads) -> Changes:
    if heads.norms != (None, None):
        q, k = heads.norms
        yield "norm of queries and keys missing", replace(heads, norms=(None, None))
        yield "norm of queries missing", replace(heads, norms=(None, k))
        yield "norm of keys missing", replace(heads, norms=(q, None))
        if heads.waves is not None:
            yield (
                "norm of queries and keys behind the rotation, not before it",
                replace(heads, norm_last=True),
            )
        if q is not None and k is not None:
            for eps in (1e-5, 1e-6, 1e-12, 1e-3):
                if eps != q.eps:
                    said = f"epsilon of the norm of queries and keys {eps:g}, not {q.eps:g}"
                    yield said, replace(heads, norms=(replace(q, eps=eps), replace(k, eps=eps)))
            plus = (replace(q, plus_one=not q.plus_one), replace(k, plus_one=not k.plus_one))
            yield (
                f"norm of queries and keys with {'weight' if q.plus_one else '1 + weight'} for {'1 + weight' if q.plus_one else 'weight'}",
                replace(heads, norms=plus),
            )
            yield "norms of queries and of keys exchanged", replace(heads, norms=(k, q))
    if (waves := heads.waves) is not None:
        yield from _turns(heads, waves)


def _turns(heads: Heads, waves: Waves) -> Changes:
    other = (
        "pairs of halves (i, i + n/2), not of neighbours"
        if waves.interleaved
        else "pairs of neighbours (0, 1), (2, 3), ..., not of halves"
    )
    yield f"rotary {other}", replace(heads, waves=replace(waves, interleaved=not waves.interleaved))
    yield "rotary not applied", replace(heads, waves=None)
    yield "rotary on the queries alone", replace(heads, turned=(True, False))
    yield "rotary on the keys alone", replace(heads, turned=(False, True))
    yield "cosine and sine exchanged", replace(heads, waves=replace(waves, cos=waves.sin, sin=waves.cos))


def _each(heads: Heads, names: str, order: Callable[[str], Floats | None]) -> Heads | None:
    """Columns of projections, and their biases, in another order."""
    changed: dict[str, Floats | None] = {}
    for n in names:
        columns = order(n)
        if columns is None:
            return None
        for kind in ("weight", "bias"):
            if (x := heads.arrays.get(f"{n}.{kind}")) is not None:
                changed[f"{n}_{kind}"] = x[..., columns]
    return heads.with_arrays(**changed)


def orders(heads: Heads) -> Changes:
    for said, shape in (
        ("pairs, as Meta's Llama has it", (2, -1)),
        ("halves, as Hugging Face has it", (-1, 2)),
    ):
        if heads.width % 2 == 0:

            def order(n: str, shape: tuple[int, int] = shape) -> Floats:
                columns = np.arange(heads.arrays[f"{n}.weight"].shape[1])
                return (
                    columns.reshape(-1, *(s if s > 0 else heads.width // 2 for s in shape))
                    .swapaxes(1, 2)
                    .ravel()
                )

            for names in ("qk", "q", "k"):
                changed = _each(heads, names, order)
                if changed is not None:
                    which = " and ".join(NAMES[n] for n in names)
                    yield (
                        f"columns of the {which} projection in rotary order of {said}, and the rotation is not",
                        changed,
                    )
    if (rows := heads.arrays.get("o.weight")) is not None:
        for one in likely_orders(rows.shape[0], heads.width):
            yield (
                f"inputs of the output projection {say_order(one, packed=False)}",
                heads.with_arrays(o_weight=rows[one]),
            )
    yield from _packings(heads)


def _packings(heads: Heads) -> Changes:
    """q, k and v packed in one matrix by one convention and taken apart by another."""
    sizes = (heads.heads, heads.kv_heads, heads.width)
    for by_head in (True, False):
        changed: dict[str, Floats | None] = {}
        for kind in ("weight", "bias"):
            parts = [heads.arrays.get(f"{n}.{kind}") for n in "qkv"]
            if any(part is None for part in parts):
                continue
            packed = _packed([part for part in parts if part is not None], *sizes, by_head=not by_head)
            changed |= {
                f"{n}_{kind}": x
                for n, x in zip("qkv", fused_parts(packed, *sizes, by_head=by_head), strict=True)
            }
        how = ("side by side", "head by head")
        yield (
            f"query, key and value packed {how[not by_head]} and taken apart {how[by_head]}",
            heads.with_arrays(**changed),
        )


def _packed(parts: list[Floats], heads: int, kv: int, width: int, *, by_head: bool) -> Floats:
    """The inverse of `fused_parts`."""
    if not by_head:
        return np.concatenate(parts, -1)
    group = heads // kv
    split = [p.reshape(*p.shape[:-1], kv, n, width) for p, n in zip(parts, (group, 1, 1), strict=True)]
    return np.concatenate(split, -2).reshape(*parts[0].shape[:-1], -1)


def rounded(heads: Heads) -> Changes:
    for low in ("bfloat16", "float16"):
        arrays = {n.replace(".", "_", 1): round_to(x, low) for n, x in heads.arrays.items()}
        yield f"weights rounded to {low}", heads.with_arrays(**arrays)
