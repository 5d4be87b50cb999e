"""Orders in which libraries lay out the same rows: heads, rotary pairs, packed matrices, and how to say them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["likely_orders", "order_of", "say_order"]


def say_order(order: Floats, packed: bool = True) -> str:
    """What a permutation is, in words: entry i of the new array is entry order[i] of the old one.

    packed: whether they may be queries, keys and values of one matrix.

    >>> say_order(np.array([0, 4, 1, 5, 2, 6, 3, 7]))
    'in rotary order of pairs (0, 1), (2, 3), ..., not of halves, in heads of 8'
    >>> say_order(np.array([2, 3, 0, 1]))
    'with the halves exchanged'
    """
    n = len(order)
    steps = np.unique((order - np.arange(n)) % n)
    if len(steps) == 1:
        step = int(steps[0])
        return "with the halves exchanged" if 2 * step == n else f"moved round by {min(step, n - step)}"
    if np.array_equal(order, np.arange(n)[::-1]):
        return "in reverse order"
    for outer, a, b, inner in _factors(n):
        if _swapped_is(order, outer, a, b, inner):
            return _said(outer, a, b, inner, packed)
    if packed and (said := _grouped(order)) is not None:
        return said
    for size in reversed(_divisors(n)[1:-1]):
        blocks = order.reshape(-1, size)
        if (np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % size == 0).all():
            moved = int((blocks[:, 0] // size != np.arange(len(blocks))).sum())
            return f"with {moved} of its {len(blocks)} blocks of {size} (heads?) in another order"
    return f"in another order, {int((order != np.arange(n)).sum())} of {n} moved"


def _said(outer: int, a: int, b: int, inner: int, packed: bool) -> str:
    """(outer, a, b, inner) read as (outer, b, a, inner), in words."""
    if inner == 1 and a == 2 and b > 1:
        return f"in rotary order of pairs (0, 1), (2, 3), ..., not of halves, in heads of {2 * b}"
    if inner == 1 and b == 2:
        return f"in rotary order of halves, not of pairs (0, 1), (2, 3), ..., in heads of {2 * a}"
    if packed and outer == 1 and a == 3:
        return f"with query, key and value of each of {b} heads together, not in thirds"
    if packed and outer == 1 and b == 3:
        return f"in thirds (all queries, all keys, all values), not head by head of {a}"
    within = "" if outer == 1 else f" in each of {outer} parts"
    return f"with heads of {inner} in the order of {b} x {a}, not {a} x {b}{within} (tiled for grouped, or the reverse)"


def _grouped(order: Floats) -> str | None:
    """Queries, keys and values for each kv head together, where there are more query heads, or the reverse."""
    n = len(order)
    for kv in _divisors(n)[1:]:
        for width in _divisors(n // kv):
            group = n // kv // width - 2
            if group < 2:
                continue
            cuts = np.split(np.arange(n), [kv * group * width, kv * (group + 1) * width])
            parts = [c.reshape(kv, -1, width) for c in cuts]
            together = np.concatenate(parts, 1).ravel()
            sizes = f"{kv * group} query and {kv} kv heads of {width}"
            if np.array_equal(order, together):
                return f"with queries, key and value of each kv head together, not all queries, all keys, all values ({sizes})"
            if np.array_equal(order, np.argsort(together)):
                return f"as all queries, all keys, all values, not kv head by kv head ({sizes})"
    return None


def likely_orders(n: int, width: int | None = None) -> Iterator[Floats]:
    """Permutations of n rows that come about: rotary orders, thirds, grouped heads, exchanged halves.

    width: that of a head, None where it is not known: then the usual ones.
    """
    widths = [d for d in (width,) if d] or [
        d for d in (8, 16, 32, 40, 48, 64, 80, 96, 128, 256) if n % d == 0
    ]
    seen = set[bytes]()
    for d in widths:
        if n % d:
            continue
        shapes = [(n // d, 2, d // 2, 1), (n // d, d // 2, 2, 1)] if d % 2 == 0 else []
        heads = n // d
        if heads % 3 == 0:
            shapes += [(1, 3, heads // 3, d), (1, heads // 3, 3, d)]
        shapes += [(1, a, heads // a, d) for a in _divisors(heads) if 1 < a < heads]
        for shape in shapes:
            order = np.arange(n).reshape(shape).swapaxes(1, 2).ravel()
            if order.tobytes() not in seen:
                seen.add(order.tobytes())
                yield order
    if n % 2 == 0:
        yield np.roll(np.arange(n), n // 2)
    yield np.arange(n)[::-1]


def order_of(old: Floats, new: Floats) -> Floats | None:
    """The permutation with new[i] == old[order[i]], exactly, row by row; None where there is none.

    >>> order_of(np.array([[1.0], [2.0]]), np.array([[2.0], [1.0]])).tolist()
    [1, 0]
    """
    if old.shape != new.shape or not len(old):
        return None
    rows_old, rows_new = _keys(old), _keys(new)
    by_old, by_new = np.argsort(rows_old, kind="stable"), np.argsort(rows_new, kind="stable")
    if not np.array_equal(rows_old[by_old], rows_new[by_new]):
        return None
    order = np.empty(len(old), int)
    order[by_new] = by_old
    return order


def _keys(x: Floats) -> Floats:
    """Rows as values that can be sorted."""
    flat = np.ascontiguousarray(x.reshape(len(x), -1)) + 0.0  # no negative zeros
    return flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _factors(n: int) -> Iterator[tuple[int, int, int, int]]:
    """n as a product of four, the middle two above 1."""
    for outer in _divisors(n):
        for a in _divisors(n // outer):
            if a == 1:
                continue
            for b in _divisors(n // outer // a):
                if b > 1:
                    yield outer, a, b, n // outer // a // b


def _swapped_is(order: Floats, outer: int, a: int, b: int, inner: int) -> bool:
    """Whether the order is that of (outer, a, b, inner) read as (outer, b, a, inner)."""
    if order[inner] != b * inner:  # the first entry behind the first block
        return False
    return np.array_equal(order, np.arange(len(order)).reshape(outer, a, b, inner).swapaxes(1, 2).ravel())
