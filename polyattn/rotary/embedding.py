"""Rotary positions: a value that says how vectors are turned, and turns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn.arrays import Array, backend_of, readable
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, array, check_layout, flag, integer, is_traced, real, shown, size
from polyattn.rotary import sections as several
from polyattn.rotary.angle import angles
from polyattn.rotary.config import read
from polyattn.rotary.scalings import Frequencies, Scaling, checked_base, plain
from polyattn.rotary.turning import rotate

_WHO = "polyattn.rotary.Rotary"


@answers("polyattn.rotary.Rotary", "settings")
@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: pairs of entries are turned by position * base^(-2i / width).

        (a, b) -> (a cos t - b sin t, a sin t + b cos t),   t = position * base^(-2i / width), i = 0, 1, ...

    Then q . k depends on positions only by their difference. width: the entries that are turned, the first
    ones of D (None = all). interleaved: pairs are (0, 1), (2, 3), ... (Meta's Llama); otherwise entry i
    and entry i + width/2 (Hugging Face, Equinox, ONNX). See `polyattn.weights.interleaved_to_half`.
    scaling: other frequencies, and an amplitude, for longer texts: `YaRN`, `Llama3`, ... (`Scaling`).
    sections: how many pairs turn by each axis of positions (axes, ..., L): one after the other ("chunked", Qwen2-VL), in turn
    ("interleaved", Qwen3-VL), or each with frequencies of its own, of width 2 n ("axial", vision encoders).
    Angles are reduced to one turn exactly, so that positions up to 2^20 cost float32 no accuracy (`angles`).

    Source: Su 2021, arXiv:2104.09864, equation 34; sections: Wang 2024, arXiv:2409.12191.

    >>> import numpy as np
    >>> Rotary()(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """

    _: KW_ONLY
    base: float = 10000.0
    width: int | None = None
    interleaved: bool = False
    scaling: Scaling | None = None
    sections: tuple[int, ...] | None = None
    section_order: several.Order = "chunked"

    def __post_init__(self) -> None:
        checked_base(_WHO, self.base)
        if self.width is not None:
            integer(_WHO, "width", self.width)
        flag(_WHO, "interleaved", self.interleaved)
        if not (self.scaling is None or isinstance(self.scaling, Scaling)):
            raise TypeError(
                f"{_WHO}: expected scaling to be one of polyattn.rotary (Linear, DynamicNTK, YaRN, Llama3, LongRoPE, "
                f"Proportional), got {shown(self.scaling)}; Rotary.from_config reads a config of Hugging Face"
            )
        object.__setattr__(self, "sections", several.checked(_WHO, self.sections, self.section_order))

    @classmethod
    @answers(f"{_WHO}.from_config", "settings", line="Rotary.from_config")
    def from_config(
        cls,
        config: Mapping[str, Any] | Any,
        *,
        layer_type: str | None = None,
        head_dim: int | None = None,
        interleaved: bool | None = None,
    ) -> Rotary:
        """The rotary of a Hugging Face config: the object, its dict (config.json), or its rope_parameters alone.

        Reads rope_parameters, or rope_scaling and rope_theta, of kind default, linear, dynamic, yarn, longrope, llama3 or
        proportional, partial_rotary_factor, mrope_section and mrope_interleaved; whatever else stands there is refused.
        layer_type: which one, where there is a dict for each kind of layer. head_dim: where the config does not say it.
        interleaved: None is the config's rope_interleave (DeepSeek), and False without it; most configs do not say it.

        >>> Rotary.from_config({"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}).scaling
        Linear(factor=4.0)
        """
        return cls(**read(config, layer_type, head_dim, interleaved))

    @answers(f"{_WHO}.frequencies", line="rotary.frequencies")
    def frequencies(self, width: int, *, length: int | None = None) -> Frequencies:
        """Radians per position of each of the width/2 pairs.

        >>> Rotary().frequencies(4)
        (1.0, 0.01)
        """
        if (width := size(_WHO, "width", width, 1)) % 2:
            raise ValueError(f"{_WHO}: expected an even width, got {width}; entries are turned in pairs")
        parts = [width]
        if self.sections is not None:
            if sum(self.sections) != width // 2:
                raise ValueError(
                    f"{_WHO}: expected sections of {width // 2} pairs together, half of the width {width}, got "
                    f"{self.sections}; the sum of them is {sum(self.sections)}"
                )
            parts = [2 * n for n in self.sections] if self.section_order == "axial" else parts
        if self.scaling is None:
            return tuple(f for n in parts for f in plain(n, self.base))
        return tuple(f for n in parts for f in self.scaling.frequencies(n, self.base, length))

    @answers(_WHO, line="rotary")
    def __call__(
        self, x: SameArray, positions: Array, *, length: int | Array | None = None, layout: str = "BHLD"
    ) -> SameArray:
        """x (..., H, L, D), or (..., L, H, D) with layout "BLHD", turned to positions, integers (L,) or (B, L).

        With sections positions are (axes, L) or (axes, B, L). length: how many tokens the text has, for a scaling that
        depends on it; no position may reach it.
        """
        return rotate(x, *self._waves(x, positions, length, layout), interleaved=self.interleaved)

    @answers(f"{_WHO}.both", line="rotary.both")
    def both(
        self, query: SameArray, key: SameArray, positions: Array, *, length: int | Array | None = None
    ) -> tuple[SameArray, SameArray]:
        """query (..., H, L, D) and key (..., Hkv, L, D) turned to the same positions, whose angles are computed once.

        >>> import numpy as np
        >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> q, k = Rotary().both(x, x, np.array([0, 1]))
        >>> bool((q == Rotary()(x, np.array([0, 1]))).all())
        True
        """
        cos, sin = self._waves(query, positions, length, "BHLD")
        real(_WHO, "key", key)
        if key.shape[-1:] != query.shape[-1:]:
            raise ValueError(
                f"{_WHO}.both: expected query and key of one width, got {tuple(query.shape)} and {tuple(key.shape)}; pairs of "
                "another width turn by other angles, so call the rotary for each"
            )
        q, k = (rotate(x, cos, sin, interleaved=self.interleaved) for x in (query, key))
        return q, k

    def _waves(self, x: Array, positions: Array, length: Any, layout: str) -> tuple[Array, Array]:
        """The cosines and sines of the angles by which the pairs of x are turned."""
        backend = real(_WHO, "x", x)
        check_layout(_WHO, layout, "x (batch, heads, length, width)")
        if x.ndim < (2 if layout == "BHLD" else 3):
            raise ValueError(
                f"{_WHO}: expected x of shape (..., length, width), got {tuple(x.shape)}; add the axes that are missing"
            )
        width = x.shape[-1] if self.width is None else self.width
        if width % 2 or not 0 < width <= x.shape[-1]:
            raise ValueError(
                f"polyattn.rotary.Rotary: expected an even width of at most {x.shape[-1]}, the width of x, got "
                f"{width}; entries are turned in pairs"
            )
        self._check_positions(x, positions, layout)
        angle = self._angles(positions, width, length, backend.compute_dtype(x.dtype))  # (L|B L, width/2)
        if layout == "BLHD":
            angle = angle[..., None, :]
        elif angle.ndim > 2 and x.ndim > 3:
            angle = angle[:, None, ...]
        cos, sin = backend.cos(angle), backend.xp.sin(angle)
        if self.scaling is not None and (m := self.scaling.amplitude) != 1.0:
            cos, sin = m * cos, m * sin
        return cos, sin

    def _angles(self, positions: Array, width: int, length: Any, dtype: Any) -> Array:
        if self.sections is None:
            places = positions[..., None]
        else:
            places = several.of_pairs(positions, self.sections, self.section_order)
        switch = None if self.scaling is None else self.scaling.switches_above
        if switch is not None and is_traced(length):
            below, above = (
                angles(places, self.frequencies(width, length=n), dtype) for n in (switch, switch + 1)
            )
            return backend_of(below).xp.where(length > switch, above, below)
        known = None
        if length is not None and (not is_traced(length) or (self.scaling and self.scaling.needs_length)):
            known = integer(_WHO, "length", length, 1, "it is how many tokens the text has")
            _check_reach(positions, known)
        return angles(places, self.frequencies(width, length=known), dtype)

    def _check_positions(self, x: Array, positions: Any, layout: str) -> None:
        backend = array(_WHO, "positions", positions, "one for each token")
        if backend is not backend_of(x):
            raise TypeError(
                f"{_WHO}: expected positions of the library of x, {backend_of(x).name}, got {backend.name}; convert them"
            )
        length = x.shape[-3] if layout == "BLHD" else x.shape[-2]
        if not backend.isdtype(positions.dtype, ("integral", "real floating")):
            raise TypeError(
                f"{_WHO}: expected positions of numbers, got {positions.dtype}; number the tokens"
            )
        shape = tuple(positions.shape)
        axes = () if self.sections is None else (len(self.sections),)
        each = shape[len(axes) :]
        if (
            shape[: len(axes)] != axes
            or len(each) == 0
            or each[-1] not in (1, length)
            or (len(each) > 1 and each[0] not in (1, x.shape[0]))
        ):
            if axes:
                (n,) = axes
                raise ValueError(
                    f"{_WHO}: expected positions of shape ({n}, {length}) or ({n}, B, {length}), one on each axis for "
                    f"each token of x {tuple(x.shape)} in layout {layout}, got {shape}; text has the same on all axes"
                )
            raise ValueError(
                f"{_WHO}: expected positions of shape ({length},) or (B, {length}), one for each token of x "
                f"{tuple(x.shape)} in layout {layout}, got {shape}; write arange({length}) + offset"
            )


def _check_reach(positions: Array, length: int) -> None:
    """The length of a text is more than any position in it, where they can be read."""
    if 0 in positions.shape or not readable(positions):
        return
    backend = backend_of(positions)
    most = backend.to_list(backend.xp.max(positions))
    if most >= length:
        raise ValueError(
            f"{_WHO}: expected positions below length={length}, got {most}; length is that of the whole text, with what a "
            "cache holds"
        )
