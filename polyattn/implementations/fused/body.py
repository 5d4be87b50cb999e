"""The engine as one kernel: what one program of it does, on any chip.

    forward   finish(fold(visits, lambda tile, seen: merge(seen, lift(scores(tile), v)), nothing))
    backward  fold(visits, lambda tile, sums: sums + pullback(tile), zeros), for queries and for keys

A host fetches tiles, keeps what is folded and writes what comes out: `Program`. The scores of a tile, from the products
to -inf where a key is hidden, are the library's own masks, modifications and dropout: `Tile`. Everything has rank 2,
(rows, keys) of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from polyattn.arrays import Array, backend_of
from polyattn.normalizers.softmax import Partial, beside, finish, lift, log_sum, merge


class Rows(NamedTuple):
    """What the query rows of a tile send back."""

    lse: Array  # (rows, 1), inf for rows that are not there
    d_out: Array  # (rows, E)
    delta: Array  # (rows, 1)


class Tile(Protocol):
    """A tile of scores, fetched."""

    q: Array  # (rows, D)
    k: Array  # (keys, D)
    v: Array  # (keys, E)
    allowed: Array | None  # (rows, keys); None where every query may attend to every key
    keep: Array | None  # dropout's factors
    rows: Rows  # backward

    def scores(self, raw: Array) -> Array:
        """From q . k to the scores of the softmax."""

    def pull(self, raw: Array, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        """The gradients of `scores` for q . k, and for the arrays that this program gathers."""


class Program(Protocol):
    """A tile of queries or of keys, and the tiles of the other side that it has to meet."""

    sink: Array | None  # (rows|1, 1)

    def fold(self, step: Callable[[Tile, Any], Any], finished: Callable[[Any], None]) -> None:
        """finished(step(last, ... step(first, nothing)))"""

    def write(self, *results: Array) -> None: ...


def average(program: Program) -> None:
    """Forward, a tile of queries: the average over its keys, and lse."""

    def step(tile: Tile, seen: Partial) -> Partial:
        met = _meet(tile)
        return merge(seen, lift(tile.scores(met.raw), _weighed(met.v, tile.keep), tile.keep))

    def finished(seen: Partial) -> None:
        sink = program.sink
        whole = seen if sink is None else merge(seen, beside(sink, seen.acc.shape[-1]))
        program.write(finish(whole), log_sum(seen))

    program.fold(step, finished)


def pull_queries(program: Program) -> None:
    """Backward, a tile of queries: dq."""

    def step(tile: Tile, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        back = _pull(tile)
        return _add(sums, (_product(back.d_raw, back.k),))

    program.fold(step, lambda sums: program.write(*sums))


def pull_keys(program: Program) -> None:
    """Backward, a tile of keys: dk and dv, summed as (D, keys) and (E, keys), so that no tile of scores is turned."""

    def step(tile: Tile, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        back = _pull(tile)
        return _add(sums, (_product(back.q.T, back.d_raw), _product(back.d_out.T, back.w)))

    program.fold(step, lambda sums: program.write(*(x.T for x in sums)))


def pull_scores(program: Program) -> None:
    """Backward, a tile of anything: what the arrays in its scores get."""
    program.fold(lambda tile, sums: _add(sums, _pull(tile).own), lambda sums: program.write(*sums))


class _Met(NamedTuple):
    q: Array
    k: Array
    v: Array
    raw: Array  # q . k
    sees: Array | None  # (rows, 1): rows that see a key of the tile


def _meet(tile: Tile) -> _Met:
    """The products of a tile; what nobody in it may see, and who sees nothing, replaced by 0."""
    q, k, v, allowed = tile.q, tile.k, tile.v, tile.allowed
    sees = None
    if allowed is not None:
        xp = backend_of(q).xp
        ones = xp.astype(xp.broadcast_to(allowed, (q.shape[0], k.shape[0])), xp.float32)
        seen = xp.reshape(xp.max(ones, axis=0), (-1, 1)) > 0
        sees = xp.max(ones, axis=1, keepdims=True) > 0
        q, k, v = _where(sees, q), _where(seen, k), _where(seen, v)
    return _Met(q, k, v, _product(q, k.T), sees)


class _Back(NamedTuple):
    q: Array
    k: Array
    d_out: Array
    w: Array  # the weights, with dropout
    d_raw: Array
    own: tuple[Array, ...]


def _pull(tile: Tile) -> _Back:
    """w = exp(s - lse); ds = w (do . v - delta); d_raw is what the scores make of it."""
    (q, k, v, raw, sees), (lse, d_out, delta), keep = _meet(tile), tile.rows, tile.keep
    d_out = d_out if sees is None else _where(sees, d_out)
    w = backend_of(raw).xp.exp(tile.scores(raw) - lse)
    kept = w if keep is None else w * keep
    d_raw, own = tile.pull(raw, kept * _product(d_out, v.T) - w * delta)
    return _Back(q, k, d_out, kept, d_raw, own)


def _weighed(v: Array, keep: Array | None) -> Array:
    """Values to be averaged: with dropout few weights count, and rounded to half precision they would be seen.

    By count of operations the exact product is less than the words of the counter are.
    """
    return v if keep is None else backend_of(v).astype(v, keep.dtype)


def _where(condition: Array, x: Array) -> Array:
    xp = backend_of(x).xp
    return xp.where(condition, x, xp.zeros_like(x))


def _product(a: Array, b: Array) -> Array:
    return backend_of(a).matmul(a, b)


def _add(sums: tuple[Array, ...], more: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(a + b for a, b in zip(sums, more, strict=True))
