"""The gradients of a tile, with their conditions, and with what half precision stores on the way to them.

A right program in half precision computes scores, the softmax and sums in float32, and rounds to half what it stores
or hands to a matrix product: the gradient dp of the weights or the output o, of which delta is made, the weights of
dv, the gradient ds of the scores, and the results. With one rounding each an element of ds is off by at most

    r_j = |ds_j| + |J| |dp| + |d ds_j / d delta| sum_e |do_e| |o_e|

times u, J the derivative of the normaliser; for the softmax w_j (|dp_j| + sum_k w_k |dp_k| + sum_e |do_e| |o_e|) beside
|ds_j|. No program makes all of these roundings, and half of their sum is the unit. Sums over query rows, in dk and dv,
are carried in half from one block of rows to the next by some: a walk whose steps are roundings of what is summed by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyattn.truth.forward import Forward
from polyattn.truth.spec import Floats

__all__ = ["BLOCK", "Parts", "Shared", "backward"]

BLOCK = 64  # query rows between two such roundings; torch's kernel on the CPU takes 32 to 256


class Parts(NamedTuple):
    """The terms of a `Judged` before what shares them is summed; `rounded` without the rounding of the result."""

    value: Floats
    condition: Floats
    floor: Floats
    rounded: Floats


class Shared(NamedTuple):
    """The parts of what every query row contributes to, and its value of each block of rows, (blocks, b, h, S, E)."""

    parts: Parts
    blocks: Floats


def backward(tile: Forward, cotangent: Floats, softcap: float | None) -> dict[str, Parts | Shared]:
    """dq, dk and dv for every query head, the gradients of biases for every score, those of sinks and scale by row."""
    w, w_abs, pull, w_sink = tile.weighing
    keep, allowed, slope = tile.keep, tile.allowed, tile.slope
    q, k, v, aq, ak = tile.operands
    av = np.abs(v)
    do = cotangent.astype(q.dtype)
    ado = np.abs(do)
    dp, dp_abs = keep * (do @ v.mT), keep * (ado @ av.mT)
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

    signed, absolute = tile.scale, np.abs(tile.scale)
    scales = (signed, absolute, absolute, absolute)
    kept = Parts(*(x * keep for x in (w, w_abs + np.abs(w), allowed, np.abs(w))))
    found: dict[str, Parts | Shared] = {
        "dq": Parts(*(x @ (c * y) for x, c, y in zip(raw, scales, (k, ak, ak, ak), strict=True))),
        "dk": _over_rows(raw, [c * y for c, y in zip(scales, (q, aq, aq, aq), strict=True)]),
        "dv": _over_rows(kept, (do, ado, ado, ado)),
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


def _over_rows(weights: Parts, rows: Sequence[Floats]) -> Shared:
    """Products summed over the query rows."""
    value, *sizes = (x.astype(y.dtype) for x, y in zip(weights, rows, strict=True))
    cuts = range(0, value.shape[2], BLOCK)
    blocks = np.stack(
        [value[:, :, i : i + BLOCK].mT @ rows[0][:, :, i : i + BLOCK] for i in cuts] or [value.mT @ rows[0]]
    )
    return Shared(Parts(blocks.sum(0), *(x.mT @ y for x, y in zip(sizes, rows[1:], strict=True))), blocks)
