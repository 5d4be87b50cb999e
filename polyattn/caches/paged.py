"""The paged cache: a pool of pages that sequences take when they need them, and may share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from polyattn import masks
from polyattn._attention import AuxRequest, attention
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches.folding import attend_stored, folds
from polyattn.caches.pages import Pages, claim, free_pages, put_pages, put_tokens
from polyattn.caches.reading import own_options
from polyattn.caches.scatter import along_axis
from polyattn.caches.tokens import check_tokens, held, lengths, room_for, standing, zeros
from polyattn.calls import answers, integral, real, shown, size
from polyattn.masks.algebra import Mask

__all__ = ["PagedCache"]

_WHO = "polyattn.caches.PagedCache"


class PagedCache(NamedTuple):
    """Keys and values in pages of a pool: no sequence reserves more than a page, and sequences share what they have in common.

        token p of item b lies in slot p % page_size of page table[b, p // page_size]

        cache = PagedCache.empty(batch, kv_heads, head_dim, pages=, page_size=, pages_per_sequence=, like=x)
        cache = cache.append(k, v)                       # takes free pages where a new one begins
        out = cache.attend(q, is_causal=True, query_offset=before)    # folds over the pages, gathers nothing
        cache = cache.fork([0, 0, 1])                    # items 0 and 1 go on from the same text, whose pages they share
        cache = cache.release(done)                      # the pages of these items are free again

    A page is free if no table names it, so there is no other list to keep, and all of this is one value that compilers
    trace. A page that items share is never written: full pages are shared, and `fork` copies the one that is not full.
    `key` and `value` gather everything, for whoever asks for it.

    A table that names pages outside the pool below length, no page left, and more tokens than pages_per_sequence holds
    are ValueErrors. Where a compiler traces that they cannot be known: then what is missing reads as NaN, and so does
    everything that attends to it. `append` passes over the pool once. Source: Kwon 2023, arXiv:2309.06180, section 4.

    >>> import numpy as np
    >>> cache = PagedCache.empty(1, 1, 2, pages=5, page_size=2, pages_per_sequence=3, like=np.zeros(()))
    >>> cache = cache.append(np.ones((1, 1, 3, 2)), np.ones((1, 1, 3, 2))).fork([0, 0])
    >>> cache.table, cache.length  # page 0 is shared, page 1 is not full
    (array([[ 0,  1, -1],
           [ 0,  2, -1]], dtype=int32), array([3, 3], dtype=int32))
    """

    key_pages: Array  # (pages, Hkv, page_size, D)
    value_pages: Array  # (pages, Hkv, page_size, E)
    table: Array  # (B, pages_per_sequence) integers; -1 = no page
    length: Array  # (B,) how many tokens are there

    @property
    def in_order(self) -> bool:
        """Slot i of what is gathered holds token i."""
        return True

    @classmethod
    @answers(f"{_WHO}.empty", line="PagedCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        pages: int,
        page_size: int,
        pages_per_sequence: int,
        like: Array,
    ) -> PagedCache:
        """A cache without tokens in the library, dtype and on the device of `like`."""
        who = f"{_WHO}.empty"
        pool = {"pages": size(who, "pages", pages, 1), "kv_heads": kv_heads}
        pool |= {"page_size": size(who, "page_size", page_size, 1)}
        head_dim = size(who, "head_dim", head_dim, 1)
        count = size(who, "pages_per_sequence", pages_per_sequence, 1)
        backend = real(who, "like", like)
        kind = backend.xp.int32
        return cls(
            zeros(who, like, **pool, head_dim=head_dim),
            zeros(who, like, **pool, value_dim=head_dim if value_dim is None else value_dim),
            backend.astype(zeros(who, like, batch=batch, count=count), kind) - 1,
            backend.astype(zeros(who, like, batch=batch), kind),
        )

    @property
    def pages(self) -> int:
        """The number of pages of the pool."""
        return int(self.key_pages.shape[0])

    @property
    def page_size(self) -> int:
        """The number of tokens of a page."""
        return int(self.key_pages.shape[2])

    @property
    def capacity(self) -> int:
        """The number of tokens that a sequence has room for."""
        return int(self.table.shape[1]) * self.page_size

    @property
    def free(self) -> Array:
        """(pages,): True for the pages that nobody has."""
        return free_pages(self.table, self.pages)

    @property
    def key(self) -> Array:
        """(B, Hkv, capacity, D), gathered: a copy of every sequence."""
        return self._whole(self.key_pages)

    @property
    def value(self) -> Array:
        """(B, Hkv, capacity, E), gathered."""
        return self._whole(self.value_pages)

    @property
    def mask(self) -> Mask:
        """Hides what is not there yet."""
        return masks.key_lengths(self.length)

    @property
    def positions(self) -> Array:
        """The index of a slot where a token is, -1 where none is yet: (B, capacity)."""
        backend = backend_of(self.table)
        return standing(
            backend, backend.arange(0, self.capacity, self.table), lengths(self.length, self.table)
        )

    @answers(f"{_WHO}.append", line="cache.append")
    def append(self, key: Array, value: Array) -> PagedCache:
        """The cache with these tokens behind its own: key (B, Hkv, n, D), value (B, Hkv, n, E), in pages that were free."""
        who, backend = f"{_WHO}.append", backend_of(self.table)
        n = check_tokens(
            who, key, value, _like(self.key_pages, self.table), _like(self.value_pages, self.table)
        )
        room_for(who, n, held(who, self.length, tuple(self.table.shape[:1])), self.capacity)
        first = backend.arange(0, self.table.shape[1], self.table) * self.page_size  # token of every page
        length = self.length[:, None]
        table = self._claim(who, self.table, (first >= length) & (first < length + n) & (self.table < 0))
        return PagedCache(
            put_tokens(self.key_pages, table, self.length, key),
            put_tokens(self.value_pages, table, self.length, value),
            table,
            self.length + n,
        )

    @answers(f"{_WHO}.fork", line="cache.fork")
    def fork(self, items: Sequence[int] | Array) -> PagedCache:
        """A cache whose item i goes on from item items[i] of this one, (n,) integers: beams, or answers to one prompt.

        What several go on from they share, but for a last page that is not full, of which each has its own. An item that
        nobody goes on from is let go.
        """
        who, backend = f"{_WHO}.fork", backend_of(self.table)
        xp = backend.xp
        if not is_array(items):
            batch = self.table.shape[0]
            numbers = [size(who, "every item", i) for i in items]
            if numbers and max(numbers) >= batch:
                raise ValueError(
                    f"{who}: expected items below {batch}, got {max(numbers)}; they are batch items"
                )
            items = backend.asarray(numbers, xp.int32, self.table)
        integral(who, "items", items)
        length = backend.take(self.length, items, 0)
        first = backend.arange(0, self.table.shape[1], self.table) * self.page_size
        # Pages that are named in advance are for one item.
        table = xp.where(first < length[:, None], backend.take(self.table, items, 0), -1)
        number = backend.arange(0, items.shape[0], items)
        again = xp.any((items[:, None] == items[None, :]) & (number[None, :] < number[:, None]), axis=1)
        begun = (first < length[:, None]) & (length[:, None] < first + self.page_size) & again[:, None]
        taken = self._claim(who, xp.where(begun, -1, table), begun)
        # The one page of each item that may be copied: no more than these are read.
        last = xp.clip(length[:, None] // self.page_size, 0, self.table.shape[1] - 1)
        source, ids, copied = (along_axis(x, last, 1)[:, 0] for x in (table, taken, begun))
        ids, source = xp.where(copied, ids, -1), xp.clip(source, 0, self.pages - 1)
        whole = xp.ones((ids.shape[0], self.page_size), dtype=xp.bool, device=backend.device(self.table))
        key_pages, value_pages = (
            put_pages(pool, ids, backend.take(pool, source, 0), whole)
            for pool in (self.key_pages, self.value_pages)
        )
        return PagedCache(key_pages, value_pages, taken, length)

    @answers(f"{_WHO}.release", line="cache.release")
    def release(self, done: Array) -> PagedCache:
        """The cache without the tokens of the items that are done, (B,) bools, whose pages are free unless others share them."""
        who, xp = f"{_WHO}.release", backend_of(self.table).xp
        if not is_array(done) or tuple(done.shape) != tuple(self.length.shape) or done.dtype != xp.bool:
            raise ValueError(
                f"{who}: expected done to be an array of {self.length.shape[0]} bools, one for each item, got "
                f"{shown(done)}; compare, as in last_token == end"
            )
        return self._replace(
            table=xp.where(done[:, None], -1, self.table), length=xp.where(done, 0, self.length)
        )

    @answers(f"{_WHO}.attend", line="cache.attend")
    def attend(
        self,
        query: Array,
        *,
        return_aux: AuxRequest | None = None,
        implementation: Any = "auto",
        **options: Any,
    ) -> Any:
        """`attention` of query (B, Hq, L, D) to what is there: a fold over tiles of pages, merged as softmax averages.

        Takes the options of `attention` but for those that say where keys stand, and a layout. An implementation other
        than "auto" and "blockwise", and values besides lse, have all keys gathered. No derivative: for that, gather.
        """
        who = f"{_WHO}.attend"
        options = own_options(who, self, options)
        if not folds(who, query, implementation, return_aux):
            given = {"return_aux": return_aux, "implementation": implementation}
            return attention(query, self.key, self.value, **given, **options)
        table, sound = self._readable(who)
        key, value = (Pages(pool, table, sound) for pool in (self.key_pages, self.value_pages))
        like, given = self.key_pages, {"unit": self.page_size, "return_aux": return_aux}
        return attend_stored(who, query, key, value, like, **given, **options)

    def _whole(self, pool: Array) -> Array:
        table, sound = self._readable(f"{_WHO}.key")
        pages = Pages(pool, table, sound)
        batch, kv_heads, keys, _ = pages.shape
        return pages.cut(0, batch, 0, kv_heads, 0, keys)

    def _readable(self, who: str) -> tuple[Array, bool]:
        """The table with page 0 beyond length, where nobody looks, and -1 for what cannot be read; whether all can be."""
        backend = backend_of(self.table)
        xp, length = backend.xp, self.length[:, None]
        used = backend.arange(0, self.table.shape[1], self.table) * self.page_size < length
        wrong = used & ((self.table < 0) | (self.table >= self.pages) | (length > self.capacity))
        sound = backend.is_concrete(wrong)
        if sound and bool(xp.any(wrong)):
            named = xp.where(used, self.table, 0)
            least, most, longest = (
                int(f(x)) for f, x in ((xp.min, named), (xp.max, named), (xp.max, length))
            )
            raise ValueError(
                f"{who}: expected pages from 0 to {self.pages - 1} in the table below length, and lengths up to "
                f"{self.capacity}, got pages from {least} to {most} and lengths up to {longest}; let append fill the table"
            )
        return xp.where(wrong, -1, xp.where(used, self.table, 0)), sound

    def _claim(self, who: str, table: Array, needed: Array) -> Array:
        """The table with a free page wherever one is needed."""
        backend = backend_of(table)
        if backend.is_concrete(table) and backend.is_concrete(needed):
            xp = backend.xp
            with backend.eager():
                wanted, free = (
                    int(xp.sum(backend.astype(x, xp.int32))) for x in (needed, free_pages(table, self.pages))
                )
            if wanted > free:
                raise ValueError(
                    f"{who}: expected at most {free} more pages, got {wanted}; the pool has {self.pages}, so make a "
                    "larger one, or release items"
                )
        return claim(table, needed, self.pages)


def _like(pool: Array, table: Array) -> Array:
    """What stands for the keys of all items where shapes are compared."""
    _, kv_heads, _, width = pool.shape
    return backend_of(pool).xp.broadcast_to(pool[:1, :, :1, :], (table.shape[0], kv_heads, 1, width))
