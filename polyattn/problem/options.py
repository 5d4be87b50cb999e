"""The arguments of `attention`, declared once: their names, types and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from polyattn.arrays import Array
from polyattn.calls import answers, flag
from polyattn.masks.algebra import Mask
from polyattn.mods import ScoreMod
from polyattn.normalizers import Normalizer

F = TypeVar("F", bound=Callable[..., Any])
MaskMod = Callable[[Array, Array, Array, Array], Array]


@answers("polyattn.AuxRequest")
class AuxRequest(NamedTuple):
    """Which intermediate values `attention` returns beside its result.

    All of them have gradients; that of max_scores goes to the largest score of a row, in equal parts if there are several.
    """

    lse: bool = False
    weights: bool = False
    scores: bool = False
    max_scores: bool = False

    def names(self, who: str) -> tuple[str, ...]:
        """Those that are wanted; who: the function that was asked for them."""
        for name, value in zip(self._fields, self, strict=True):
            meant = value if isinstance(value, str) and value in self._fields else name
            flag(who, f"{name} of AuxRequest", value, f"write AuxRequest({meant}=True)", "return_aux")
        return tuple(name for name, value in zip(self._fields, self, strict=True) if value)


class Options(TypedDict, total=False):
    """What a caller may say beside query, key and value; each is None where it is left out, but for `DEFAULTS`."""

    mask: Mask | Array | MaskMod | None
    bias: Array | None
    score_mod: ScoreMod | None
    is_causal: bool
    query_offset: int | Literal["end"] | Array | None
    key_offset: int | Array | None
    query_positions: Array | None
    key_positions: Array | None
    cu_seqlens_q: Array | None
    cu_seqlens_k: Array | None
    scale: float | Array | None
    sinks: float | Array | None
    normalizer: Literal["softmax", "sigmoid", "softpick", "sparsemax", "entmax15"] | Normalizer
    dropout_rate: float
    dropout_seed: int | Array | None
    layout: Literal["BHLD", "BLHD"]


DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"is_causal": False, "normalizer": "softmax", "dropout_rate": 0.0, "layout": "BHLD"}
)
NAMES = tuple(Options.__annotations__)


def spelled_out(f: F, without: Sequence[str] = ()) -> F:
    """f with a signature that names every option that it takes, for whoever asks `help`, an editor, or mistypes one."""
    signature = inspect.signature(f)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=annotation
        )
        for name, annotation in Options.__annotations__.items()
        if name not in without
    ]
    first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    f.__signature__ = signature.replace(parameters=[*first, *options, *own[len(first) :]])  # type: ignore[attr-defined]
    return f
