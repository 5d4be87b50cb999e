"""In which direction an output is wrong: along the value of one key, or along itself."""

from __future__ import annotations

import numpy as np

from polyattn.parity.diagnosis.case import Case
from polyattn.truth.spec import Floats

__all__ = ["direction"]

ALONG = 0.999  # the part of the squared error that lies in a direction, where nothing else is the matter
LEAST = 3  # entries of a value, or any two directions are near each other
MOST = 256  # wrong rows that are looked at


def direction(case: Case) -> str:
    """Where the error points, "" if nowhere in particular."""
    where = np.argwhere(case.wrong.any(-1) & np.isfinite(case.seen.out).all(-1) & case.seen.counts.all(-1))
    if len(where) == 0 or case.seen.out.shape[3] < LEAST:
        return ""
    where = where[np.unique(np.linspace(0, len(where) - 1, min(len(where), MOST)).astype(int))]
    b, h, i = where.T
    out = case.contract.out[b, h, i]
    error = case.seen.out[b, h, i] - out
    if not np.isfinite(error).all():
        return ""
    if _along(error, out) > ALONG:
        factors = np.sum(case.seen.out[b, h, i] * out, -1) / np.maximum(np.sum(out * out, -1), 1e-300)
        even = np.ptp(factors) <= 0.01 * np.abs(factors - 1.0).max()
        return "the output is multiplied by " + (f"{factors.mean():.6g}" if even else "a factor of each row")
    values = case.contract.values
    if values.shape[2] != case.call.shape[3]:
        return ""
    return _key(case, where, error, out, values)


def _key(case: Case, where: Floats, error: Floats, out: Floats, values: Floats) -> str:
    """The key whose weight is wrong: the error of a row lies along v_j, or along v_j - out where weights add up to 1."""
    b, h, i = where.T
    keys = values.shape[2]
    shares = np.empty((2, keys))
    for j in range(keys):
        v = values[b, h, j]
        shares[:, j] = _along(error, v), _along(error, v - out)
    best = int(np.argmax(shares.max(0)))
    if shares[:, best].max() > ALONG:
        return f"the error lies in the direction of value {best}"
    own = case.seen.which[i] + np.asarray(case.call.offsets or [case.call.offset] * case.call.shape[0])[b]
    for shift, name in (
        (0, "the row's own value"),
        (1, "the value after the row's own"),
        (-1, "the value before the row's own"),
    ):
        at = own + shift
        if ((at >= 0) & (at < keys)).all():
            v = values[b, h, at]
            if max(_along(error, v), _along(error, v - out)) > ALONG:
                return f"the error lies in the direction of {name}"
    return ""


def _along(error: Floats, towards: Floats) -> float:
    """The part of the squared error that lies along directions, of each row one."""
    with np.errstate(all="ignore"):
        unit = towards / np.linalg.norm(towards, axis=-1, keepdims=True)
        total = float(np.sum(error**2))
        share = float(np.sum(np.sum(error * unit, -1) ** 2)) / total
    return share if np.isfinite(share) else 0.0
