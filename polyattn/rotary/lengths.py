"""Scalings whose frequencies depend on the length of the text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polyattn.calls import answers, size
from polyattn.rotary.scalings import Frequencies, Scaling, numbers, plain, positive, said


@answers("polyattn.rotary.DynamicNTK", "settings")
@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """base -> base (factor n / original_length - (factor - 1))^(width / (width - 2)), n = max(length, original_length).

    length: how many tokens the text has, as a Python integer: a frequency that is traced would be a rounded one, and
    positions would multiply its error. Keys in a cache keep the frequencies of the length at which they were turned, so
    a text that grows while it is decoded wants the length that it will have.

    Source: the posts of bloc97 and emozilla, as transformers has them; "NTK-aware" in Peng 2023, arXiv:2309.00071.

    >>> [round(f, 4) for f in DynamicNTK(2.0, 2048).frequencies(8, 10000.0, length=4096)]
    [1.0, 0.0693, 0.0048, 0.0003]
    """

    factor: float
    original_length: int
    needs_length = True

    def __post_init__(self) -> None:
        positive(self, "factor", self.factor)
        size(said(self), "original_length", self.original_length, 1)

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        if width < 4:
            raise ValueError(
                f"{said(self)}: expected a width of at least 4, got {width}; one pair has no base to change"
            )
        ratio = max(_known(self, length), self.original_length) / self.original_length
        # factor (ratio - 1) + 1: as the formula above has it, it would cancel
        return plain(width, base * (self.factor * (ratio - 1) + 1) ** (width / (width - 2)))


@answers("polyattn.rotary.LongRoPE", "settings")
@dataclass(frozen=True)
class LongRoPE(Scaling):
    """f_i -> f_i / long_factor_i for texts longer than original_length, f_i / short_factor_i for others (Phi-3).

        amplitude = sqrt(1 + ln(factor) / ln(original_length)), and 1 where factor <= 1; attention_factor replaces it

    short_factor and long_factor: a number for each pair. factor: the longest text over original_length. length: how many
    tokens the text has, a Python integer or an array () that may be traced. A text that crosses original_length while it is
    decoded has keys of both kinds in its cache, unless length is what it will have.

    Source: Ding 2024, arXiv:2402.13753; the amplitude is Phi-3's, arXiv:2404.14219.

    >>> scaling = LongRoPE((1.0, 1.0), (2.0, 8.0), 4096, 32.0)
    >>> scaling.frequencies(4, 10000.0, length=4096), scaling.frequencies(4, 10000.0, length=4097)
    ((1.0, 0.01), (0.5, 0.00125))
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    factor: float
    attention_factor: float | None = None
    needs_length = True

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            object.__setattr__(self, name, numbers(self, name, getattr(self, name)))
        size(said(self), "original_length", self.original_length, 2)
        positive(self, "factor", self.factor)
        if self.attention_factor is not None:
            positive(self, "attention_factor", self.attention_factor)

    @property
    def switches_above(self) -> int:  # type: ignore[override]
        return self.original_length

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        long = _known(self, length) > self.original_length
        factors = self.long_factor if long else self.short_factor
        if len(factors) != width // 2:
            raise ValueError(
                f"{said(self)}: expected {width // 2} numbers in {'long' if long else 'short'}_factor for a width of "
                f"{width}, got {len(factors)}; give one for each pair of entries"
            )
        return tuple(f / n for f, n in zip(plain(width, base), factors, strict=True))

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        more = math.log(self.factor) / math.log(self.original_length)
        return math.sqrt(1.0 + more) if self.factor > 1 else 1.0


def _known(scaling: Scaling, length: int | None) -> int:
    if length is None:
        raise ValueError(
            f"{said(scaling)}: expected length, how many tokens the text has, got None; write rotary(x, positions, "
            "length=...)"
        )
    return length
