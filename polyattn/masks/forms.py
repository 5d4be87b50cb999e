"""The forms that a mask can take: predicate, bool array, bias, tiles, FlexAttention's BlockMask, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Self

from polyattn.arrays import (
    Array,
    Backend,
    backend_named,
    backend_of,
    eagerly,
    is_array,
    numpy_backend,
    readable,
)
from polyattn.calls import answers, array, check_dtype, integer, integral, shown, size
from polyattn.masks.tiles import Box, Tile, classify, grid
from polyattn.places import Frame, Places, Positions, check_near, gather, positions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHO = "polyattn.masks.Mask"


def _check_offsets(query_offset: Any, key_offset: Any) -> None:
    for name, offset in (("query_offset", query_offset), ("key_offset", key_offset)):
        if is_array(offset):
            integral("polyattn.masks", name, offset)
        else:
            integer("polyattn.masks", name, offset)


class Forms(ABC):
    """What every mask gives, made of two things that each says: `allowed` and `box`."""

    #: Whether the mask compares query positions with key positions, so that it needs to know the offset.
    compares_positions = False
    #: Whether it depends on kv - q alone, so that tiles along a diagonal look the same.
    relative = False
    #: Whether `tile` is exact (False once an arbitrary function takes part).
    exact = True

    @abstractmethod
    def allowed(self, at: Positions) -> Array:
        """Bools broadcasting to the tile of scores at those positions."""

    @abstractmethod
    def box(self, box: Box) -> Tile:
        """EMPTY, FULL or PARTIAL on a rectangle of the score matrix."""

    @abstractmethod
    def __str__(self) -> str: ...

    def fit(self, frame: Frame) -> Self:
        """This mask with its arrays checked against a score matrix and brought to full rank."""
        return self

    def read(self) -> Self:
        """This mask with its numbers read from arrays once, for a pass over many boxes."""
        return self

    def arrays(self) -> Iterator[Array]:
        """The arrays that the mask holds."""
        if not is_dataclass(self):
            raise TypeError(
                f"polyattn.masks: expected {type(self).__name__} to be a dataclass, whose fields tell its arrays, got "
                "another class; write @dataclass(frozen=True) over it"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Forms):
                yield from value.arrays()
            elif is_array(value):
                yield value

    def batch_size(self) -> int:
        """The batch axis of the mask's arrays, 1 if they have none."""
        return 1

    def head_count(self) -> int:
        """The head axis of the mask's arrays, 1 if they have none."""
        return 1

    def own_size(self) -> tuple[int | None, int | None]:
        """The rows and keys that the mask's arrays are made for, None where they say nothing."""
        return None, None

    def least_size(self) -> tuple[int, int]:
        """The rows and keys that there must be at least."""
        return 0, 0

    def __repr__(self) -> str:
        return f"<mask {self}>"

    # forms

    @answers(_WHO, line="mask")
    def __call__(self, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return self.allowed(gather(b, h, q_idx, kv_idx))

    @property
    def mask_mod(self) -> Self:
        """The mask as a function (b, h, q_idx, kv_idx) -> bool, as FlexAttention takes it."""
        return self

    @answers(f"{_WHO}.dense", line="mask.dense")
    def dense(
        self,
        queries: int,
        keys: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        query_offset: int | Array = 0,
        key_offset: int | Array = 0,
        like: Array | None = None,
    ) -> Array:
        """The mask as a bool array, True = may attend.

        Shape (queries, keys), or (batch, heads, queries, keys) as soon as `batch` or `heads` is
        given; `keys` defaults to `queries`. The array is of the library of `like`, else of the
        mask's own arrays, else NumPy.

        >>> from polyattn import masks
        >>> masks.causal().dense(2)
        array([[ True, False],
               [ True,  True]])
        """
        keys = queries if keys is None else keys
        for name, count in (("queries", queries), ("keys", keys), ("batch", batch), ("heads", heads)):
            if count is not None or name in ("queries", "keys"):
                size("polyattn.masks", name, count, advice="pass a number of rows or items")
        if like is not None:
            array("polyattn.masks", "like", like)
        _check_offsets(query_offset, key_offset)
        backend, like = self._library(like)
        batches = 1 if batch is None else batch
        frame = Frame(batches, 1 if heads is None else heads, queries, keys, (batches,), "polyattn.masks")
        shape = (frame.batch, frame.heads, queries, keys)
        check_near(frame.who, [("query_offset", query_offset, queries), ("key_offset", key_offset, keys)])
        at = positions(backend, like, shape, Places(query_offset, key_offset))
        full = backend.xp.broadcast_to(self.fit(frame).allowed(at), shape)
        return full if batch is not None or heads is not None else full[0, 0, ...]

    @answers(f"{_WHO}.additive", line="mask.additive")
    def additive(self, queries: int, keys: int | None = None, *, dtype: Any = None, **where: Any) -> Array:
        """The mask as a bias: 0 where a query may attend, -inf where not. Arguments as for `dense`.

        >>> from polyattn import masks
        >>> masks.causal().additive(2)
        array([[  0., -inf],
               [  0.,   0.]])
        """
        allowed = self.dense(queries, keys, **where)
        backend = backend_of(allowed)
        xp = backend.xp
        check_dtype("polyattn.masks", backend, dtype)
        if dtype is None:
            dtype = xp.asarray(0.0).dtype
        zero = backend.asarray(0.0, dtype, allowed)
        return xp.where(allowed, zero, backend.asarray(-xp.inf, dtype, allowed))

    @answers(f"{_WHO}.tile", line="mask.tile")
    def tile(
        self,
        queries: range,
        keys: range,
        *,
        b: int | None = None,
        h: int | None = None,
        query_offset: int | Array = 0,
        key_offset: int | Array = 0,
    ) -> Tile:
        """EMPTY, FULL or PARTIAL: what an engine need not compute, need not mask, or must mask.

        `queries` and `keys` are ranges of row and key indices, `b` and `h` a batch item and a head
        (None: all of them at once). Exact, except that an arbitrary function counts as PARTIAL.

        >>> from polyattn import masks
        >>> masks.causal().tile(range(0, 4), range(4, 8)).name
        'EMPTY'
        """
        _check_offsets(query_offset, key_offset)
        for name, index in (("b", b), ("h", h)):
            if index is not None:
                size("polyattn.masks", name, index)
        for name, indices in (("queries", queries), ("keys", keys)):
            if not isinstance(indices, range):
                raise TypeError(
                    f"polyattn.masks: expected {name} to be a range, got {shown(indices)}; write range(0, n)"
                )
        places = Places(query_offset, key_offset)
        with eagerly([*self.arrays(), *places.arrays()]):
            return classify(self.read(), Box(queries, keys, b, h, places, places.read()))

    @answers(f"{_WHO}.tiles", line="mask.tiles")
    def tiles(
        self,
        queries: int,
        keys: int,
        tile: tuple[int, int],
        *,
        b: int | None = None,
        h: int | None = None,
        query_offset: int | Array = 0,
        key_offset: int | Array = 0,
    ) -> list[list[Tile]]:
        """`tile` for every tile of a score matrix cut into `tile = (rows, keys)`, the last ones ragged."""
        if not isinstance(tile, tuple) or len(tile) != 2:
            raise TypeError(
                f"polyattn.masks: expected tile to be a number of rows and one of keys, got {shown(tile)}; write (64, 64)"
            )
        _check_offsets(query_offset, key_offset)
        for name, index in (("b", b), ("h", h)):
            if index is not None:
                size("polyattn.masks", name, index)
        sizes = {"queries": queries, "keys": keys, "rows of a tile": tile[0], "keys of a tile": tile[1]}
        for name, count in sizes.items():
            size("polyattn.masks", name, count, 1 if "tile" in name else 0)
        places = Places(query_offset, key_offset)
        return [list(line) for line in grid(self, queries, keys, tile, b=b, h=h, places=places)]

    @answers(f"{_WHO}.to_block_mask", line="mask.to_block_mask")
    def to_block_mask(self, *, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int, **options: Any) -> Any:
        """The mask as a `torch.nn.attention.flex_attention.BlockMask` (options of `create_block_mask`)."""
        torch = backend_named("torch")
        if torch is None:
            raise ImportError(
                f"polyattn.masks: the mask {self} becomes a BlockMask in PyTorch only, which is not here; "
                "pip install 'polyattn[torch]'"
            )
        batch = 1 if B is None else B
        self.fit(Frame(batch, 1 if H is None else H, Q_LEN, KV_LEN, (batch,), "polyattn.masks.to_block_mask"))
        return torch.block_mask(self, B, H, Q_LEN, KV_LEN, **options)

    # pictures

    @answers(f"{_WHO}.show", line="mask.show")
    def show(
        self, queries: int, keys: int | None = None, *, query_offset: int = 0, b: int = 0, h: int = 0
    ) -> str:
        """The mask in text, a line per query: ``#`` may attend, ``.`` may not."""
        from polyattn import draw

        return draw.mask_text(self._picture(queries, keys, query_offset, b, h))

    @answers(f"{_WHO}.figure", line="mask.figure")
    def figure(
        self, queries: int, keys: int | None = None, *, query_offset: int = 0, b: int = 0, h: int = 0
    ) -> Figure:
        """The mask drawn with matplotlib."""
        from polyattn import draw

        return draw.mask_figure(self._picture(queries, keys, query_offset, b, h), title=str(self))

    def _repr_html_(self) -> str | None:
        """In a notebook: the picture, 8 by 8 where the mask has no size of its own; its text where it is too large to see."""
        from polyattn.masks.picture import svg

        size = [
            max(least, 8) if own is None else own
            for own, least in zip(self.own_size(), self.least_size(), strict=True)
        ]
        if max(size) > 360 or not readable(*self.arrays()):  # no pixel for a key
            return None
        try:
            return svg(self, *size)
        except Exception:  # a function of the user may know its own sequence only
            return None

    def _picture(self, queries: int, keys: int | None, query_offset: int, b: int, h: int) -> list[list[bool]]:
        b, h = size("polyattn.masks", "b", b), size("polyattn.masks", "h", h)
        batch, heads = max(b + 1, self.batch_size()), max(h + 1, self.head_count())
        full = self.dense(queries, keys, batch=batch, heads=heads, query_offset=query_offset)
        values: list[list[bool]] = backend_of(full).to_list(full[b, h, ...])
        return values

    def _library(self, like: Array | None) -> tuple[Backend, Array]:
        like = next(self.arrays(), None) if like is None else like
        if like is not None:
            return backend_of(like), like
        numpy = numpy_backend()
        return numpy, numpy.xp.zeros(())
