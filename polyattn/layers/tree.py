"""A layer as a notebook shows it: the tree of its parts, with the shapes of its parameters and how many numbers they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from polyattn.calls import shown

if TYPE_CHECKING:
    from polyattn.layers.layer import Layer, Parameter

__all__ = ["Line", "count", "lines", "table"]


class Line(NamedTuple):
    """A parameter or a part."""

    depth: int
    name: str  # of parts that follow one another and are alike, the first and the last
    what: str  # the shape of a parameter; the class of a part, with its settings
    numbers: int
    part: bool


def count(thing: Layer | Parameter) -> int:
    """How many numbers a parameter holds, or all of a layer."""
    parts = getattr(thing, "parameters", None)
    if parts is None:
        return math.prod(thing.shape)
    return sum(count(part) for part in parts().values())


def lines(layer: Layer, depth: int = 0) -> Iterator[Line]:
    """A line for each parameter and each part, in their order; equal parts in a row are one line, with their number.

    >>> from polyattn.layers import LayerNorm
    >>> [(line.name, line.what, line.numbers) for line in lines(LayerNorm(3, epsilon=1e-5))]
    [('scale', '(3,)', 3), ('bias', '(3,)', 3)]
    """
    for part, same in groupby(layer.parameters().items(), key=lambda item: item[1]):
        names = [name for name, _ in same]
        if not hasattr(part, "parameters"):
            for name in names:  # arrays are named one by one
                yield Line(depth, name, str(part.shape), count(part), False)
            continue
        name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}, {len(names)} alike"
        yield Line(depth, name, described(part), len(names) * count(part), True)
        yield from lines(part, depth + 1)


def described(layer: Layer) -> str:
    """The class of a layer and its plain settings: `Dense(features=8, out=4)`."""
    said: list[str] = []
    settings: Any = layer
    for field in fields(settings):
        value = getattr(layer, field.name)
        if field.repr and isinstance(value, (bool, int, float, str)) and value != field.default:
            said.append(f"{field.name}={shown(value)}")
    return f"{type(layer).__name__}({', '.join(said)})"


def table(layer: Layer) -> str:
    """The tree as HTML: names indented by depth, all of the layer in its last line."""
    rows = "".join(
        f'<tr><td style="text-align: left; padding-left: {0.5 + 1.4 * line.depth:g}em">{_name(line)}</td>'
        f'<td style="text-align: left">{escape(line.what)}</td>'
        f'<td style="text-align: right">{line.numbers:,}</td></tr>'
        for line in lines(layer)
    )
    total = f"{count(layer):,}"
    first = "text-align: left; padding-left: 0.5em"
    return (
        f'<table><thead><tr><th style="{first}">parameter or part</th><th style="text-align: left">shape, or kind and '
        'settings</th><th style="text-align: right">numbers</th></tr></thead>'
        f'<tbody>{rows}<tr><td style="{first}"><strong>all</strong></td>'
        f'<td style="text-align: left"><strong>{escape(described(layer))}</strong></td>'
        f'<td style="text-align: right"><strong>{total}</strong></td></tr></tbody></table>'
    )


def _name(line: Line) -> str:
    return f"<strong>{escape(line.name)}</strong>" if line.part else escape(line.name)
