"""The gradients of a tile, with their conditions, and with what half precision stores on the way to them.

A right program in half precision computes scores, the softmax and sums in float32, and rounds to half what it stores
or hands to a matrix product: the gradient dp of the weights or the output o, of which delta is made, the weights of
dv, the gradient ds of the scores, and the results. With one rounding each an element of ds is off by at most

    r_j = |ds_j| + |J| |dp| + |d ds_j / d delta| sum_e |do_e| |o_e|

times u, J the derivative of the normaliser; for the softmax w_j (|dp_j| + sum_k w_k |dp_k| + sum_e |do_e| |o_e|) beside
|ds_j|. No program makes all of these roundings, and half of their sum is the unit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyattn.truth.forward import Forward
from polyattn.truth.spec import Floats

__all__ = ["Parts", "backward"]


class Parts(NamedTuple):
    """The terms of a `Judged` before what shares them is summed; `rounded` without the rounding of the result."""

    value: Floats
    condition: Floats
    floor: Floats
    rounded: Floats


def backward(tile: Forward, cotangent: Floats, softcap: float | None) -> dict[str, Parts]:
    """dq, dk and dv for every query head, the gradients of biases for every score, those of sinks and scale by row."""
    w, w_abs, pull, w_sink = tile.weighing
    keep, allowed, slope = tile.keep, tile.allowed, tile.slope
    aq, ak, av = np.abs(tile.q), np.abs(tile.k), np.abs(tile.v)
    do = cotangent.astype(tile.q.dtype)
    ado = np.abs(do)
    dp, dp_abs = keep * (do @ tile.v.mT), keep * (ado @ av.mT)
    ds, ds_abs, delta, delta_abs, along = pull(dp, dp_abs)
    dp_size = np.abs(dp)
    of_products = pull(np.zeros_like(dp), dp_size)  # linear in the second: |J| |dp|
    of_output = (ado * np.abs(tile.out.value)).sum(-1, keepdims=True)
    ds_rounded = np.abs(ds) + of_products.condition + along * of_output
    ds_floor = allowed * (dp_size + np.abs(delta))
    biases = Parts(ds, ds_abs + np.abs(ds), ds_floor, ds_rounded)

    d_raw, d_raw_abs = slope * ds, slope * ds_abs
    if softcap is not None and tile.bent is not None:
        # slope = 1 - bent^2: the roundings of bent, its square and the difference, then the error of raw.
        bend = np.abs(tile.bent)
        d_raw_abs = d_raw_abs + np.abs(ds) * (1 + 3 * bend**2 + 2 * bend * slope * tile.raw_sabs / softcap)
    raw = Parts(d_raw, d_raw_abs + np.abs(d_raw), slope * ds_floor, slope * ds_rounded)

    def times(parts: Parts, signed: Floats, size: Floats, transposed: bool) -> Parts:
        sizes = (tile.scale * signed, *(np.abs(tile.scale) * size for _ in range(3)))
        return Parts(*((x.mT if transposed else x) @ y for x, y in zip(parts, sizes, strict=True)))

    kept = ((w * keep, do), ((w_abs + np.abs(w)) * keep, ado), (allowed * keep, ado), (np.abs(w) * keep, ado))
    found = {
        "dq": times(raw, tile.k, ak, False),
        "dk": times(raw, tile.q, aq, True),
        "dv": Parts(*(x.mT.astype(y.dtype) @ y for x, y in kept)),
        "dbias": biases,
    }
    size = aq @ ak.mT
    found["dscale"] = Parts(
        d_raw * tile.product, raw.condition * size, raw.floor * size, raw.rounded * np.abs(tile.product)
    )
    sink = np.where(np.isfinite(tile.sink), np.abs(tile.sink), 0)
    mean = sink + 1 + (np.abs(w) * tile.sabs).sum(-1, keepdims=True) + w_sink * sink
    found["dsinks"] = Parts(
        -(w_sink * delta),
        w_sink * (mean * np.abs(delta) + delta_abs),
        np.zeros_like(delta),
        w_sink * (np.abs(delta) + of_products.mean_condition + of_output),
    )
    return found
