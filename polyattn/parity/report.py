"""Results as a page, as JUnit: inert whatever the labels say, written only where told."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from polyattn.parity.reasons import Reason
from polyattn.truth.measure import ACCEPTANCE

__all__ = [
    "Cell",
    "JUnitCase",
    "Matrix",
    "Page",
    "Row",
    "bars",
    "eta_cell",
    "finite",
    "junit",
    "number",
    "one_line",
    "render",
    "visible",
    "write",
]


class Cell(NamedTuple):
    """One cell: its text, whether it is good (None = neither), and what the mouse shows."""

    text: str
    ok: bool | None = None
    hint: str = ""


class Row(NamedTuple):
    """A line of a matrix."""

    name: str
    cells: Sequence[Cell]


class Matrix(NamedTuple):
    """A table with a heading."""

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""


class Bar(NamedTuple):
    """A bar of the chart, its width in pixels."""

    name: str
    width: int
    text: str
    ok: bool


@dataclass(frozen=True)
class Page:
    """What a report says, whatever it is about."""

    title: str
    verdict: str
    agrees: bool
    matrices: Sequence[Matrix]
    environment: Mapping[str, str]
    bars: Sequence[Bar] = ()
    findings: Sequence[str] = ()
    worst: str = ""
    script: str = ""
    notes: Sequence[str] = ()
    limit: int = field(default_factory=lambda: _width(ACCEPTANCE))


def render(page: Page) -> str:
    """The page as one HTML file: no scripts, no remote assets, every text escaped, styles allowed by their hash."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise ImportError(
            "polyattn.parity: expected Jinja2, which makes reports, got an environment without it; pip install 'polyattn[cli]'"
        ) from None
    folder = Path(__file__).parent
    style = (folder / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    templates = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    from markupsafe import Markup

    return visible(
        templates.get_template("report.html.j2").render(page=page, style=Markup(style), style_hash=digest)
    )


def write(page: str, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Writes a page to the named file; FileExistsError if it is there, unless forced."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"polyattn.parity.Comparison.to_html: expected an existing folder for the report {path.name!r}, got {str(path.parent)!r}; make it first"
        )
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(page)
    except FileExistsError:
        raise FileExistsError(
            f"polyattn.parity.Comparison.to_html: expected a new file for the report, got {str(path)!r}, which is there; force it, or "
            "name another"
        ) from None


class JUnitCase(NamedTuple):
    """One test case: no message if it passed."""

    class_name: str
    name: str
    message: str | None
    error: bool  # it could not be run, rather than failed
    seconds: float | None = None
    properties: Mapping[str, str] = {}


def junit(suite: str, cases: Sequence[JUnitCase]) -> str:
    """A JUnit test suite."""
    root = ElementTree.Element(
        "testsuite",
        name=suite,
        tests=str(len(cases)),
        failures=str(sum(c.message is not None and not c.error for c in cases)),
        errors=str(sum(c.message is not None and c.error for c in cases)),
        skipped="0",
    )
    if all(c.seconds is not None for c in cases):
        root.set("time", f"{sum(c.seconds or 0.0 for c in cases):.3f}")
    for c in cases:
        test = ElementTree.SubElement(root, "testcase", classname=visible(c.class_name), name=visible(c.name))
        if c.seconds is not None:
            test.set("time", f"{c.seconds:.3f}")
        if c.properties:
            inside = ElementTree.SubElement(test, "properties")
            for name, value in c.properties.items():
                ElementTree.SubElement(inside, "property", name=visible(name), value=visible(value))
        if c.message is not None:
            ElementTree.SubElement(test, "error" if c.error else "failure", message=visible(c.message))
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def visible(text: str) -> str:
    """Without control characters: neither XML nor a terminal shall obey a label."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def one_line(text: str) -> str:
    """A label that cannot break a line, a terminal or a program."""
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def finite(value: float) -> float | None:
    """A number as JSON has it: None for what is not finite."""
    return value if math.isfinite(value) else None


def number(value: float) -> str:
    """An eta in a few characters."""
    return f"{value:.2f}" if value < 100 else "inf" if math.isinf(value) else f"{value:.1e}"


def eta_cell(value: float | None, why: Reason | None = None, limit: float = ACCEPTANCE) -> Cell:
    """An eta, good up to the limit; a word where it is no number."""
    if value is None:
        return Cell("-")
    return Cell(number(value), value <= limit) if why is None else Cell(why.word, False, why.sentence)


def _width(value: float) -> int:
    """Pixels of a bar: 0.01 to 1e9 on a logarithmic scale."""
    clipped = min(max(value, 0.01), 1e9)
    return round(350 * (math.log10(clipped) + 2) / 11) + 1


def bars(columns: Iterable[tuple[str, float]]) -> list[Bar]:
    """A bar for each name and eta."""
    return [Bar(name[:28], _width(x), number(x), x <= ACCEPTANCE) for name, x in columns]
