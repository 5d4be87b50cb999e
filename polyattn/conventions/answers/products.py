"""Query times key: what most settings share, and so is kept for the next ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers.operands import heads_of, taken
from polyattn.conventions.answers.rounding import kept, off, rounded, stage_of
from polyattn.conventions.answers.turning import turned
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import seen_keys
from polyattn.truth.spec import Floats

__all__ = ["Products", "in_groups", "key_of", "multiplied"]

_FIELDS = ("layout", "operands", "norms", "rotary", "cache", "heads")
_ROUNDED_HERE = ("inputs", "operands", "turned", "query", "cache", "product")


class Products(NamedTuple):
    """The scores before their scale, and the values."""

    call: Call  # of the arrays that are taken
    product: Floats  # (B, Hq, rows, S)
    size: Floats  # likewise: it may be off by some u times this
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
    if stage == "inputs":
        used = used.of(*(rounded(x, low)[0] for x in (used.q, used.k, used.v)))
    q, k, v = turned(used, settings)
    computed = q is not used.q or k is not used.k
    q = q if rows is None else q[:, :, rows]
    q_else: Floats | float = 0.0  # how many U away they may be besides
    k_else: Floats | float = 0.0
    v_else: Floats | float = 0.0
    if settings.cache != "as stated":
        (k, k_else), (v, v_else) = kept(k, v, settings.cache, computed)
    if stage in ("operands", "turned", "query"):
        q, q_else = rounded(q, low, off(q, computed))
    if stage in ("operands", "turned", "cache"):
        k, k_else = rounded(k, low, off(k, computed))
    if stage in ("operands", "cache"):
        v, v_else = rounded(v, low, off(v, v is not used.v))
    k_size, v_size = np.abs(k) + k_else, v_size if v is call.v else np.abs(v)
    shared = v is call.v and settings.heads == "grouped"
    k, v = heads_of(k, v, q.shape[1], settings.heads)
    k_size, v_size = heads_of(k_size, v_size, q.shape[1], settings.heads)
    if np.ndim(v_else):
        _, v_else = heads_of(np.asarray(v_else), np.asarray(v_else), q.shape[1], settings.heads)
    if seen is not None:
        k, k_size, v, v_size = _unseen_left_out(k, k_size, v, v_size, seen, settings.poison)
    product = in_groups(q, k.mT)
    size = in_groups(np.abs(q) + q_else, k_size.mT)
    if stage == "product":
        product, apart = rounded(product, low, size)
        size = size + apart
    numbers = 2 * product.size + (0 if shared else 2 * v.size)
    return Products(used, product, size, v, v_size, v_else, poisoned, numbers)


def in_groups(x: Floats, y: Floats) -> Floats:
    """x @ y, where heads of x may share one of y: (B, Hq, n, m) @ (B, Hkv, m, p)."""
    b, heads, n, m = x.shape
    if y.shape[1] == heads:
        return np.asarray(x @ y)
    out: Floats = x.reshape(b, y.shape[1], heads // y.shape[1] * n, m) @ y
    return out.reshape(b, heads, n, y.shape[3])


def _unseen_left_out(
    k: Floats, k_size: Floats, v: Floats, v_size: Floats, seen: Floats, poison: str
) -> tuple[Floats, Floats, Floats, Floats]:
    """Keys and values with 0 where no query looks."""
    step = seen.shape[1] // k.shape[1] if seen.shape[1] > 1 else 1
    seen = seen[:, ::step]
    k, k_size = np.where(seen, k, 0.0), np.where(seen, k_size, 0.0)
    if poison != "leaks from values":
        v, v_size = np.where(seen, v, 0.0), np.where(seen, v_size, 0.0)
    return k, k_size, v, v_size
