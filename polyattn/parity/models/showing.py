"""A comparison of models as a page, as JUnit, as a figure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from polyattn.draw import BAD, GOOD, INK, drawing
from polyattn.parity.report import (
    Cell,
    JUnitCase,
    Matrix,
    Page,
    Row,
    bars,
    eta_cell,
    junit,
    number,
    render,
    write,
)
from polyattn.truth.measure import ACCEPTANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polyattn.parity.models.result import ModelComparison, TapResult

__all__ = ["figure_of", "junit_of", "page_of"]

HIGH = 1e9  # on a logarithmic axis everything beyond ends here
LOW = 0.01


def junit_of(found: ModelComparison) -> str:
    """A test case for every tap, and one for the call where it raised."""
    cases = [
        JUnitCase(
            row.name,
            f"{row.port_name} ({row.kind})",
            None if row.agrees else row.cause or f"eta {_worst(row):.3g} of {ACCEPTANCE:g}",
            False,
            properties={
                "free": number(row.free),
                "forced": "-" if row.forced is None else number(row.forced),
            },
        )
        for row in found.rows
    ]
    if found.error is not None:
        cases.append(JUnitCase("port", "call", found.error, True))
    elif not found.deterministic:
        cases.append(JUnitCase("port", "deterministic", found.verdict, False))
    return junit("polyattn compare models", cases)


def page_of(found: ModelComparison, path: Any = None, force: bool = False) -> str:
    """One self-contained page, written where told."""
    rows = [
        Row(
            row.name if row.name == row.port_name else f"{row.name} = {row.port_name}",
            [
                Cell(row.kind),
                Cell(f"{row.noise:.1e}"),
                eta_cell(row.free),
                eta_cell(row.forced),
                Cell(row.cause),
            ],
        )
        for row in found.rows
    ]
    columns = ("kind", "noise", "error/noise, whole run", "error/noise, by itself", "cause")
    matrices = [Matrix("Taps", "tap", columns, rows, f"{found.measured}; 4 is accepted."), *_map(found)]
    page = render(
        Page(
            title="A port and its reference",
            verdict=found.verdict,
            agrees=found.agrees,
            matrices=matrices,
            environment=found.environment,
            bars=bars((w.name, w.eta) for w in found.wrong[:24]),
            findings=found.findings(),
            notes=list(found.notes),
        )
    )
    if path is not None:
        write(page, path, force=force)
    return page


def _map(found: ModelComparison) -> list[Matrix]:
    """Layers downwards, the taps of a layer to the right, where there are several layers."""
    places: dict[str, dict[str, TapResult]] = {}
    for row in found.rows:
        numbered = re.match(r"(.*?\d+)(?:\.(.*))?$", row.name) or re.match(r"(.*[._]\d+)[._](.*)", row.name)
        if numbered:
            places.setdefault(numbered[1], {})[numbered[2] or "(whole)"] = row
    if len(places) < 2:
        return []
    columns = list(dict.fromkeys(column for cells in places.values() for column in cells))
    rows = [
        Row(layer, [eta_cell(_worst(cells[c])) if c in cells else Cell("") for c in columns])
        for layer, cells in places.items()
    ]
    return [Matrix("Layers", "layer", columns, rows, "The larger eta of the two.")]


def _worst(row: TapResult) -> float:
    return max(row.free, row.forced or 0.0)


def figure_of(found: ModelComparison) -> Figure:
    """Taps downwards, eta to the right."""
    rows = list(found.rows)
    with drawing("polyattn.parity.ModelComparison.figure", (7.0, 1.2 + 0.24 * max(len(rows), 1))) as figure:
        axes = figure.subplots()
        free = [min(max(row.free, LOW), HIGH) for row in rows]
        forced = [
            (i, min(max(row.forced, LOW), HIGH)) for i, row in enumerate(rows) if row.forced is not None
        ]
        axes.plot(free, range(len(rows)), "o", mfc="none", mec=INK, label="whole run")
        colours = [GOOD if eta <= ACCEPTANCE else BAD for _, eta in forced]
        axes.scatter([eta for _, eta in forced], [i for i, _ in forced], c=colours, s=14, label="by itself")
        axes.axvline(ACCEPTANCE, color=INK, linestyle=":", linewidth=1)
        axes.set(
            xscale="log", xlim=(LOW / 2, HIGH * 2), xlabel="error/noise (eta)", title=f"{found.verdict[:90]}"
        )
        axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7, parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    return figure
