"""Pages of a pool: where the tokens of a sequence lie, which pages are free, and how pages are written."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.caches.scatter import along_axis, gather

__all__ = ["Pages", "claim", "free_pages", "put_pages", "put_tokens"]


@dataclass(frozen=True, eq=False)
class Pages:
    """Keys or values of all sequences, read through their page tables; `Stored` in the words of the fold."""

    pool: Array  # (pages, Hkv, page_size, W)
    table: Array  # (B, P) page of the pool; negative reads as NaN
    sound: bool  # whether no entry is negative

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, Hkv, P page_size, W)"""
        _, kv_heads, page, width = self.pool.shape
        batch, count = self.table.shape
        return batch, kv_heads, count * page, width

    def cut(self, item: Array, items: int, head: Array, heads: int, start: Array, size: int) -> Array:
        """Whole pages of some items and heads: (items, heads, size, W)."""
        backend = backend_of(self.pool)
        xp, (pages, kv_heads, page, width) = backend.xp, self.pool.shape
        count = size // page
        at = backend.tile(backend.tile(self.table, item, items, -2), start // page, count, -1)
        # One row for each page and head, so that only those which are asked for are read.
        rows = xp.reshape(self.pool, (pages * kv_heads, page, width))
        heads_at = xp.reshape(backend.arange(0, heads, self.pool) + head, (1, heads, 1))
        ids = xp.clip(at, 0, pages - 1)[:, None, :] * kv_heads + heads_at  # (items, heads, count)
        found = xp.reshape(backend.take(rows, xp.reshape(ids, (-1,)), 0), (items, heads, count, page, width))
        if not self.sound:
            nan = backend.asarray(float("nan"), found.dtype, found)
            found = xp.where((at < 0)[:, None, :, None, None], nan, found)
        return xp.reshape(found, (items, heads, size, width))


def free_pages(table: Array, pages: int) -> Array:
    """(pages,): True for the pages of a pool that no table names."""
    backend = backend_of(table)
    entries = backend.xp.reshape(table, (1, -1))
    return ~backend.xp.any(entries == backend.arange(0, pages, table)[:, None], axis=1)


def claim(table: Array, needed: Array, pages: int) -> Array:
    """The table with free pages where they are needed, `pages`, which is outside the pool, where none is left.

    >>> import numpy as np
    >>> claim(np.array([[1, -1], [-1, -1]]), np.array([[False, True], [True, False]]), 3)
    array([[ 1,  0],
           [ 2, -1]])
    """
    backend = backend_of(table)
    xp, free = backend.xp, free_pages(table, pages)
    order = xp.argsort(backend.astype(~free, xp.int32), stable=True)  # free ones first
    # The inverse of the order in which needed ones come first: how many of them come before each.
    first = xp.argsort(backend.astype(xp.reshape(~needed, (-1,)), xp.int32), stable=True)
    rank = xp.argsort(first, stable=True)
    there = rank < xp.sum(backend.astype(free, xp.int32))
    found = backend.astype(backend.take(order, xp.where(there, rank, 0), 0), table.dtype)
    found = xp.reshape(xp.where(there, found, pages), needed.shape)
    return xp.where(needed, found, table)


def put_pages(pool: Array, ids: Array, content: Array, arrives: Array) -> Array:
    """The pool with the slots of content (n, Hkv, page, W) that arrive (n, page) in the pages ids (n,), one pass over it.

    Every page asks what comes to it; ids outside the pool are nobody's.
    """
    backend = backend_of(pool)
    xp = backend.xp
    comes = ids[None, :] == backend.arange(0, pool.shape[0], pool)[:, None]  # (pages, n)
    source = xp.argmax(backend.astype(comes, xp.int32), axis=1)
    slots = xp.any(comes, axis=1)[:, None] & backend.take(arrives, source, 0)
    return xp.where(slots[:, None, :, None], backend.take(content, source, 0), pool)


def put_tokens(pool: Array, table: Array, length: Array, new: Array) -> Array:
    """The pool with new (B, Hkv, n, W), whose first tokens stand at length (B,), in the pages that the table names."""
    backend = backend_of(pool)
    xp, page = backend.xp, pool.shape[2]
    batch, kv_heads, n, width = new.shape
    if 0 in (batch, n, page):
        return pool
    most = (n + page - 2) // page + 1  # pages that n tokens can touch
    number = length[:, None] // page + backend.arange(0, most, pool)  # (B, most) of a page in its sequence
    slot = number[:, :, None] * page + backend.arange(0, page, pool)  # (B, most, page) positions
    token = xp.reshape(slot - length[:, None, None], (batch, most * page))
    arrives = (token >= 0) & (token < n)
    content = xp.reshape(gather(new, xp.where(arrives, token, 0)), (batch, kv_heads, most, page, width))
    content = xp.reshape(xp.permute_dims(content, (0, 2, 1, 3, 4)), (batch * most, kv_heads, page, width))
    last = table.shape[1] - 1
    ids = along_axis(table, xp.clip(number, 0, last), 1)
    # A page that nothing comes to is written by nobody: another item may have it.
    touched = xp.any(xp.reshape(arrives, (batch, most, page)), axis=2) & (number <= last)
    ids = xp.reshape(xp.where(touched, ids, -1), (-1,))
    return put_pages(pool, ids, content, xp.reshape(arrives, (batch * most, page)))
