"""The tables that README and docs show of results: made here, checked by tests/house/test_readme.py.

python docs/tables.py                  # what libraries answer, into README.md; benchmarks/results, into docs/accelerators.md
polyattn verify --json results.json
python docs/tables.py results.json     # also the results, into docs/parity.md and README.md
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyattn.dialects import DIALECTS, QUESTIONS
from polyattn.dialects.capabilities import CARRIED
from polyattn.parity.report import number
from polyattn.parity.verify import SHORT

ROOT = Path(__file__).parents[1]
README, PARITY = ROOT / "README.md", ROOT / "docs" / "parity.md"
ACCELERATORS, COMPILED = ROOT / "docs/accelerators.md", ROOT / "benchmarks/results/ahead_of_time.jsonl"

PEERS = {"SDPA": "torch.sdpa", "FlexAttention": "torch.flex", "jax.nn": "jax.nn"}
#: What the contract answers to the questions in which they differ.
OURS = {
    "causal": "asks which rows these are",
    "empty row": "0, gradient 0",
    "poison": "reaches nobody, not by a bit",
    "softcap": "by a score_mod, before bias and mask",
    "sinks": "a number per head, differentiable",
    "lse": "natural log, differentiable",
    "value width": "any",
    "float64": "float64 throughout",
}
#: The excerpt of README: cases and libraries, in float32.
CASES = ("plain", "causal last rows", "rows that see nothing", "poison in hidden keys", "MiniLM layer 1")
LIBRARIES = {"numpy": "NumPy", "jax": "JAX", "torch": "PyTorch"}

Results = Mapping[str, Any]  # as `polyattn verify --json` writes them


def features() -> str:
    """What polyattn and the functions of the libraries answer, and how much of a call each can be told."""
    lines = [_row("", "polyattn", *PEERS), _row(*["---"] * (len(PEERS) + 2))]
    for key, ours in OURS.items():
        cells = [
            DIALECTS[d].choice(key).says + ("" if DIALECTS[d].answers[key].tested else " †")
            for d in PEERS.values()
        ]
        lines.append(_row(QUESTIONS[key].asks, ours, *cells))
    told = [f"{len(DIALECTS[d].carries)} of {len(CARRIED)}" for d in PEERS.values()]
    lines.append(_row("features of a call that it can be told", f"{len(CARRIED)} of {len(CARRIED)}", *told))
    return "\n".join(lines)


def excerpt(results: Results) -> str:
    """A few cases in float32."""
    etas = _etas(results)
    lines = [_row("case, in float32", *LIBRARIES.values()), _row("---", *["--:"] * len(LIBRARIES))]
    lines += [_row(case, *(etas[case, name, "float32"] for name in LIBRARIES)) for case in CASES]
    return "\n".join(lines)


def whole(results: Results) -> str:
    """Every case on every library and dtype, and the largest of each column."""
    etas, outcomes = _etas(results), results["outcomes"]
    columns = list(dict.fromkeys((o["backend"], o["dtype"]) for o in outcomes))
    cases = list(dict.fromkeys(o["case"] for o in outcomes))
    backends = list(dict.fromkeys(name for name, _ in columns))
    worst = {
        column: max(_eta(o) for o in outcomes if (o["backend"], o["dtype"]) == column) for column in columns
    }
    largest = [_row("largest eta", *backends), _row("---", *["--:"] * len(backends))]
    for dtype in SHORT:
        largest.append(
            _row(dtype, *(number(worst[b, dtype]) if (b, dtype) in worst else "" for b in backends))
        )
    table = [_row("case", *(f"{b} {SHORT[d]}" for b, d in columns)), _row("---", *["--:"] * len(columns))]
    table += [_row(case, *(etas.get((case, *column), "") for column in columns)) for case in cases]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    agree = sum(o["agrees"] for o in outcomes)
    return "\n".join(
        (
            f"{agree} of {len(outcomes)} results agree, on {versions}, Python {results['python']}.",
            "",
            *largest,
            "",
            "::::{container} numbers",
            "",
            *table,
            "",
            "::::",
        )
    )


def compiled() -> str:
    """What benchmarks/ahead_of_time.py found and keeps: a table for each chip, with the memory of every program."""
    lines = [json.loads(line) for line in COMPILED.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(line["contestant"] for line in lines))
    tables = []
    for chip in dict.fromkeys(line["chip"] for line in lines):
        here = [line for line in lines if line["chip"] == chip]
        memory = next(line["memory"] for line in here if "memory" in line)
        tables += [f"**{chip}**, {memory / 2**30:.2f} GiB", "", "::::{container} numbers", ""]
        tables += [_row("case", *names), _row("---", *["--:"] * len(names))]
        cells: dict[str, dict[str, str]] = {}
        for line in here:
            case = " ".join(str(line[key]) for key in ("problem", "length", "dtype", "direction"))
            cells.setdefault(case, {})[line["contestant"]] = _memory(line)
        tables += [_row(case, *(row.get(name, "") for name in names)) for case, row in cells.items()]
        longest = {
            n: max((x.get("seconds", 0.0) for x in here if x["contestant"] == n), default=0) for n in names
        }
        tables += [_row("longest compilation", *(f"{s:.0f} s" if s else "" for s in longest.values()))]
        tables += ["", "::::", ""]
    versions = ", ".join(f"{name} {version}" for name, version in lines[0]["versions"].items())
    return "\n".join([f"With {versions}.", "", *tables]).rstrip()


def _memory(line: Mapping[str, Any]) -> str:
    """Of one program: its temporaries, or that it is refused or does not fit."""
    if "temporaries" not in line or line["why_not"]:
        return "refused"
    if not line["fits"]:
        needs = line["arguments"] + line["outputs"] + line["temporaries"]
        return f"needs {needs / 2**30:.0f} GiB ✗"
    size = line["temporaries"] / 2**20
    return f"{size:.1f} MiB" if size < 1024 else f"{size / 1024:.1f} GiB"


def _eta(outcome: Mapping[str, Any]) -> float:
    """The largest eta of one result; JSON has null for what is not finite."""
    found: Sequence[float | None] = list(outcome["eta"].values())
    return math.inf if outcome["error"] or None in found else max(x for x in found if x is not None)


def _etas(results: Results) -> dict[tuple[str, str, str], str]:
    return {
        (o["case"], o["backend"], o["dtype"]): "error ✗"
        if o["error"]
        else f"{number(_eta(o))} {'✓' if o['agrees'] else '✗'}"
        for o in results["outcomes"]
    }


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def part(page: str, name: str) -> tuple[int, int]:
    """Where a page has what stands between the marks of a table."""
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end of {name} -->", page, re.DOTALL)
    if found is None:
        raise ValueError(f"docs/tables.py: expected a page with the marks of {name!r}, got none; write them")
    return found.span(1)


def put(path: Path, name: str, text: str) -> None:
    page = path.read_text(encoding="utf-8")
    start, stop = part(page, name)
    path.write_text(page[:start] + text + page[stop:], encoding="utf-8")


def main() -> None:
    put(README, "features", features())
    put(ACCELERATORS, "compiled", compiled())
    if len(sys.argv) > 1:
        results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        put(README, "parity", excerpt(results))
        put(PARITY, "parity", whole(results))
    print(f"written: {README.name}, {ACCELERATORS.name}" + (f", {PARITY.name}" if len(sys.argv) > 1 else ""))


if __name__ == "__main__":
    main()
