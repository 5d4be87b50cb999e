"""Cases of shapes: grouped heads, widths, layouts, ranks, lengths of zero and of many tiles."""

from __future__ import annotations

from polyattn.parity.case import Draw, Sample
from polyattn.parity.cases.fixed import case
from polyattn.truth.spec import Spec


@case(8)
def one_kv_head(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(kv_heads=1)))


@case(8)
def as_many_kv_heads(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(kv_heads=4)))


@case(8)
def values_of_another_width(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(out_width=3)))


@case(13)
def layout_blhd(d: Draw) -> Sample:
    spec = Spec(**d.qkv(out_width=5))
    q, k, v = (x.swapaxes(1, 2).copy() for x in (spec.q, spec.k, spec.v))
    return Sample(spec, {"layout": "BLHD"}, (q, k, v))


@case(13)
def rank_three(d: Draw) -> Sample:
    arrays = d.qkv(batch=1, heads=3, kv_heads=3)
    q, k, v = (arrays[name][0] for name in "qkv")
    return Sample(Spec(**arrays), {}, (q, k, v), (3, 9, 8))


@case(14)
def no_keys(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(keys=0)))


@case(14)
def no_queries(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(rows=0)))


@case(1, 8, 9)
def many_keys(d: Draw) -> Sample:
    return Sample(
        Spec(**d.qkv(batch=1, heads=2, kv_heads=1, rows=67, keys=131, width=33, out_width=17, amplitude=4))
    )
