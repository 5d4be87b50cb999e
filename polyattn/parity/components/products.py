"""What is given to a part, where a gate or a norm in front of it is left out: neither is a part that can be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from polyattn.parity.components.formula import Norm
from polyattn.parity.components.functions import FUNCTIONS, described
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["explain_products"]

EPSILONS = (1e-6, 1e-5, 1e-12)
ROWS = 4  # on so many is looked first
LEAST = 4  # numbers under one norm


def explain_products(
    outputs: Mapping[str, Floats], expected: Floats, seen: Floats, *, unit: Floats
) -> str | None:
    """Why a part is given `seen` where the reference gives `expected`: a gate or a norm too few, in a sentence, or None.

    outputs: what the parts in front of it gave in the reference, by name; f of one of them may be the gate. expected,
    seen: (..., width), unit (..., 1): the noise of each row. What is said turns one into the other within 4 units.
    """
    width = expected.shape[-1]
    gates = {n: x for n, x in outputs.items() if x.shape == expected.shape and x.dtype.kind == "f"}
    flat = {n: x.reshape(-1, width).astype(np.float64) for n, x in gates.items()}
    old, new = (x.reshape(-1, width).astype(np.float64) for x in (expected, seen))
    noise = np.broadcast_to(unit, (*expected.shape[:-1], 1)).reshape(-1, 1)
    few = slice(0, ROWS)
    for said, make in (*_gates(flat), *_norms(flat, width)):
        with np.errstate(all="ignore"):
            if all(_agree(make(new[rows], rows), old[rows], noise[rows]) for rows in (few, slice(None))):
                return said
    return None


def _agree(one: Floats, two: Floats, noise: Floats) -> bool:
    return bool((np.sqrt(np.mean((one - two) ** 2, -1, keepdims=True)) <= ACCEPTANCE * noise).all())


Make = Callable[[Floats, slice], Floats]  # what the reference would give, from what was seen in some rows


def _gates(outputs: Mapping[str, Floats]) -> Iterator[tuple[str, Make]]:
    """Without a gate: it is the reference's after multiplication."""
    for name, x in outputs.items():
        for word, f in FUNCTIONS.items():
            gate = f"{name}" if word == "identity" else f"{described(word)} of {name}"
            yield (
                f"the gate is left out: not multiplied by {gate}",
                lambda y, rows, x=x, f=f: y * f(x[rows]),  # type: ignore[misc]
            )


def _norms(outputs: Mapping[str, Floats], width: int) -> Iterator[tuple[str, Make]]:
    """Without a norm of each head, or of all of them, under a gate or none."""
    sizes = [n for n in range(LEAST, width + 1) if width % n == 0]
    for size in sizes:
        for eps in EPSILONS:
            for centred in (False, True):
                norm = Norm(eps, centred)
                what = "over all entries" if size == width else f"over each {size} entries (a head?)"
                said = f"the norm {what} is left out"
                yield said, lambda y, rows, size=size, norm=norm: _normed(y, size, norm)  # type: ignore[misc]
                for x in outputs.values():
                    for f in FUNCTIONS.values():
                        yield (
                            said,
                            lambda y, rows, x=x, f=f, size=size, norm=norm: (  # type: ignore[misc]
                                _normed(y / f(x[rows]), size, norm) * f(x[rows])
                            ),
                        )


def _normed(x: Floats, size: int, norm: Norm) -> Floats:
    """Normed in groups of that many entries."""
    return norm(x.reshape(len(x), -1, size)).reshape(x.shape)
