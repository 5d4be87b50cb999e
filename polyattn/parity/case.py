"""How a case is described.

A case draws a `Sample`: the arguments of `polyattn.attention` in NumPy, and the same problem as a
`Spec`, written down independently (a mask is a comparison of index arrays there, not a mask object).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats, Spec

__all__ = ["Case", "Draw", "Later", "Sample"]

Convert = Callable[[Any], Any]  # a NumPy array as an array of the library under test


@dataclass(frozen=True)
class Later:
    """An argument that is made from arrays of the library under test."""

    make: Callable[[Convert], Any]


@dataclass(frozen=True)
class Sample:
    """One problem, twice: as arguments of `attention` and as a Spec."""

    spec: Spec
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Floats, Floats, Floats] | None = None  # query, key, value where they differ from the spec's
    out_shape: tuple[int, ...] | None = None  # of the result, where its rank differs from 4

    @property
    def arrays(self) -> dict[str, Floats]:
        """Everything that can be differentiated, as attention takes it."""
        q, k, v = self.inputs or (self.spec.q, self.spec.k, self.spec.v)
        extra = {
            n: self.options[n]
            for n in ("bias", "sinks", "scale")
            if isinstance(self.options.get(n), np.ndarray)
        }
        return {"query": q, "key": k, "value": v, **extra}

    def from_spec(self, out: Floats) -> Floats:
        """An array of the result's shape in the spec, in the shape that attention gives."""
        if self.options.get("layout") == "BLHD":
            return out.swapaxes(1, 2)
        return out if self.out_shape is None else out.reshape(self.out_shape)

    def to_spec(self, array: Floats, like: tuple[int, ...], *, has_width: bool = True) -> Floats:
        """An array that attention gave, in the axes of the spec."""
        if has_width and self.options.get("layout") == "BLHD" and array.ndim == 4:
            array = array.swapaxes(1, 2)
        return array.reshape(like) if array.size == np.prod(like, dtype=int) else array


@dataclass(frozen=True)
class Draw:
    """Random numbers that the dtype under test represents exactly."""

    rng: np.random.Generator
    dtype: str

    def normal(self, *shape: int, amplitude: float = 1.0) -> Floats:
        return round_to(self.rng.normal(size=shape) * amplitude, self.dtype)

    def qkv(
        self,
        batch: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        rows: int = 9,
        keys: int = 9,
        width: int = 8,
        out_width: int = 8,
        amplitude: float = 1.0,
    ) -> dict[str, Any]:
        return {
            "q": self.normal(batch, heads, rows, width, amplitude=amplitude),
            "k": self.normal(batch, kv_heads, keys, width),
            "v": self.normal(batch, kv_heads, keys, out_width),
        }

    def number(self, x: Any) -> Any:
        return round_to(np.asarray(x, np.float64), self.dtype)


@dataclass(frozen=True)
class Case:
    """A named problem and the rules of the contract that it covers, by their anchors: "rule-1"; none for real input."""

    name: str
    rules: tuple[str, ...]
    draw: Callable[[Draw], Sample]

    @property
    def rule_numbers(self) -> str:
        """The rules as tables show them: "1 9"."""
        return " ".join(rule.removeprefix("rule-") for rule in self.rules)

    def sample(self, seed: int, dtype: str) -> Sample:
        # The same problem for every library; the name keeps the cases apart.
        name = sum(ord(c) * 257**i for i, c in enumerate(self.name)) % 2**32
        return self.draw(Draw(np.random.default_rng([seed, name]), dtype))
