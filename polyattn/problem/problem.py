"""One attention problem: what the caller asked, checked, in one canonical form, as plain data.

Everything that can be wrong with a call is said here, before any kernel runs. Behind this door arrays
have rank 4 (batch, heads, length, width), masks are one `Mask`, scale and sinks broadcast over heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from polyattn import mods
from polyattn.arrays import Array, Backend, backend_of
from polyattn.calls import array, check_layout, unknown
from polyattn.masks.algebra import Mask
from polyattn.normalizers import SOFTMAX, Normalizer
from polyattn.places import FAR, ORIGIN, Frame, Places, Positions, positions
from polyattn.problem import arguments, position_arguments
from polyattn.problem.arguments import CAUSAL
from polyattn.problem.axes import Axes, shapes
from polyattn.problem.call import Call, same_place
from polyattn.problem.features import describe, features_of
from polyattn.problem.options import NAMES
from polyattn.problem.packed import PACKED, is_packed, unpacked


def by(check: Callable[[Call], Any], *reads: str) -> dict[str, Any]:
    """A field that arguments fill: check(call) gives its canonical form; reads: their names, that of check by default."""
    return {"check": check, "reads": reads or (check.__name__,)}


@dataclass(frozen=True, eq=False)
class Problem:
    """Attention of q (B, Hq, L, D) to k (B, Hkv, S, D) and v (B, Hkv, S, E); B may be 1 in any of them."""

    q: Array
    k: Array
    v: Array
    scale: float | Array  # a number or (1, Hq|1, 1, 1)
    frame: Frame
    axes: Axes
    compute_dtype: Any
    # What arguments fill; those with derivatives come first.
    bias: Array | None = field(default=None, metadata=by(arguments.bias))  # (B|1, Hq|1, L|1, S|1)
    sinks: Array | None = field(
        default=None, metadata=by(arguments.sinks)
    )  # (1, Hq|1, 1, 1) in the compute dtype
    score_mod: mods.ScoreMod | None = field(default=None, metadata=by(arguments.score_mod))
    mask: Mask | None = field(
        default=None, metadata=by(arguments.mask, "mask", "is_causal", "key_positions", "key_offset", *PACKED)
    )
    places: Places = field(default=ORIGIN, metadata=by(position_arguments.places, *position_arguments.READS))
    normalizer: Normalizer = field(default=SOFTMAX, metadata=by(arguments.normalizer))
    dropout_rate: float = field(default=0.0, metadata=by(arguments.dropout_rate))
    dropout_seed: int | Array = field(default=0, metadata=by(arguments.dropout_seed))
    packed: bool = field(
        default=False, metadata=by(is_packed, "cu_seqlens_q")
    )  # so dropout counts rows and keys
    wanted: tuple[str, ...] = ()  # which intermediate values

    @property
    def backend(self) -> Backend:
        """That of the arrays which are in it now: those of a tracer inside what it traces."""
        return backend_of(self.q)

    @property
    def who(self) -> str:
        """The function that the user called, which speaks in errors."""
        return self.frame.who

    @property
    def scores_shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return self.frame[:4]

    @property
    def scores_bytes(self) -> int:
        """The memory of one score matrix."""
        return math.prod(self.scores_shape) * (8 if self.compute_dtype == self.backend.xp.float64 else 4)

    @property
    def sizes_are_numbers(self) -> bool:
        """Whether all lengths are known, rather than symbols of an exporter."""
        return self.backend.lengths_are_fixed and all(isinstance(n, int) for n in self.scores_shape)

    @property
    def is_causal_square(self) -> bool:
        """Whether the mask is the plain causal one, row i seeing keys 0 to i."""
        square = self.places.fixed and self.places.query == self.places.key == 0
        return square and (self.mask is CAUSAL or self.mask == CAUSAL) and self.frame.rows == self.frame.keys

    @property
    def features(self) -> frozenset[str]:
        """What this problem has and a plain one has not."""
        return features_of(self)

    def positions(self) -> Positions:
        """The positions of the whole score matrix."""
        return positions(self.backend, self.q, self.scores_shape, self.places)


describe(Problem)
_FILLED = [(f.name, f.metadata["check"], f.metadata["reads"]) for f in fields(Problem) if f.metadata]
#: name of an option -> the fields that read it, with their checks
_READERS = {name: [(f, check) for f, check, reads in _FILLED if name in reads] for name in NAMES}


def pose(
    who: str,
    query: Array,
    key: Array,
    value: Array,
    *,
    wanted: tuple[str, ...] = (),
    origin: Places = ORIGIN,
    **options: Any,
) -> Problem:
    """The arguments of `attention` as a Problem, or the sentence that says what is wrong with them.

    who: the function that the user called. origin: the numbers of the first batch item and head, on a shard.
    """
    readers: dict[str, Callable[[Call], Any]] = {}
    for name in options:
        if name not in _READERS:
            raise unknown(who, name, NAMES)
        readers.update(_READERS[name])
    if origin is not ORIGIN:
        readers["places"] = position_arguments.places
    layout = options.get("layout", "BHLD")
    check_layout(who, layout, "query, key and value (batch, heads, length, width)")
    backend = _one_library(who, query, key, value, plain=not any(map(_says_something, options.items())))
    query, key, value = backend.autocast(query, key, value)
    compute_dtype = _compute_dtype(who, backend, query, key, value)
    axes, ((heads, rows, width), (_, keys, _), _) = shapes(who, layout, query, key, value)
    frame = Frame(math.prod(axes.lead), heads, rows, keys, axes.lead, who)
    _not_too_long(frame, backend)
    call = unpacked(Call(frame, backend, query, compute_dtype, options, origin, wanted))
    # Objects that are defaults are said, because Dynamo does not find them in the signature.
    checked: dict[str, Any] = {"places": ORIGIN, "normalizer": SOFTMAX} | {
        name: check(call) for name, check in readers.items()
    }
    return Problem(
        q=axes.enter(query),
        k=axes.enter(key),
        v=axes.enter(value),
        scale=arguments.scale(call, width),
        frame=frame,
        axes=axes,
        compute_dtype=compute_dtype,
        wanted=wanted,
        **checked,
    )


def _says_something(option: tuple[str, Any]) -> bool:
    name, value = option
    nothing = value is None or (isinstance(value, (int, float)) and value == 0)
    return not nothing and name not in ("layout", "scale") and option != ("normalizer", "softmax")


def _not_too_long(frame: Frame, backend: Backend) -> None:
    """Indices are int32 numbers, where there are any."""
    if not backend.may_remember() or not all(isinstance(n, int) for n in frame[:4]) or 0 in frame[:3]:
        return
    if max(frame[:4]) >= FAR:
        raise ValueError(
            f"{frame.who}: expected fewer than 2**30 items, heads, queries and keys, got scores (B, Hq, L, S) = "
            f"{frame[:4]}; compute a part at a time"
        )


def _one_library(who: str, query: Array, key: Array, value: Array, plain: bool) -> Backend:
    """The backend of all of them; they must share it, and the device."""
    backend = array(who, "query", query)
    for name, given in (("query", query), ("key", key), ("value", value)):
        array(who, name, given)
        same_place(who, backend, query, name, [given], plain)
    return backend


def _compute_dtype(who: str, backend: Backend, query: Array, key: Array, value: Array) -> Any:
    compute_dtype = backend.compute_dtype(query.dtype)
    if compute_dtype is None:
        raise TypeError(
            f"{who}: expected query, key and value of a real floating dtype, got {query.dtype}; "
            "cast them to the dtype in which you want the result"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"{who}: expected query, key and value of one dtype, got "
            f"{query.dtype}, {key.dtype}, {value.dtype}; cast them to the dtype in which you want the result"
        )
    return compute_dtype
