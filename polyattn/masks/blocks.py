"""Masks of blocks that are written at once: block after block, and the two halves that train block diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyattn.arrays import Array
from polyattn.calls import answers
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import positive
from polyattn.masks.relative import causal, chunked
from polyattn.masks.tiles import EMPTY, FULL, PARTIAL, UNSURE, Box, Tile, decide, join
from polyattn.masks.words import word
from polyattn.places import FAR, Positions

NOISY, CLEAN = 0, 1
Part = tuple[int, int, int]  # a half, and the first and the last of its blocks


@dataclass(frozen=True, repr=False)
class BlockDiffusion(Mask):
    """Noisy tokens, then the same ones clean: what a noisy block and a clean block see."""

    n: int
    size: int
    compares_positions = True

    def allowed(self, at: Positions) -> Array:
        (q, q_noisy, q_clean), (kv, kv_noisy, kv_clean) = (self._cut(x) for x in (at.q, at.kv))
        alike = (q_noisy & kv_noisy) | (q_clean & kv_clean)
        return (alike & (q == kv)) | ((q_noisy | q_clean) & kv_clean & (kv < q))

    def _cut(self, position: Array) -> tuple[Array, Array, Array]:
        """The block of each position in its half, whether it is noisy, and whether it is clean."""
        n = self.n
        return (
            position % n // self.size,
            (position >= 0) & (position < n),
            (position >= n) & (position < 2 * n),
        )

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        tile = join(self._meet(q, kv) for q in self._parts(q0, q1) for kv in self._parts(k0, k1))
        inside = min(q0, k0) >= 0 and max(q1, k1) < 2 * self.n
        return PARTIAL if tile is FULL and not inside else tile

    def _parts(self, first: int, last: int) -> Iterator[Part]:
        for half in (NOISY, CLEAN):
            start = half * self.n
            least, most = max(first - start, 0), min(last - start, self.n - 1)
            if least <= most:
                yield half, least // self.size, most // self.size

    @staticmethod
    def _meet(queries: Part, keys: Part) -> Tile:
        (q_half, q0, q1), (k_half, k0, k1) = queries, keys
        if k_half == NOISY:
            if q_half == CLEAN:
                return EMPTY
            return decide(q0 == q1 == k0 == k1, q1 < k0 or k1 < q0)
        itself = int(q_half == CLEAN)
        return decide(k1 < q0 + itself, k0 >= q1 + itself)

    def __str__(self) -> str:
        return f"block_diffusion({self.n}, {self.size})"


@word
@answers("polyattn.masks.block_causal")
def block_causal(size: int) -> Mask:
    """kv // size <= q // size: causal between blocks of `size` positions, open within one. chunked(size) | causal().

    >>> print(block_causal(2).show(4))
    # # . .
    # # . .
    # # # #
    # # # #
    """
    return chunked(positive(size, "block_causal", "size")) | causal()


@word
@answers("polyattn.masks.block_diffusion")
def block_diffusion(n: int, size: int) -> Mask:
    """The mask under which block diffusion is trained, on 2 n tokens: n noisy ones, then the same n clean.

    With the block b(p) = (p mod n) // size of a position p < 2 n, a query may attend to a key if

        both are noisy and b(q) == b(kv),                     its own noisy block,
        the query is noisy, the key clean, b(kv) < b(q),      the clean blocks before it,
        or both are clean and b(kv) <= b(q)                   block_causal(size) on the clean half.

    To sample needs `block_causal(size)` alone. A position that is not one of the 2 n sees nobody and is seen by nobody.
    Source: Arriola 2025, "Block diffusion", arXiv:2503.09573, the mask of its vectorised training.

    >>> print(block_diffusion(4, 2).show(8))
    # # . . . . . .
    # # . . . . . .
    . . # # # # . .
    . . # # # # . .
    . . . . # # . .
    . . . . # # . .
    . . . . # # # #
    . . . . # # # #
    """
    n, size = positive(n, "block_diffusion", "n"), positive(size, "block_diffusion", "size")
    if n > FAR // 2:
        raise ValueError(
            f"polyattn.masks.block_diffusion: expected n <= 2**29, got {n}; positions lie below 2**30"
        )
    return BlockDiffusion(n, size)
