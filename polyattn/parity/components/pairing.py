"""Which array of a port is which of the reference: by name, by what it holds, by being the only one of its shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["Pair", "content", "pairs_of", "telling"]

Names = Mapping[str, str] | Callable[[str], str | None] | None


class Pair(NamedTuple):
    """A name of the reference and one of the port; whether it was told or found by what the arrays hold."""

    name: str
    port_name: str
    told: bool


def pairs_of(reference: Mapping[str, Floats], port: Mapping[str, Floats], names: Names) -> list[Pair]:
    """Every array of the reference that has a counterpart, in the order of the reference."""
    found = _told(reference, port, names)
    for key in (content, _coarse_content):
        found |= _by(reference, port, found, key)
    found |= _by_shape(reference, port, found)
    return [found[name] for name in reference if name in found]


def _told(reference: Mapping[str, Floats], port: Mapping[str, Floats], names: Names) -> dict[str, Pair]:
    found = {}
    for name in reference:
        other = names(name) if callable(names) else None if names is None else names.get(name)
        if other is not None and other in port:
            found[name] = Pair(name, other, True)
        elif other is None and name in port:
            found[name] = Pair(name, name, True)
    return found


def _left(arrays: Mapping[str, Floats], taken: Iterable[str]) -> dict[str, Floats]:
    gone = set(taken)
    return {name: x for name, x in arrays.items() if name not in gone}


def _by(
    reference: Mapping[str, Floats],
    port: Mapping[str, Floats],
    found: Mapping[str, Pair],
    key: Callable[[Floats], Hashable],
) -> dict[str, Pair]:
    """Those that are left, by a key of what they hold; equal ones in the order in which they come."""
    waiting = defaultdict[Hashable, list[str]](list)
    for name, x in _left(port, (p.port_name for p in found.values())).items():
        waiting[key(x)].append(name)
    made = {}
    for name, x in _left(reference, found).items():
        if (names := waiting.get(key(x))) is not None and names:
            best = max(names, key=lambda other: _likeness(name, other))
            names.remove(best)
            made[name] = Pair(name, best, False)
    return made


def _by_shape(
    reference: Mapping[str, Floats], port: Mapping[str, Floats], found: Mapping[str, Pair]
) -> dict[str, Pair]:
    """Those that are the only ones of their shape, in whatever order of axes, on both sides."""
    ours, theirs = defaultdict[Hashable, list[str]](list), defaultdict[Hashable, list[str]](list)
    for name, x in _left(reference, found).items():
        ours[tuple(sorted(x.shape))].append(name)
    for name, x in _left(port, (p.port_name for p in found.values())).items():
        theirs[tuple(sorted(x.shape))].append(name)
    return {
        names[0]: Pair(names[0], theirs[shape][0], False)
        for shape, names in ours.items()
        if len(names) == 1 and len(theirs.get(shape, ())) == 1
    }


def _likeness(a: str, b: str) -> int:
    """How many words and numbers two names share."""
    first, second = (set(x.replace("_", ".").replace("/", ".").split(".")) for x in (a, b))
    return len(first & second)


def telling(x: Floats) -> bool:
    """Whether what an array holds tells it from others: it is no constant."""
    return x.size > 1 and bool((x != x.flat[0]).any())


def content(x: Floats) -> Hashable:
    """The numbers of an array in whatever order, as a key; of a constant its shape too.

    >>> content(np.array([[1.0, 2.0]])) == content(np.array([2.0, 1.0]))
    True
    """
    bits = (x.astype(np.float64) + 0.0).view(np.uint64).ravel()
    with np.errstate(over="ignore"):
        mixed = (bits ^ (bits >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        key = (x.size, int(mixed.sum()), int(np.bitwise_xor.reduce(mixed, initial=np.uint64(0))))
    return key if telling(x) else (*key, x.shape)


def _coarse_content(x: Floats) -> Hashable:
    """The same of the numbers as bfloat16 has them: what was rounded is found again."""
    return content(round_to(x.astype(np.float32), "bfloat16"))
