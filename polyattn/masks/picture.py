"""Pictures of masks: which batch items and heads look alike, and each look as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from polyattn.arrays import backend_of
from polyattn.masks.forms import Forms

__all__ = ["Panel", "panels", "svg"]

INK, TILE = "#767676", "#3b82f6"  # in sight on white and on black: nobody knows the page
SIDE, CELL = 360, 18  # pixels of a panel at most, and of a cell
LEFT, RIGHT, BOTTOM = 46, 12, 34  # the margins of a panel
WIDE, MOST = 840, 12  # pixels in a line of panels, and panels at most


class Panel(NamedTuple):
    """What some batch items and heads see, a list of bools for each query."""

    label: str  # "items 0, 2", "item 1, head 0"; empty where there is only one panel
    rows: list[list[bool]]


def panels(
    mask: Forms,
    queries: int,
    keys: int | None = None,
    *,
    query_offset: int = 0,
    b: int | None = None,
    h: int | None = None,
) -> list[Panel]:
    """A panel for all that look alike, in the order of the batch; of one item or head where b or h is given.

    >>> from polyattn import masks
    >>> for label, rows in panels(masks.key_lengths([1, 2, 1]), 1, 2):
    ...     print(label, rows)
    items 0, 2 [[True, False]]
    item 1 [[True, True]]
    """
    batch = max(mask.batch_size(), (b or 0) + 1)
    heads = max(mask.head_count(), (h or 0) + 1)
    full = mask.dense(queries, keys, batch=batch, heads=heads, query_offset=query_offset)
    to_list = backend_of(full).to_list
    items, of_item = range(batch) if b is None else (b,), range(heads) if h is None else (h,)
    alike: list[tuple[list[list[bool]], list[tuple[int, int]]]] = []
    for place in ((item, head) for item in items for head in of_item):
        rows = to_list(full[(*place, ...)])
        same = next((places for seen, places in alike if seen == rows), None)
        if same is None:
            alike.append((rows, [place]))
        else:
            same.append(place)
    return [Panel(_label(places, batch, heads) if len(alike) > 1 else "", rows) for rows, places in alike]


def _label(places: Sequence[tuple[int, int]], batch: int, heads: int) -> str:
    def named(name: str, numbers: Sequence[int]) -> str:
        shown = ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
        return f"{name}{'s' if len(numbers) > 1 else ''} {shown}"

    items, heads_here = sorted({b for b, _ in places}), sorted({h for _, h in places})
    if heads == 1:
        return named("item", items)
    if batch == 1:
        return named("head", heads_here)
    if len(items) * len(heads_here) == len(places):
        return f"{named('item', items)}, {named('head', heads_here)}"
    b, h = places[0]
    return f"item {b}, head {h} and {len(places) - 1} more"


def svg(
    mask: Forms,
    queries: int,
    keys: int | None = None,
    *,
    query_offset: int = 0,
    b: int | None = None,
    h: int | None = None,
) -> str:
    """The mask as one SVG element that needs nothing else: queries downwards, keys to the right, a tile where a query
    may attend. Items and heads that differ have a panel each; the paper is transparent.

    >>> from polyattn import masks
    >>> svg(masks.causal(), 2)[:41]
    '<svg xmlns="http://www.w3.org/2000/svg" w'
    """
    found = panels(mask, queries, keys, query_offset=query_offset, b=b, h=h)
    shown, left_out = found[:MOST], len(found[MOST:])
    top = 20 if len(found) > 1 else 4  # room for a label
    columns = queries if keys is None else keys
    cell = min(CELL, SIDE / max(queries, columns, 1))
    width, height = LEFT + cell * columns + RIGHT, top + cell * queries + BOTTOM
    abreast = max(1, min(len(shown), int(WIDE // width)))
    lines = -(-len(shown) // abreast)
    whole = max(abreast * width, 320.0)
    below = 16 if left_out else 0
    high = 20 + lines * height + below
    size = f'width="{whole:g}" height="{high:g}" viewBox="0 0 {whole:g} {high:g}"'
    name, first = str(mask), f", query 0 at position {query_offset}" if query_offset else ""
    caption = _cut(name, whole - LEFT - 7 * len(first)) + first
    return "".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif" ',
            f'font-size="11" fill="{INK}"><title>{_text(name + first)}: {queries} queries, {columns} keys</title>',
            f'<text x="{LEFT}" y="14" font-family="monospace">{_text(caption)}</text>',
            *(
                _panel(panel, columns, cell, i % abreast * width + LEFT, i // abreast * height + top + 20)
                for i, panel in enumerate(shown)
            ),
            f'<text x="{LEFT}" y="{32 + lines * height:g}">and {left_out} more</text>' if left_out else "",
            "</svg>",
        )
    )


def _panel(panel: Panel, keys: int, cell: float, x: float, y: float) -> str:
    queries = len(panel.rows)
    width, height = cell * keys, cell * queries
    step = next(n * 10**e for e in range(12) for n in (1, 2, 5) if n * 10**e * cell >= 28)
    every = 1 if cell >= 6 else step
    grid = [f"M{i} 0v{queries}" for i in range(0, keys + 1, every)]
    grid += [f"M0 {i}h{keys}" for i in range(0, queries + 1, every)]
    return "".join(
        (
            f'<g transform="translate({x:g} {y:g})"><text y="-6">{_text(panel.label)}</text>',
            f'<g transform="scale({cell:g})"><path d="{"".join(_tiles(panel.rows))}" fill="{TILE}" ',
            f'shape-rendering="crispEdges"/><path d="{"".join(grid)}M0 0h{keys}v{queries}h-{keys}z" fill="none" ',
            f'stroke="{INK}" stroke-opacity="0.5" stroke-width="1" vector-effect="non-scaling-stroke"/></g>',
            f'<g text-anchor="middle">{"".join(_across(range(0, keys, step), cell, height + 13))}',
            f'<text x="{width / 2:g}" y="{height + 27:g}">key</text>',
            f'<text transform="translate(-32 {height / 2:g}) rotate(-90)">query</text></g>',
            f'<g text-anchor="end">{"".join(_down(range(0, queries, step), cell))}</g></g>',
        )
    )


def _tiles(rows: Sequence[Sequence[bool]]) -> Iterator[str]:
    """A rectangle for each run of keys that a query may attend to."""
    for q, row in enumerate(rows):
        start = None
        for kv, allowed in enumerate((*row, False)):
            if allowed and start is None:
                start = kv
            elif not allowed and start is not None:
                yield f"M{start} {q}h{kv - start}v1h{start - kv}z"
                start = None


def _across(ticks: range, cell: float, y: float) -> Iterator[str]:
    return (f'<text x="{(i + 0.5) * cell:g}" y="{y:g}">{i}</text>' for i in ticks)


def _down(ticks: range, cell: float) -> Iterator[str]:
    return (f'<text x="-5" y="{(i + 0.5) * cell + 4:g}">{i}</text>' for i in ticks)


def _cut(text: str, width: float) -> str:
    """As much of a text as a line has room for."""
    room = int(width // 7)
    return text if len(text) <= room else text[: room - 3] + "..."


def _text(text: str) -> str:
    """Inert whatever a label says."""
    return escape("".join(c if c.isprintable() else "?" for c in text))
