"""What a problem has: the features that an implementation lists or refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from polyattn.arrays import is_array
from polyattn.normalizers import BY_NAME, TopK

#: name -> how it is said: "the kernel does not take ..."
FEATURES: Mapping[str, str] = {
    "causal": "a plain causal mask (L = S, both from position 0)",
    "mask": "a mask",
    "query_offset": "a query_offset",
    "traced_offset": "an offset that is an array",
    "positions": "a list of positions",
    "bias": "a bias",
    "score_mod": "a score_mod",
    "scale": "a scale that is an array",
    "sinks": "a sink",
    "sigmoid": "the normaliser sigmoid",
    "softpick": "the normaliser softpick",
    "sparsemax": "the normaliser sparsemax",
    "entmax15": "the normaliser entmax15",
    "top_k": "the normaliser top_k",
    "normalizer": "a normaliser of one's own",
    "dropout": "dropout",
    "origin": "an origin of heads or items",
    "lse": "a wish for lse",
    "weights": "a wish for weights",
    "scores": "a wish for scores",
    "max_scores": "a wish for max_scores",
}


Namer = Callable[[Any, Any], set[str]]  # the features that a value of a field is, for a problem
_DESCRIBED: dict[type, tuple[tuple[str, Any, Namer], ...]] = {}  # compilers can look through a plain dict


def features_of(p: Any) -> frozenset[str]:
    """The features of a problem, from its fields that are not at their default.

    A field that nobody described is a feature of its own name, so that whoever does not know it refuses it.
    """
    kind = type(p)
    found: set[str] = set()
    for name, default, namer in _DESCRIBED[kind] if kind in _DESCRIBED else describe(kind):
        value = getattr(p, name)
        if value is not default and not (isinstance(value, (int, float)) and value == default):
            found |= namer(p, value)
    return frozenset(found)


def describe(kind: type) -> tuple[tuple[str, Any, Namer], ...]:
    """The fields of a kind of problem that may be features: name, default, and how its values are named."""
    found = []
    for field in fields(kind):
        if field.default is not MISSING or field.name in _NAMED:
            default = None if field.default is MISSING else field.default
            found.append((field.name, default, _NAMED.get(field.name) or _by_name(field.name)))
    _DESCRIBED[kind] = tuple(found)
    return _DESCRIBED[kind]


def _by_name(name: str) -> Namer:
    return lambda p, value: {name}


def say(names: frozenset[str]) -> str:
    """The features in words, joined."""
    words = [FEATURES[name] for name in FEATURES if name in names]
    words += [f"the argument {name}" for name in sorted(names.difference(FEATURES))]
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]


def _mask(p: Any, mask: Any) -> set[str]:
    return {"causal"} if p.is_causal_square else {"mask"}


def _places(p: Any, places: Any) -> set[str]:
    found = set()
    for side in (places.query, places.key):
        if not isinstance(side, int):  # an array, or a symbol of an exporter
            found.add("positions" if is_array(side) and side.ndim == 2 else "traced_offset")
    if not found and not (places.query == 0 and places.key == 0):
        found.add("query_offset" if places.key == 0 else "positions")
    if any(is_array(n) or n != 0 for n in (places.batch, places.head)):
        found.add("origin")
    return found


_OURS = (*map(type, BY_NAME.values()), TopK)


def _normalizer(p: Any, normalizer: Any) -> set[str]:
    """Its name, unless it is of a class that was written elsewhere: nobody knows what such a one computes by its name."""
    return {normalizer.name} - {"softmax"} if type(normalizer) in _OURS else {"normalizer"}


#: Fields whose feature is not their name alone.
_NAMED: Mapping[str, Namer] = {
    "mask": _mask,
    "places": _places,
    "scale": lambda p, scale: {"scale"} if is_array(scale) else set(),
    "normalizer": _normalizer,
    "dropout_rate": lambda p, rate: {"dropout"},
    "dropout_seed": lambda p, seed: set(),  # which says nothing without a rate
    "packed": lambda p, packed: set(),  # likewise: dropout_at reads it
    "wanted": lambda p, wanted: set(wanted),
}
