"""What commands ask of the kernels of a library: how fast tiles are, and what would run on a chip that is not here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from polyattn.arrays import backend_named
from polyattn.problem import Problem

__all__ = ["Kernels", "Trial", "kernels_of"]


class Trial(NamedTuple):
    """A problem to measure tiles by: causal attention of as many keys as queries."""

    width: int
    dtype: str
    length: int
    interpret: bool


class Kernels(Protocol):
    """An adapter has them as `Backend.kernels`."""

    #: Names of chips that programs are traced for.
    targets: tuple[str, ...]

    def chip(self, interpret: bool) -> tuple[str, str] | None:
        """Name and platform of the chip at hand, or of the one that is interpreted; None without one."""

    def why_not(self, trial: Trial) -> str | None:
        """Why there is no kernel for a trial."""

    def candidates(self, trial: Trial, way: str) -> list[tuple[int, int]]:
        """Rows and keys of the tiles that have room on the chip, small ones first; way: "forward" or "backward"."""

    def seconds(self, trial: Trial, way: str) -> float | str:
        """What a call takes, compiled, with the tiles that are preferred now; "backward": with its gradients. Or why it
        does not run."""

    def trace(
        self, target: str, look: Callable[..., None], arrays: Iterable[tuple[tuple[int, ...], str]]
    ) -> None:
        """look(*arrays), of these shapes and dtypes and without numbers, as a program for a chip."""

    def describe(self, p: Problem) -> list[str]:
        """Lines: the tiles of a problem, whom they meet and the memory they need; or why it has no kernel."""


def kernels_of(libraries: Iterable[str]) -> tuple[str, Kernels] | None:
    """The first of these libraries that is here and has kernels."""
    for name in libraries:
        backend = backend_named(name)
        found: Any = None if backend is None else backend.kernels()
        if found is not None:
            return name, found
    return None
