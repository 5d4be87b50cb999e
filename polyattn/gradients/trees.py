"""Arrays in dicts, tuples, lists and dataclasses, at any depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from polyattn.arrays import is_array


def mapped(f: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with f(x) in place of every array x; itself where f changes none.

    >>> import numpy as np
    >>> mapped(lambda x: x + 1, {"a": (np.ones(2), "text")})
    {'a': (array([2., 2.]), 'text')}
    """
    if is_array(tree):
        return f(tree)
    if isinstance(tree, Mapping):
        found = {name: mapped(f, part) for name, part in tree.items()}
        return tree if all(found[name] is part for name, part in tree.items()) else found
    if isinstance(tree, tuple | list):
        parts = [mapped(f, part) for part in tree]
        if all(new is old for new, old in zip(parts, tree, strict=True)):
            return tree
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in fields(tree) if field.init]
        there = {name: getattr(tree, name) for name in names}
        new = {name: mapped(f, part) for name, part in there.items()}
        return tree if all(new[name] is there[name] for name in names) else type(tree)(**new)
    return tree
