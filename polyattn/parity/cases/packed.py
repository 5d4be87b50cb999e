"""Cases of packed sequences: documents that lie one behind the other, by cu_seqlens."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn import masks, mods
from polyattn.parity.case import Draw, Sample
from polyattn.parity.cases.fixed import case
from polyattn.truth.spec import Floats, Spec

#: Of each document: as many rows as keys, then fewer, none, more; the last but one has no keys.
ROWS, KEYS = (3, 1, 0, 2, 1, 2), (3, 4, 2, 1, 0, 1)


def _ends(lengths: tuple[int, ...]) -> Any:
    return np.array([0, *np.cumsum(lengths)], np.int32)


def _apart(rows: tuple[int, ...], keys: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    """Whether a query and a key are of one document, and where they stand in it, the last query beside the last key."""
    one = np.repeat(np.arange(len(rows)), rows)[:, None] == np.repeat(np.arange(len(keys)), keys)
    q = np.concatenate([np.arange(n) + s - n for n, s in zip(rows, keys, strict=True)])[:, None]
    return one[None, None], q, np.concatenate([np.arange(s) for s in keys])


@case(6, 28)
def packed_with_keys_of_their_own(d: Draw) -> Sample:
    one, q, kv = _apart(ROWS, KEYS)
    spec = Spec(**d.qkv(batch=1, keys=11), allowed=one & (kv <= q))
    return Sample(spec, {"cu_seqlens_q": _ends(ROWS), "cu_seqlens_k": _ends(KEYS), "is_causal": True})


@case(13, 28)
def packed_with_themselves(d: Draw) -> Sample:
    one, _, _ = _apart(ROWS, ROWS)
    spec = Spec(**d.qkv(), allowed=one)
    q, k, v = (x.swapaxes(1, 2).copy() for x in (spec.q, spec.k, spec.v))
    return Sample(spec, {"cu_seqlens_q": _ends(ROWS), "layout": "BLHD"}, (q, k, v))


@case(5, 10, 12, 28)
def packed_windows_slopes_and_sinks(d: Draw) -> Sample:
    one, q, kv = _apart(ROWS, KEYS)
    slopes, sinks = 2.0 ** (-2.0 * np.arange(1, 5)), d.normal(4)
    allowed = one & (q - 2 <= kv) & (kv <= q + 1)
    shift = -slopes[:, None, None] * abs(q - kv)
    spec = Spec(**d.qkv(batch=1, keys=11), allowed=allowed, shift=shift[None], sinks=sinks)
    options = {"mask": masks.window(2, 1), "score_mod": mods.alibi(4), "sinks": sinks}
    return Sample(spec, {"cu_seqlens_q": _ends(ROWS), "cu_seqlens_k": _ends(KEYS), **options})
