"""The page of performance, from the kept runs in benchmarks/results/; held to them by tests/house/test_performance_page.py.

python docs/performance.py             # writes the tables of docs/performance.md anew
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
OURS = {"polyattn numpy": "NumPy", "polyattn jax": "JAX", "polyattn torch": "PyTorch"}
#: Names that are shorter in the head of a column.
SHORT = {"torch MultiheadAttention": "torch MHA", "keras on torch": "keras"}
#: What the tables of decoding.txt compare, in words.
DECODING = {
    "model": "SmolLM2-135M writes, in float32, beside transformers with the same file: tokens a second and the time to the first "
    "token as ratios, and the bytes of all weights over what a copy moves in that time",
    "circular": "A step with a circular cache of 1024 slots, beside the same step behind 1000 tokens, and beside a linear cache with "
    "room for all",
    "paged": "A step with a paged cache beside one with a linear cache",
    "latent": "A step of latent attention with the latents themselves beside one with keys and values of all heads made from them",
    "recurrence": "Linear attention in chunks beside the recurrence, token by token",
}

Times = Mapping[tuple[str, str], float]


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def times() -> Times:
    """The median seconds of each contestant on each case."""
    return {(x["case"], x["contestant"]): x["seconds"] for x in _lines("cpu-2-cores.jsonl")}


def machine() -> str:
    """What the times belong to."""
    first = _lines("cpu-2-cores.jsonl")[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return (
        f"`benchmarks/results/cpu-2-cores.jsonl`, measured {first['date']} on {first['cores']} cores of {first['machine']}, "
        f"Python {first['python']}, {versions}."
    )


def beside() -> str:
    """For each library of ours the time of every case, and how many times as fast it is as each peer."""
    found = times()
    cases = list(dict.fromkeys(case for case, _ in found))
    peers = [name for name in dict.fromkeys(name for _, name in found) if name not in OURS]
    tables = [machine(), ""]
    for ours, library in OURS.items():
        here = [peer for peer in peers if any((c, peer) in found and (c, ours) in found for c in cases)]
        here.sort(key=lambda peer: -sum((case, peer) in found for case in cases))
        tables += [f"**polyattn on {library}**, times as fast as", "", "::::{container} numbers", ""]
        tables += [
            _row("case", "ms", *(SHORT.get(peer, peer) for peer in here)),
            _row("---", *["--:"] * (len(here) + 1)),
        ]
        for case in cases:
            if (case, ours) in found:
                mine = found[case, ours]
                ratios = (found[case, p] / mine if (case, p) in found else None for p in here)
                cells = ("" if x is None else f"**{x:.2f}**" if x < 1 else f"{x:.2f}" for x in ratios)
                tables.append(_row(case, f"{mine * 1e3:.3g}", *cells))
        tables += ["", "::::", ""]
    return "\n".join(tables).rstrip()


def targets() -> str:
    """Every target with what was measured, those that are missed first."""
    run = _benchmarks()
    found = [(target, run.verdict(target, times())) for target in run.TARGETS]
    rows = [(line.split()[0], line.split(None, 1)[1].strip()) for _, line in found if line]
    missed = [text for word, text in rows if word == "MISSED"]
    reached = [text for word, text in rows if word == "reached"]
    head = f"{len(missed)} of {len(rows)} targets are missed."
    table = [_row("", "measured, and the target"), _row("---", "---")]
    table += [_row("missed", text) for text in missed] + [_row("reached", text) for text in reached]
    return "\n".join([head, "", *table])


def growth() -> str:
    """The exponents of time over length, and the memory of each position."""
    found = json.loads((RESULTS / "growth.json").read_text(encoding="utf-8"))
    figures = _benchmarks("figures")
    table = [_row("", *("time, " + n for n in ("full", "window")), "memory, forward and backward")]
    table.append(_row("---", *["--:"] * 3))
    lengths, curves = found["lengths"], found["curves"]
    for library, name in zip(figures.LIBRARIES, OURS.values(), strict=True):
        powers = (
            f"L^{figures.exponent(lengths[figures.TIME], curves[figures.TIME][f'{library}, {mask}']):.2f}"
            for mask in ("full", "window")
        )
        slope = figures.per_position(lengths[figures.MEMORY], curves[figures.MEMORY][library])
        table.append(_row(name, *powers, f"{slope / 1e3:.1f} kB a position"))
    return "\n".join(table)


def decoding() -> str:
    """The tables of decoding.txt, each with what it compares."""
    head, *parts = (RESULTS / "decoding.txt").read_text(encoding="utf-8").strip().split("\n\n")
    shown = [f"`benchmarks/results/decoding.txt`. {head} Above 1 the first one named is faster.", ""]
    for part in parts:
        name, *table = part.splitlines()
        shown += [
            f"**{name.capitalize()}.** {DECODING[name]}.",
            "",
            "::::{container} numbers",
            "",
            *table,
            "",
            "::::",
            "",
        ]
    return "\n".join(shown).rstrip()


def diagnosis() -> str:
    """What `diagnose` made of planted defects, of right outputs and of what has no name."""
    text = (RESULTS / "diagnosis.txt").read_text(encoding="utf-8")
    lines = re.findall(r"^(all \w+|right outputs|unknown perturbations): (.*)$", text, re.MULTILINE)
    return "\n".join([_row("", ""), _row("---", "---"), *(_row(name, said) for name, said in lines)])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


@cache
def _benchmarks(module: str = "run") -> Any:
    """A module of benchmarks/, which is no package."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return __import__(module)
    finally:
        sys.path.remove(folder)


PARTS = {"beside": beside, "targets": targets, "growth": growth, "decoding": decoding, "diagnosis": diagnosis}


def parts(page: str) -> Iterator[tuple[str, str, Sequence[int]]]:
    """The name of each part of a page, what stands there, and where."""
    for found in re.finditer(r"<!-- (\w+) -->\n\n(.*?)\n\n<!-- end of \1 -->", page, re.DOTALL):
        yield found[1], found[2], found.span(2)


def made(page: str) -> str:
    """The page with every part as the kept runs have it."""
    for name, _, (start, stop) in reversed(list(parts(page))):
        page = page[:start] + PARTS[name]() + page[stop:]
    return page


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE.name}")
