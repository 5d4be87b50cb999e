"""Which implementation runs a problem, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyattn.arrays import Array
from polyattn.implementations.blockwise.plan import Blockwise
from polyattn.implementations.blockwise.rule import blockwise
from polyattn.implementations.reference import Result, reference
from polyattn.problem.problem import Problem

NAMES = ("auto", "reference", "blockwise", "native")


@dataclass(frozen=True)
class Reference:
    """The definition, which holds whole score matrices, with a limit on their bytes (default 4 GiB).

    >>> import numpy as np
    >>> from polyattn import Reference, attention
    >>> x = np.zeros((100, 1))
    >>> attention(x, x, x, implementation=Reference(max_bytes=1000))
    Traceback (most recent call last):
    ValueError: polyattn.attention: expected at most 1000 bytes of scores for the reference implementation, ...
    """

    max_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 0:
            raise ValueError(
                f"polyattn.Reference: expected max_bytes to be an integer >= 0, got {self.max_bytes!r}; "
                "it limits the memory of the score matrices"
            )


class Choice(NamedTuple):
    """An implementation ready to run."""

    name: str
    why: str
    run: Callable[[Problem], Any]  # -> something with `out` and `lse`; a whole Result from the reference


class Output(NamedTuple):
    """What implementations without score matrices give."""

    out: Array
    lse: Array | None


def choose(p: Problem, needs_scores: bool, needs_lse: bool, wish: str | Reference | Blockwise) -> Choice:
    """The implementation that was asked for, or for "auto" the one that the adapter prefers.

    ValueError with the reason if what was asked for by name does not apply.
    """
    if not isinstance(wish, (Reference, Blockwise)) and wish not in NAMES:
        raise ValueError(
            "polyattn.attention: expected implementation 'auto', 'reference', 'blockwise', 'native', a Reference "
            f"or a Blockwise, got {wish!r}; use 'auto'"
        )
    if wish == "auto":
        return _automatic(p, needs_scores, needs_lse)
    if wish == "reference" or isinstance(wish, Reference):
        return _reference(p, wish if isinstance(wish, Reference) else Reference(), "asked for")
    if needs_scores:
        raise ValueError(
            f"polyattn.attention: expected return_aux to ask {wish!r} for lse alone, got weights, scores or "
            "max_scores, which only implementation='reference' forms; use it, or ask for lse"
        )
    if wish == "native":
        native = p.backend.native(p, needs_lse, by_name=True)
        if isinstance(native, str):
            raise ValueError(
                "polyattn.attention: expected a problem that a kernel of the library computes exactly for "
                f"implementation='native', got one where {native}; use 'auto'"
            )
        return Choice("native", "asked for", native)
    if reason := p.backend.loses_gradient(p):
        raise ValueError(
            f"polyattn.attention: expected a problem whose derivatives the blockwise engine can form, got one where "
            f"{reason}; use implementation='reference', or a modification of polyattn.mods"
        )
    return _blockwise(wish if isinstance(wish, Blockwise) else Blockwise(), "asked for")


def _automatic(p: Problem, needs_scores: bool, needs_lse: bool) -> Choice:
    if needs_scores:
        return _reference(p, Reference(), "weights, scores or max_scores are wanted")
    name, why = p.backend.prefer(p)
    if name == "native":
        native = p.backend.native(p, needs_lse)
        if not isinstance(native, str):
            return Choice("native", why, native)
        name, why = p.backend.prefer_without_native(p)
        why = f"not native: {native}; {why}"
    if name == "blockwise" and (reason := p.backend.loses_gradient(p)):
        name, why = "reference", reason
    return _blockwise(Blockwise(), why) if name == "blockwise" else _reference(p, Reference(), why)


def _reference(p: Problem, limit: Reference, why: str) -> Choice:
    shape = p.scores_shape
    needed = 2 * p.scores_bytes
    if isinstance(needed, int) and needed > limit.max_bytes:  # jax.export has sizes that are symbols
        raise ValueError(
            f"polyattn.attention: expected at most {limit.max_bytes} bytes of scores for the reference "
            f"implementation, got {needed} for two score matrices {shape}; use implementation='blockwise', which "
            "needs memory O(L + S), or Reference(max_bytes=...)"
        )
    return Choice("reference", why, reference)


def _blockwise(wish: Blockwise, why: str) -> Choice:
    def run(p: Problem) -> Output | Result:
        if 0 in p.scores_shape:
            return reference(p)  # no tiles to speak of
        return Output(*blockwise(p, wish))

    return Choice("blockwise", why, run)
