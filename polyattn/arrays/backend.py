"""One array library as attention sees it: four small protocols, and the implementations that it has.

This base class does everything with the standard and plain Python, so an array library nobody wrote an adapter
for still works; an adapter overrides what its library does better.
"""

from __future__ import annotations

from typing import Any

from polyattn.arrays.interchange import Interchange
from polyattn.arrays.loops import Loops
from polyattn.arrays.numbers import Namespace
from polyattn.arrays.tracing import Tracing


class Backend(Tracing, Loops, Interchange):
    """One array library.

    `name` is the first word of the array namespace ("numpy", "jax", "torch"), `xp` its array API
    namespace. See `backends/README.md` for the contract on one page.
    """

    #: Array types to be known from the first look-up on, where a compiler would not see a second one.
    array_types: tuple[type, ...] = ()
    #: The ways to run a Problem, the one that "auto" likes best first (`polyattn.implementations.Implementation`).
    #: Empty means what every library has, the blockwise engine and the definition.
    implementations: tuple[Any, ...] = ()

    def __init__(self, name: str, xp: Namespace) -> None:
        self.name = name
        self.xp = xp

    def unfit(self, x: Any, plain: bool) -> str | None:
        """Of an array that cannot be cut and broadcast: what was expected, what came, what to do; None of others.

        plain: whether it is query, key or value of a call that says nothing else.
        """
        return None

    def kernels(self) -> Any:
        """What `polyattn tune` and `polyattn info --platform` ask (`polyattn.implementations.fused.Kernels`), or None."""
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
