"""What is made of the frequencies of rotary positions, so that a model reads texts longer than it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyattn.calls import answers, flag, number, size

Frequencies = tuple[float, ...]


def checked_base(who: str, base: Any) -> float:
    found = number(who, "base", base)
    if not 0 < found < math.inf:
        raise ValueError(f"{who}: expected base > 0 and finite, got {base!r}; it is 10000.0 in most models")
    return found


def plain(width: int, base: float) -> Frequencies:
    """base^(-2i / width), i = 0, 1, ..., width/2 - 1: radians per position, without a scaling."""
    return tuple(base ** (-2 * i / width) for i in range(width // 2))


class Scaling:
    """What `Rotary(scaling=...)` takes: frequencies as a function of width and base, and the amplitude m.

    To write another, inherit and say `frequencies`.
    """

    #: Whether the frequencies depend on the length of the text.
    needs_length = False
    #: Where that is all, the length above which they are others, so that the length may be traced.
    switches_above: int | None = None

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        """Radians per position of each of the width/2 pairs."""
        raise NotImplementedError

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by; scores get its square."""
        return 1.0


@answers("polyattn.rotary.Linear", "settings")
@dataclass(frozen=True)
class Linear(Scaling):
    """f_i -> f_i / factor: positions interpolated (Chen 2023, arXiv:2306.15595).

    >>> Linear(4.0).frequencies(4, 10000.0)
    (0.25, 0.0025)
    """

    factor: float

    def __post_init__(self) -> None:
        positive(self, "factor", self.factor)

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        return tuple(f / self.factor for f in plain(width, base))


@answers("polyattn.rotary.Proportional", "settings")
@dataclass(frozen=True)
class Proportional(Scaling):
    """The first `proportion` of the pairs turn by f_i / factor, the others not at all (Gemma 4).

    Unlike `Rotary(width=...)`, frequencies are those of the whole width, and pairs are those of the whole width too.

    >>> Proportional(0.5).frequencies(8, 10000.0)
    (1.0, 0.1, 0.0, 0.0)
    """

    proportion: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "proportion", self.proportion, most=1.0)
        positive(self, "factor", self.factor)

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        turned = int(self.proportion * width // 2)
        return tuple(f / self.factor if i < turned else 0.0 for i, f in enumerate(plain(width, base)))


@answers("polyattn.rotary.Llama3", "settings")
@dataclass(frozen=True)
class Llama3(Scaling):
    """f -> s f + (1 - s) f / factor: pairs that turn often in the original length stay, slow ones are interpolated.

        s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor) within [0, 1],   turns = original_length f / 2 pi

    Source: Llama 3.1, arXiv:2407.21783; its code has the ramp.

    >>> [round(f, 6) for f in Llama3(8.0, 1.0, 4.0, 8192).frequencies(8, 500000.0)]
    [1.0, 0.037606, 0.000525, 7e-06]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            positive(self, name, getattr(self, name))
        size(said(self), "original_length", self.original_length, 1)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"{said(self)}: expected low_freq_factor < high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}; they are 1.0 and 4.0 in Llama 3"
            )

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        low, high = self.low_freq_factor, self.high_freq_factor
        found = []
        for f in plain(width, base):
            s = _within((self.original_length * f / (2 * math.pi) - low) / (high - low))
            found.append(s * f + (1.0 - s) * f / self.factor)
        return tuple(found)


@answers("polyattn.rotary.YaRN", "settings")
@dataclass(frozen=True)
class YaRN(Scaling):
    """f_i -> (1 - r_i) f_i + r_i f_i / factor, with a ramp r_i from 0 at pair `low` to 1 at pair `high`.

        low, high = width ln(original_length / (2 pi beta)) / (2 ln base)   at beta_fast, beta_slow: turns in the original length
        amplitude = m(1),   m(a) = 0.1 a ln(factor) + 1, and 1 where factor <= 1

    low is rounded down and high up, unless truncate=False (gpt-oss). attention_factor replaces the amplitude. With mscale and
    mscale_all_dim it is m(mscale) / m(mscale_all_dim), and the scale of the scores is multiplied by `score_factor`
    = m(mscale_all_dim)^2 (DeepSeek), which is the caller's to do: `attention(..., scale=yarn.score_factor * D**-0.5)`.

    Source: Peng 2023, arXiv:2309.00071, section 3.

    >>> yarn = YaRN(4.0, 4096)
    >>> [round(f, 4) for f in yarn.frequencies(8, 10000.0)], round(yarn.amplitude, 4)
    ([1.0, 0.1, 0.0063, 0.0003], 1.1386)
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow"):
            positive(self, name, getattr(self, name))
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                positive(self, name, getattr(self, name))
        size(said(self), "original_length", self.original_length, 1)
        flag(said(self), "truncate", self.truncate)
        if self.beta_slow > self.beta_fast:
            raise ValueError(
                f"{said(self)}: expected beta_slow <= beta_fast, got {self.beta_slow} and {self.beta_fast}; they are "
                "turns in the original length, 1.0 and 32.0 in the paper"
            )

    def frequencies(self, width: int, base: float, length: int | None = None) -> Frequencies:
        if base <= 1:
            raise ValueError(
                f"{said(self)}: expected a base > 1, got {base!r}; the ramp is over falling frequencies"
            )
        low, high = (
            width * math.log(self.original_length / (2 * math.pi * beta)) / (2 * math.log(base))
            for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high += 0.001 * (low == high)  # as the code of the paper has it
        found = []
        for i, f in enumerate(plain(width, base)):
            r = _within((i - low) / (high - low))
            found.append((1.0 - r) * f + r * f / self.factor)
        return tuple(found)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._m(self.mscale) / self._m(self.mscale_all_dim)
        return self._m(1.0)

    @property
    def score_factor(self) -> float:
        """m(mscale_all_dim)^2, by which DeepSeek multiplies the scale of its scores; 1 without mscale_all_dim."""
        return 1.0 if self.mscale_all_dim is None else self._m(self.mscale_all_dim) ** 2

    def _m(self, a: float) -> float:
        return 0.1 * a * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def _within(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def said(scaling: Scaling) -> str:
    """The name in which a scaling speaks."""
    return f"polyattn.rotary.{type(scaling).__name__}"


def positive(scaling: Scaling, name: str, value: Any, most: float = math.inf) -> None:
    found = number(said(scaling), name, value)
    if not 0 < found <= most or found == math.inf:
        above = "finite" if most == math.inf else f"at most {most}"
        raise ValueError(
            f"{said(scaling)}: expected {name} > 0 and {above}, got {value!r}; see the model's config"
        )


def numbers(scaling: Scaling, name: str, values: Any) -> tuple[float, ...]:
    """A sequence of positive numbers, as a tuple."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(
            f"{said(scaling)}: expected {name} as a sequence of numbers, one for each pair, got {type(values).__name__}; "
            "pass a tuple"
        )
    for value in values:
        positive(scaling, f"every {name}", value)
    return tuple(map(float, values))
