"""Scores that grow with the position of the query."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import answers, integer, number, real
from polyattn.mods.mod import Mod
from polyattn.places import INT32, Positions


@dataclass(frozen=True, eq=False)
class Temperature(Mod):
    strength: float | Array
    every: int
    first: int
    compares_positions = True  # with none of a key: but it has to know where queries stand

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return score * (1.0 + self._strength(score) * self._steps(score, q_idx))

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        steps = self._steps(score, at.q)
        d_score = cotangent * (1.0 + self._strength(score) * steps)
        if not is_array(self.strength):
            return d_score, ()
        return d_score, (backend_of(score).xp.sum(cotangent * score * steps),)

    def _strength(self, score: Array) -> float | Array:
        strength = self.strength
        return backend_of(score).astype(strength, score.dtype) if is_array(strength) else strength

    def _steps(self, score: Array, q_idx: Array) -> Array:
        """log(1 + floor((q + first) / every)), 0 before the text."""
        backend = backend_of(score)
        count = backend.xp.where(q_idx < 0, 0, q_idx + self.first) // self.every
        return backend.xp.log(backend.astype(count + 1, score.dtype))


@answers("polyattn.mods.temperature")
def temperature(strength: float | Array, every: int, *, first: int = 1) -> Mod:
    """s -> s (1 + strength log(1 + floor((q + first) / every))): late queries are sharper, as they see more keys.

    strength: a number, or a 0-d array that autodiff can see. first: the number of the first token, 1 in Llama 4 (strength 0.1,
    every 8192, in its layers without rotary), 0 in Ministral 3. Models multiply their queries by it; of the scores it is the
    same factor, not rounded to the dtype of the queries.

    Source: transformers, Llama4TextAttention; the idea is Scalable-Softmax, Nakanishi 2025, arXiv:2501.19399.

    >>> import numpy as np
    >>> temperature(1.0, 4)(np.ones(5), None, None, np.arange(5), None).round(3)
    array([1.   , 1.   , 1.   , 1.693, 1.693])
    """
    who = "polyattn.mods.temperature"
    every, first = integer(who, "every", every, 1, most=INT32 - 1), integer(who, "first", first, 0, most=1)
    if not is_array(strength):
        return Temperature(float(number(who, "strength", strength)), every, first)
    real(who, "strength", strength)
    if strength.ndim:
        raise ValueError(
            f"{who}: expected strength to be a number or a 0-d array, got shape {tuple(strength.shape)}; take one "
            "number"
        )
    return Temperature(strength, every, first)
