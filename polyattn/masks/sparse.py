"""Masks of long sequences: tokens that everybody sees, strides, and random blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.random import key_of, threefry2x32
from polyattn.calls import answers
from polyattn.masks.algebra import Mask
from polyattn.masks.arbitrary import from_array
from polyattn.masks.fitting import clipped, positive
from polyattn.masks.relative import causal, dilated, window
from polyattn.masks.tiles import EMPTY, UNSURE, Box, Tile, decide
from polyattn.masks.words import word
from polyattn.places import FAR, Positions, look_up


@dataclass(frozen=True, repr=False)
class Global(Mask):
    """Places whose query or whose key is at one of some positions."""

    runs: tuple[tuple[int, int], ...]  # from a start to a stop, in order, none touching the next
    compares_positions = True  # it sets rows against keys: which row is global depends on where it stands

    def allowed(self, at: Positions) -> Array:
        return self._among(at.q) | self._among(at.kv)

    def _among(self, position: Array) -> Array:
        found = position != position
        for start, stop in self.runs:
            found = found | ((start <= position) & (position < stop))
        return found

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        (all_q, any_q), (all_kv, any_kv) = self._span(q0, q1), self._span(k0, k1)
        return decide(all_q or all_kv, not (any_q or any_kv))

    def _span(self, first: int, last: int) -> tuple[bool, bool]:
        """Whether all and whether any of the positions from first to last are global."""
        return (
            any(start <= first and last < stop for start, stop in self.runs),
            any(start <= last and first < stop for start, stop in self.runs),
        )

    def __str__(self) -> str:
        said = ", ".join(str(a) if b - a == 1 else f"{a}..{b - 1}" for a, b in self.runs)
        return f"global_tokens({said})"


@dataclass(frozen=True, repr=False)
class RandomBlocks(Mask):
    """Every block of queries sees a number of blocks of keys that a seed draws."""

    n: int
    size: int
    count: int
    seed: int
    drawn: tuple[tuple[int, ...], ...] = field(
        compare=False
    )  # by the numbers above, once: compilers see a table
    compares_positions = True

    def allowed(self, at: Positions) -> Array:
        rows = clipped(at.q, 0, self.n - 1) // self.size
        block = at.kv // self.size
        seen = at.kv != at.kv
        for column in zip(*self.drawn, strict=True):  # the first block of every row, the second, ...
            seen = seen | (block == look_up(column, rows, at.kv.dtype))
        inside = (at.q >= 0) & (at.q < self.n)
        return inside & (at.kv < self.n) & seen

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        inside = min(q0, k0) >= 0 and max(q1, k1) < self.n
        q0, q1, k0, k1 = max(q0, 0), min(q1, self.n - 1), max(k0, 0), min(k1, self.n - 1)
        if q0 > q1 or k0 > k1:
            return EMPTY
        first, last = k0 // self.size, k1 // self.size
        rows = self.drawn[q0 // self.size : q1 // self.size + 1]
        seen = [bisect_left(drawn, last + 1) - bisect_left(drawn, first) for drawn in rows]
        return decide(inside and min(seen) == last - first + 1, not any(seen))

    def __str__(self) -> str:
        return f"random_blocks({self.n}, {self.size}, {self.count}, {self.seed})"


def _draw(blocks: int, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """`count` different blocks for each, in order: the first cards of a shuffle of its own."""
    key = key_of(seed, 0)
    drawn = []
    for block in range(blocks):
        moved: dict[int, int] = {}  # cards that do not lie where their number says
        cards = []
        for i in range(count):
            word, _ = threefry2x32(*key, block, i)
            at = i + (word & 0xFFFFFFFF) % (blocks - i)
            cards.append(moved.get(at, at))
            moved[at] = moved.get(i, i)
        drawn.append(tuple(sorted(cards)))
    return tuple(drawn)


@word
@answers("polyattn.masks.global_tokens")
def global_tokens(at: int | Sequence[int] | Array) -> Mask:
    """Tokens that see everybody and that everybody sees: q or kv is one of them.

    at: an integer, the first `at` positions; a list, those positions; or bools (L,) or (batch, L) of as many rows as keys, by
    index. ``window(256, 256) | global_tokens([0])`` is Longformer's mask (Beltagy 2020, arXiv:2004.05150); what
    keys alone are for everybody is `prefix`.

    >>> print((window(1, 1) | global_tokens([0, 3])).show(6))
    # # # # # #
    # # # # . .
    # # # # . .
    # # # # # #
    # . . # # #
    # . . # # #
    """
    who = "polyattn.masks.global_tokens"
    if is_array(at):
        if not backend_of(at).isdtype(at.dtype, "bool") or at.ndim not in (1, 2):
            raise ValueError(
                f"{who}: expected an array of bools of shape (L,) or (batch, L), got {at.dtype} of shape "
                f"{tuple(at.shape)}; positions go in as a list of integers"
            )
        rows = at[:, None] if at.ndim == 1 else at[:, None, :, None]
        keys = at[None, :] if at.ndim == 1 else at[:, None, None, :]
        return from_array(rows) | from_array(keys)
    if not isinstance(at, (list, tuple)):
        count = positive(at, "global_tokens", "a number of tokens", 0)
        return Global(((0, count),) if count else ())
    runs: list[tuple[int, int]] = []
    for position in sorted({positive(n, "global_tokens", "every position", 0) for n in at}):
        start = runs.pop()[0] if runs and runs[-1][1] == position else position
        runs.append((start, position + 1))
    return Global(tuple(runs))


@word
@answers("polyattn.masks.strided")
def strided(stride: int) -> Mask:
    """causal() & (window(stride, 0) | dilated(stride)): the last `stride` keys, and every stride-th before them.

    Both patterns in every head; for one pattern a head, write a function of h. Source: Child 2019, arXiv:1904.10509, section 4.

    >>> print(strided(3).show(8))
    # . . . . . . .
    # # . . . . . .
    # # # . . . . .
    # # # # . . . .
    . # # # # . . .
    . . # # # # . .
    # . . # # # # .
    . # . . # # # #
    """
    stride = positive(stride, "strided", "stride")
    return causal() & (window(stride, 0) | dilated(stride))


@word
@answers("polyattn.masks.random_blocks")
def random_blocks(n: int, size: int, count: int, seed: int = 0) -> Mask:
    """Every block of `size` queries sees `count` blocks of keys, drawn without replacement from those of n tokens.

    What is drawn is a function of the seed, by the counter-based generator of dropout in Python's integers: the same on
    every library, and for all items and heads. Positions count, those beyond n see and are seen by nobody.
    ``window(w, w) | global_tokens(g) | random_blocks(n, size, 3)`` is BigBird's mask but for blocks that are drawn although
    the window shows them. Source: Zaheer 2020, arXiv:2007.14062, section 2.

    >>> print(random_blocks(8, 2, 1).show(8))
    # # . . . . . .
    # # . . . . . .
    . . . . # # . .
    . . . . # # . .
    . . # # . . . .
    . . # # . . . .
    . . . . # # . .
    . . . . # # . .
    """
    n, size = positive(n, "random_blocks", "n"), positive(size, "random_blocks", "size")
    count, seed = positive(count, "random_blocks", "count", 0), positive(seed, "random_blocks", "the seed", 0)
    blocks = -(-n // size)
    if n >= FAR or count > blocks:
        raise ValueError(
            f"polyattn.masks.random_blocks: expected fewer than 2**30 tokens and at most {blocks} blocks, all there are, got "
            f"{n} and {count}; draw fewer"
        )
    return RandomBlocks(n, size, count, seed, _draw(blocks, count, seed))
