"""What is wrong with weights before anything runs: every array of a port beside that of the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn.parity.components.facts.record import floats
from polyattn.parity.components.fused import pieces
from polyattn.parity.components.pairing import Pair, content, pairs_of, telling
from polyattn.parity.components.relation import fresh, moved_axes, relation, same_values
from polyattn.truth.spec import Floats

__all__ = ["WeightDifference", "compare_weights"]

_WHO = "polyattn.parity.components.compare_weights"


@dataclass(frozen=True)
class WeightDifference:
    """One array that is not as it should be. name: in the reference; port_name: in the port; "" where it is not there."""

    name: str
    port_name: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def compare_weights(
    reference: Mapping[str, Floats],
    port: Mapping[str, Floats],
    names: Mapping[str, str] | Callable[[str], str | None] | None = None,
) -> list[WeightDifference]:
    """The arrays of a port that do not hold what those of the reference do, and how, in the order of the reference.

    reference, port: arrays by name, of NumPy or any library, as `polyattn.weights.read` or a state_dict gives them.
    names: what a name of the reference is called in the port; what it does not say goes by the same name, then by what an
    array holds, in whatever order, then by its shape, if it is the only one of it.

    Found are arrays that are missing or left over, transposed, in the order of another convention (rotary pairs, heads,
    packed queries, keys and values), never loaded, tied on one side alone, rounded, negated, scaled, or another layer's.
    An array under another name that is transposed or reshaped as its kind is throughout the port, or that is a part of a
    packed one in plain order, is as it should be. TypeError for what is no mapping.

    >>> w = np.arange(6.0).reshape(2, 3)
    >>> [str(d) for d in compare_weights({"w": w, "b": np.ones(2)}, {"w": -w})]
    ['w is negated', 'b is missing in the port']
    """
    for what, given in (("reference", reference), ("port", port)):
        if not isinstance(given, Mapping):
            raise TypeError(
                f"{_WHO}: expected {what} to be arrays by name, got {type(given).__name__}; polyattn.weights.read gives them"
            )
    if not (names is None or callable(names) or isinstance(names, Mapping)):
        raise TypeError(
            f"{_WHO}: expected names as a mapping or a function, got {names!r:.60}; leave it out to match by value"
        )
    ours, theirs = _arrays(reference), _arrays(port)
    whole = {
        name: x.dtype
        for name, value in port.items()
        if (x := floats(value)).dtype.kind in "iub" and name in ours
    }
    with np.errstate(all="ignore"):  # what is not finite is told as such
        return _Comparison(ours, theirs, pairs_of(ours, theirs, names), whole).differences()


def _arrays(given: Mapping[str, Any]) -> dict[str, Floats]:
    return {name: x for name, value in given.items() if (x := floats(value)).dtype.kind == "f"}


class _Comparison:
    """Both sides, and who is whose counterpart."""

    def __init__(
        self, ours: dict[str, Floats], theirs: dict[str, Floats], pairs: list[Pair], whole: Mapping[str, Any]
    ) -> None:
        self.ours, self.theirs, self.whole = ours, theirs, whole
        self.pairs = {pair.name: pair for pair in pairs}
        self.held = dict[Hashable, str]()
        for name, x in ours.items():
            if telling(x):
                self.held.setdefault(content(x), name)
        self.turned = self._turned()

    def differences(self) -> list[WeightDifference]:
        gone = [name for name in self.ours if name not in self.pairs]
        taken = {pair.port_name for pair in self.pairs.values()}
        extra = [name for name in self.theirs if name not in taken]
        parts = pieces({n: self.ours[n] for n in gone}, {n: self.theirs[n] for n in extra})
        used = {part.name for part in parts} | {part.port_name for part in parts}
        found = {part.name: (part.port_name, part.sentence) for part in parts if part.sentence}
        untied = dict(self._untied())
        listed = []
        for name in self.ours:
            if (pair := self.pairs.get(name)) is not None:
                said = untied.get(name) or self._pair(pair)
                if said:
                    listed.append(WeightDifference(name, pair.port_name, said))
            elif name in found:
                listed.append(WeightDifference(name, *found[name]))
            elif name not in used:
                listed.append(WeightDifference(name, "", self._missing(name)))
        listed += [WeightDifference("", n, s) for n in extra if n not in used and (s := self._extra(n))]
        seen = {(d.name, d.sentence) for d in listed}
        listed += [
            WeightDifference(p.name, p.port_name, p.sentence)
            for p in parts
            if p.sentence and (p.name, p.sentence) not in seen
        ]
        return listed

    def _pair(self, pair: Pair) -> str | None:
        """What is the matter with one array, or None."""
        ours, theirs = self.ours[pair.name], self.theirs[pair.port_name]
        renamed = pair.name != pair.port_name
        who = pair.port_name if not renamed else f"{pair.port_name}, in the reference {pair.name},"
        turned = _is_turned(ours, theirs)
        if turned is not None and renamed:
            usual = self.turned.get(_leaf(pair.port_name))
            square = ours.ndim == theirs.ndim == 2 and ours.shape[0] == ours.shape[1]
            # What is not square fits one way only, and an embedding is no kernel of a linear map.
            if usual is None or turned == usual or not square or np.array_equal(ours, ours.T):
                return None
            how = (
                "is transposed, and the others named so are not"
                if turned
                else "is not transposed, as the others named so are"
            )
            return f"{who} {how}"
        said = relation(ours, theirs)
        if said is None or (renamed and np.array_equal(ours.ravel(), theirs.ravel())):
            return None
        moved = same_values(ours, theirs) if telling(ours) else None
        if moved and renamed:
            return f"{pair.port_name} holds {pair.name}, {moved}"
        other = self.held.get(content(theirs)) if telling(theirs) else None
        if other is not None and other != pair.name and moved is None:
            return f"{who} holds {other} of the reference"
        return f"{who} {said}"

    def _turned(self) -> dict[str, bool]:
        """Whether matrices under other names are transposed, by the last word of the name, as most of them are."""
        votes = defaultdict[str, list[bool]](list)
        for pair in self.pairs.values():
            turned = _is_turned(self.ours[pair.name], self.theirs[pair.port_name])
            if pair.name != pair.port_name and turned is not None:
                votes[_leaf(pair.port_name)].append(turned)
        return {leaf: 2 * sum(given) >= len(given) for leaf, given in votes.items()}

    def _untied(self) -> Iterator[tuple[str, str]]:
        """Arrays that are one in the reference and two in the port."""
        groups = defaultdict[Hashable, list[str]](list)
        for name, x in self.ours.items():
            if telling(x) and name in self.pairs:
                groups[content(x), x.shape].append(name)
        for names in groups.values():
            first = self.pairs[names[0]].port_name
            for name in names[1:]:
                here = self.pairs[name].port_name
                if not np.array_equal(self.theirs[first], self.theirs[here]):
                    yield (
                        name,
                        f"{here} is tied to {names[0]} in the reference, and in the port it is another than {first}",
                    )

    def _missing(self, name: str) -> str:
        if name in self.whole:
            return f"{name} holds {self.whole[name]} in the port: quantised, and its scales are not known"
        twin = self.held.get(content(self.ours[name]))
        if twin is not None and twin != name and twin in self.pairs:
            return f"{name} is missing in the port; in the reference it is tied to {twin}"
        return f"{name} is missing in the port"

    def _extra(self, name: str) -> str | None:
        x = self.theirs[name]
        if telling(x) and content(x) in self.held:
            return None  # a second name for what is there
        said = fresh(x)
        return f"{name} is in the port alone" + (f"; it {said}" if said else "")


def _leaf(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _is_turned(ours: Floats, theirs: Floats) -> bool | None:
    """Whether theirs is ours transposed, or as it is, up to how heads are an axis of their own; None where it is neither."""
    if ours.size != theirs.size or ours.ndim < 2 or theirs.ndim < 2:
        return None
    if np.array_equal(ours.ravel(), theirs.ravel()):
        return False
    if moved_axes(ours, theirs) is not None:
        return True
    flat = ours if ours.ndim == 2 else None
    views = (
        [flat] if flat is not None else [ours.reshape(ours.shape[0], -1), ours.reshape(-1, ours.shape[-1])]
    )
    return True if any(np.array_equal(v.T.ravel(), theirs.ravel()) for v in views if v is not None) else None
