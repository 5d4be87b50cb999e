"""A problem as kernels have it: arrays laid on tiles, and the scores of a tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polyattn.arrays import Array, is_array
from polyattn.implementations.fused import Rows
from polyattn.implementations.reference import allowed_at, dropout_at, scores_at
from polyattn.masks import key_lengths
from polyattn.places import Positions, standing
from polyattn.problem import Problem
from polyattn_jax.fused.split import Operand, Parts, split
from polyattn_jax.fused.trace import Sizes, laid

__all__ = [
    "KEY_AXIS",
    "ROW_AXIS",
    "Kernel",
    "Laid",
    "Lists",
    "Shape",
    "TileOf",
    "as_laid",
    "scoring",
    "sizes_of",
]

#: How an array lies on the scores (rows, keys) of a head. "query" and "key" have a width, (B|1, H|1, N, W); the others are
#: numbers: "by row" and "by key" (B|1, H|1, 1, N), "by score" (B|1, H|1, L, S), "by head" (B|1, H|1).
ROW_AXIS = {"query": 0, "by row": 0, "by score": 0}  # of what a program has of it
KEY_AXIS = {"key": 0, "by key": 1, "by score": 1}


class Laid(NamedTuple):
    """An array as a kernel reads or writes it."""

    array: Any  # or its shape and dtype
    kind: str


@dataclass(frozen=True)
class Shape:
    """The sizes of kernels for a problem."""

    batch: int
    heads: int  # that programs are for; those of the keys where all queries of a kv head are one tile
    group: int  # of these, how many read one head of the keys
    rows: int  # all rows of such a head
    keys: int
    tile: Sizes
    folded: int  # query heads in the rows of a head

    @property
    def tiles(self) -> tuple[int, int]:
        return -(-self.rows // self.tile.rows), -(-self.keys // self.tile.keys)

    def fold(self, x: Array) -> Array:
        """(B|1, Hq|1, L|1, W), by query head, as kernels have it."""
        if self.folded == 1 or (x.shape[1] == 1 and x.shape[2] == 1):
            return x
        batch, heads, rows, width = x.shape
        kv = 1 if heads == 1 else self.heads
        x = jnp.broadcast_to(
            jnp.reshape(x, (batch, kv, -1, rows, width)),
            (batch, kv, self.folded, self.rows // self.folded, width),
        )
        return jnp.reshape(x, (batch, kv, self.rows, width))

    def unfold(self, x: Array) -> Array:
        """The inverse, for (B, H, M, W)."""
        return (
            x if self.folded == 1 else jnp.reshape(x, (x.shape[0], -1, self.rows // self.folded, x.shape[-1]))
        )


def scoring(p: Problem, shape: Shape, only: frozenset[str]) -> Parts:
    """The scores of p, split for tiles: the library's masks, modifications and dropout."""
    ends = key_lengths(shape.keys)
    masks = {"open": None, "masked": ends if p.mask is None else p.mask & ends}

    def f(
        sizes: Sizes, score: Array, item: Array, head: Array, row: Array, key: Array
    ) -> dict[str, Array | None]:
        def cut(x: Array) -> Array:
            return laid(sizes, shape.fold(x))

        if shape.folded > 1:
            length = shape.rows // shape.folded
            head, row = head * shape.folded + row // length, row % length
        at = Positions(
            b=item + p.places.batch,
            h=head + p.places.head,
            item=item,
            row=row,
            column=key,
            q=standing(p.places.query, row, 2, cut),
            kv=standing(p.places.key, key, 3, cut),
            cut=cut,
        )
        bias = None if p.bias is None else p.backend.astype(cut(p.bias), jnp.float32)
        raw = score * (cut(p.scale) if is_array(p.scale) else p.scale)
        found: dict[str, Array | None] = {
            "keep": dropout_at(p, at),
            "sink": None if p.sinks is None else cut(p.sinks),
        }
        for kind, mask in masks.items():
            allowed = allowed_at(mask, at, bias)
            found[f"allowed {kind}"] = allowed
            found[f"scores {kind}"] = scores_at(p, at, raw, bias, allowed)
        return found

    return split(f, Sizes(shape.rows, shape.keys), shape.tile, (shape.batch, shape.heads), only)


@dataclass(frozen=True)
class Lists:
    """Visits as a platform has them: two lists of integers, and what is static of them."""

    first: Array
    second: Array
    items: int  # batch items with lists of their own, or 1
    steps: int  # of the longest list of an item
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel of a problem: what its programs read, keep, write and do."""

    shape: Shape
    parts: Parts
    lists: Lists | None  # of visits; None: every tile is met, side "score"
    side: str  # "query", "key" or "score": what a program is for
    body: Callable[[Any], None]
    inputs: Mapping[str, Laid]
    state: Any  # of (sizes, what there is before the first tile)
    outputs: tuple[Laid, ...]
    gathered: tuple[Operand, ...] = ()  # whose gradients a program sums
    inner: int = 1  # side "key": query heads that a program goes through
    splits: int = 1  # side "query": programs that share the visits of a tile

    def sink(self, load: Callable[[str], Array]) -> Array | None:
        """The scores of a sink, (rows|1, 1)."""
        known = {o.number: self.parts.shaped(o.number, load(o.name)) for o in self.parts.reads(("sink",))}
        sink = self.parts.run("sink", known)
        return None if sink is None else jnp.broadcast_to(sink, (sink.size, 1))

    @property
    def kinds(self) -> tuple[str, ...]:
        """How tiles are met."""
        return ("masked",) if self.lists is None else self.lists.kinds

    @property
    def over(self) -> tuple[int, int]:
        """Side "score": how many items and heads a tile of the output is summed over."""
        batch, heads = self.outputs[0].array.shape[:2]
        return self.shape.batch // batch, self.shape.heads // heads


class TileOf:
    """A tile of scores in a program: `Tile` of polyattn.implementations.fused.body."""

    def __init__(
        self, kernel: Kernel, kind: str, load: Callable[[str], Array], place: tuple[Array, Array]
    ) -> None:
        """kind: "open" or "masked". place: the numbers of its rows (rows, 1) and keys (1, keys)."""
        self._kernel, self._kind, self._load = kernel, kind, load
        parts = kernel.parts
        self._place = dict(zip((3, 4), place, strict=True))
        operands = parts.reads(("keep", f"allowed {kind}", f"scores {kind}"))
        self._operands = {o.number: load(o.name) for o in operands}
        self._known = self._with(self._operands)
        self.allowed = parts.run(f"allowed {kind}", self._known)
        self.keep = parts.run("keep", self._known)

    q = property(lambda self: self._load("q"))
    k = property(lambda self: self._load("k"))
    v = property(lambda self: self._load("v"))

    @property
    def rows(self) -> Rows:
        return Rows(*(self._load(name) for name in Rows._fields))

    def _with(self, operands: Mapping[int, Array]) -> dict[int, Array]:
        return {**self._place, **{n: self._kernel.parts.shaped(n, x) for n, x in operands.items()}}

    def scores(self, raw: Array) -> Array:
        return self._scores(raw, self._known)

    def _scores(self, raw: Array, known: Mapping[int, Array]) -> Array:
        found = self._kernel.parts.run(f"scores {self._kind}", {**known, 0: raw})
        return jnp.broadcast_to(found, raw.shape)

    def pull(self, raw: Array, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        gathered = self._kernel.gathered
        of = {o.number: self._operands[o.number] for o in gathered if o.number in self._operands}

        def scores(raw: Array, of: Mapping[int, Array]) -> Array:
            # What was made of these arrays before has to be made again.
            return self._scores(raw, self._with({**self._operands, **of}) if of else self._known)

        _, back = jax.vjp(scores, raw, of)
        d_raw, own = back(cotangent)
        zeros = {
            o.number: jnp.zeros(sizes_of(o.kind, self._kernel.shape.tile), jnp.float32) for o in gathered
        }
        return d_raw, tuple({**zeros, **own}.values())


def sizes_of(kind: str, tile: Sizes, width: int = 1) -> tuple[int, int]:
    """The shape of what a program has of an array."""
    return {
        "query": (tile.rows, width),
        "key": (tile.keys, width),
        "by row": (tile.rows, 1),
        "by key": (1, tile.keys),
        "by score": (tile.rows, tile.keys),
        "by head": (1, 1),
    }[kind]


def as_laid(operand: Operand) -> Laid:
    """An operand in the form in which kernels read it."""
    x = operand.array
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.int8 if operand.kind == "by score" else jnp.int32)
    if operand.kind == "by row":
        x = jnp.swapaxes(x, 2, 3)
    return Laid(x[:, :, 0, 0] if operand.kind == "by head" else x, operand.kind)
