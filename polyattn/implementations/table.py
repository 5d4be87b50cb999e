"""The table that the implementations make: who accepts which feature, and goes through which transform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from polyattn.arrays import Backend, backend_named
from polyattn.implementations.choice import implementations_of
from polyattn.implementations.implementation import TRANSFORMS, Implementation
from polyattn.problem import FEATURES, say


class Column(NamedTuple):
    """One implementation of one library."""

    library: str
    implementation: Implementation

    def says(self, row: str) -> str:
        """What stands in a row of the table: a feature or a transform."""
        there = self.implementation.transforms if row in TRANSFORMS else self.implementation.accepts
        return "yes" if row in there else "-"


def columns(libraries: Iterable[str]) -> Iterator[Column]:
    """The implementations of the libraries that are here, in the order in which "auto" asks them."""
    for name in libraries:
        backend = backend_named(name)
        if backend is not None:
            yield from columns_of(backend)


def columns_of(backend: Backend) -> list[Column]:
    return [Column(backend.name, implementation) for implementation in implementations_of(backend)]


def rows() -> Iterator[tuple[str, str]]:
    """Name and words of every row, features first."""
    yield from FEATURES.items()
    for name in TRANSFORMS:
        yield name, name


def listing(libraries: Iterable[str]) -> Iterator[str]:
    """The table in lines: what each implementation does not take, and the transforms that it goes through."""
    for library, implementation in columns(libraries):
        refused = frozenset(FEATURES) - implementation.accepts
        without = f" takes all but {say(refused)}" if refused else " takes everything"
        through = (
            ", ".join(name for name in TRANSFORMS if name in implementation.transforms) or "no transform"
        )
        yield f"{library}: {implementation.title}{without}; goes through {through}"


def markdown(libraries: Iterable[str]) -> str:
    """The table as a page of the documentation has it."""
    shown = list(columns(libraries))
    lines = [
        "| | " + " | ".join(f"{c.library}: {c.implementation.title}" for c in shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    for name, words in rows():
        lines.append(f"| {words} | " + " | ".join(c.says(name) for c in shown) + " |")
    return "\n".join(lines) + "\n"
