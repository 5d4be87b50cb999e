"""Query times key: what most settings share, and so is kept for the next ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers.operands import heads_of, taken
from polyattn.conventions.answers.rounding import SCALES, in_bytes, rounded, stage_of
from polyattn.conventions.answers.turning import Operand, turned
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import seen_keys
from polyattn.truth.spec import Floats

__all__ = ["Products", "in_groups", "key_of", "multiplied"]

_FIELDS = ("layout", "operands", "norms", "rotary", "cache", "heads")
_ROUNDED_HERE = ("inputs", "operands", "turned", "query", "cache", "product", "throughout")


class Products(NamedTuple):
    """The scores before their scale, and the values."""

    call: Call  # of the arrays that are taken
    product: Floats  # (B, Hq, rows, S)
    size: Floats  # likewise: it is off by some u times this
    most: float  # times that, at most: a rounding counts on nothing that mostly cancels
    v: Floats  # (B, Hkv or Hq, S, E)
    v_size: Floats  # |v|
    v_else: Floats | float  # how many U away a value may be besides
    poisoned: bool  # whether some of those keys or values are not finite
    numbers: int  # that are held by nobody else


def key_of(settings: Settings, poisoned: bool) -> tuple[object, ...]:
    """Settings with the same key have the same products. poisoned: some operands are not finite."""
    if poisoned and settings.poison != "leaks":
        return (settings,)
    _, stage = stage_of(settings.precision)
    low = settings.precision if stage in _ROUNDED_HERE else ""
    return (*(getattr(settings, name) for name in _FIELDS), low)


def multiplied(
    call: Call, settings: Settings, rows: Floats | None, poisoned: bool, v_size: Floats
) -> Products:
    """The products of some query rows, or of all, with every key.

    poisoned: some operands are not finite. v_size: |v| of the call.
    """
    low, stage = stage_of(settings.precision)
    used = taken(call, settings.operands, settings.layout)
    poisoned = poisoned and not (np.isfinite(used.k).all() and np.isfinite(used.v).all())
    seen = seen_keys(used, settings) if poisoned and settings.poison != "leaks" else None
    if stage in ("inputs", "throughout"):
        used = used.of(*(rounded(x, low)[0] for x in (used.q, used.k, used.v)))
    q, k, v = turned(used, settings, slice(None) if rows is None else rows)
    q, k, v = _rounded(q, k, v, settings.cache, low, stage)
    shared = v.x is call.v and settings.heads == "grouped" and seen is None
    of_keys, of_values = heads_of(q.x.shape[1], k.x.shape[1], settings.heads)
    k = k if of_keys is None else k.each(lambda x: x[:, of_keys])
    v = v if of_values is None else v.each(lambda x: x[:, of_values])
    if seen is not None:
        k = k.each(lambda x: _unseen_left_out(x, seen))
        v = v if settings.poison == "leaks from values" else v.each(lambda x: _unseen_left_out(x, seen))
    product = in_groups(q.x, k.x.mT)
    size = in_groups(np.abs(q.x) + q.more, np.abs(k.x).mT)
    if np.ndim(k.more):
        size = size + in_groups(np.abs(q.x), np.asarray(k.more).mT)
    most = 16.0 if np.ndim(q.by_angle) or np.ndim(k.by_angle) else 4.0
    if stage in ("product", "throughout"):
        product, apart = rounded(product, low, most * (size + np.abs(product)))
        size = size + apart
    numbers = 2 * product.size + (0 if shared else 2 * v.x.size)
    return Products(
        used, product, size, most, v.x, v_size if shared else np.abs(v.x), v.apart, poisoned, numbers
    )


def _rounded(
    q: Operand, k: Operand, v: Operand, cache: str, low: str, stage: str
) -> tuple[Operand, Operand, Operand]:
    """What is rounded after it was turned."""

    def to(x: Operand, low: str) -> Operand:
        y, apart = rounded(x.x, low, x.off)
        return x._replace(x=y, apart=apart)

    if cache in SCALES:
        (k_bytes, k_apart), (v_bytes, v_apart) = (
            in_bytes(x.x, axes, x.off) for x, axes in zip((k, v), SCALES[cache], strict=True)
        )
        k, v = k._replace(x=k_bytes, apart=k_apart), v._replace(x=v_bytes, apart=v_apart)
    elif cache != "as stated":
        k, v = to(k, cache), to(v, cache)
    return (
        to(q, low) if stage in ("operands", "turned", "query", "throughout") else q,
        to(k, low) if stage in ("operands", "turned", "cache", "throughout") else k,
        to(v, low) if stage in ("operands", "cache") else v,
    )


def in_groups(x: Floats, y: Floats) -> Floats:
    """x @ y, where heads of x may share one of y: (B, Hq, n, m) @ (B, Hkv, m, p)."""
    b, heads, n, m = x.shape
    if y.shape[1] == heads:
        return np.asarray(x @ y)
    out: Floats = x.reshape(b, y.shape[1], heads // y.shape[1] * n, m) @ y
    return out.reshape(b, heads, n, y.shape[3])


def _unseen_left_out(x: Floats, seen: Floats) -> Floats:
    """Keys or values with 0 where no query looks."""
    step = seen.shape[1] // x.shape[1] if seen.shape[1] > 1 else 1
    return np.where(seen[:, ::step], x, 0.0)
