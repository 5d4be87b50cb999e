"""Cases of who sees whom: masks, causality, windows, rows and keys that nobody sees."""

from __future__ import annotations

import numpy as np

from polyattn import masks
from polyattn.parity.case import Draw, Later, Sample
from polyattn.parity.cases.fixed import at, case
from polyattn.truth.spec import Spec


@case(2, 3, 4)
def masks_combine(d: Draw) -> Sample:
    q, kv = at(9, 9)
    n = np.array([5, 9], np.int32)
    bias = d.normal(1, 1, 9, 9)
    bias[..., 4] = -np.inf
    allowed = (kv <= q) & (kv < n[:, None, None, None])
    options = {"mask": Later(lambda a: masks.key_lengths(a(n))), "is_causal": True, "bias": bias}
    return Sample(Spec(**d.qkv(), allowed=allowed, bias=bias), options)


@case(3)
def mask_polarity(d: Draw) -> Sample:
    allowed = np.zeros((1, 1, 9, 9), bool)
    allowed[..., :5] = True
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": allowed})


@case(4)
def causal(d: Draw) -> Sample:
    q, kv = at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=kv <= q), {"is_causal": True})


@case(4)
def causal_first_rows(d: Draw) -> Sample:
    q, kv = at(9, 5)
    return Sample(Spec(**d.qkv(keys=5), allowed=kv <= q), {"is_causal": True, "query_offset": 0})


@case(4, 6)
def causal_last_rows(d: Draw) -> Sample:
    q, kv = at(9, 5, -4)
    return Sample(Spec(**d.qkv(keys=5), allowed=kv <= q), {"is_causal": True, "query_offset": "end"})


@case(4, 6)
def causal_offset_per_item(d: Draw) -> Sample:
    offset = np.array([3, -2], np.int32)
    q, kv = at(5, 9, offset)
    return Sample(Spec(**d.qkv(rows=5), allowed=kv <= q), {"is_causal": True, "query_offset": offset})


@case(5)
def window(d: Draw) -> Sample:
    q, kv = at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=(q - 2 <= kv) & (kv <= q + 1)), {"mask": masks.window(2, 1)})


@case(5)
def sliding_window(d: Draw) -> Sample:
    q, kv = at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=(q - 3 < kv) & (kv <= q)), {"mask": masks.sliding_window(3)})


@case(2, 4)
def prefix_chunks_dilation(d: Draw) -> Sample:
    q, kv = at(9, 9)
    allowed = (kv < 2) | ((q // 4 == kv // 4) & ~((q - kv) % 3 == 0))
    mask = masks.prefix(2) | (masks.chunked(4) & ~masks.dilated(3))
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": mask})


@case(2, 4)
def packed_documents(d: Draw) -> Sample:
    ids = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 3]], np.int32)
    q, kv = at(9, 9)
    allowed = (ids[:, None, :, None] == ids[:, None, None, :]) & (kv <= q)
    return Sample(
        Spec(**d.qkv(), allowed=allowed), {"mask": Later(lambda a: masks.segments(a(ids))), "is_causal": True}
    )


@case(2, 3, 6)
def query_and_key_lengths(d: Draw) -> Sample:
    q, kv = at(9, 9)
    allowed = (q < np.array([3, 9])[:, None, None, None]) & (kv < np.array([3, 0])[:, None, None, None])
    return Sample(
        Spec(**d.qkv(), allowed=allowed), {"mask": masks.query_lengths([3, 9]) & masks.key_lengths([3, 0])}
    )


@case(6)
def rows_that_see_nothing(d: Draw) -> Sample:
    allowed = np.ones((2, 1, 9, 9), bool)
    allowed[0, :, 2:5] = False
    allowed[1] = False
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": allowed})


@case(6, 10)
def sinks_and_empty_rows(d: Draw) -> Sample:
    allowed = np.ones((1, 1, 9, 9), bool)
    allowed[..., 1, :] = False
    sinks = d.normal(4)
    return Sample(Spec(**d.qkv(), allowed=allowed, sinks=sinks), {"mask": allowed, "sinks": sinks})


@case(3, 7)
def poison_in_hidden_keys(d: Draw) -> Sample:
    n = np.array([4, 9], np.int32)
    arrays = d.qkv()
    k, v = arrays["k"].copy(), arrays["v"].copy()
    k[0, :, 4:], v[0, :, 4:] = np.nan, np.inf
    _, kv = at(9, 9)
    spec = Spec(**arrays, allowed=kv < n[:, None, None, None])
    return Sample(spec, {"mask": Later(lambda a: masks.key_lengths(a(n)))}, (arrays["q"], k, v))
