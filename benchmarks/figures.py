"""Speed and memory over length: measured numbers, as JSON, and drawn from them, as SVG with what was fitted.

    python benchmarks/figures.py benchmarks/results          # measures, then draws
    python benchmarks/figures.py benchmarks/results --draw   # draws what growth.json there holds

Time of the forward pass grows as L^2 for full attention and as L for a window: exponents are slopes of least squares
in logarithms, over the longer half of the lengths, where constant costs no longer show. The extra memory of forward and
backward through the engine is a constant, the tiles, and so much for each position: the slope of a straight line.
It begins at 2048: below, a process that has run once has enough left over, and asks the system for nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

#: the titles of the figures; their lengths and files
TIME, MEMORY = "time of the forward pass", "extra memory of forward and backward"
LENGTHS = {TIME: (512, 1024, 2048, 4096, 8192), MEMORY: (2048, 4096, 8192, 16384, 32768)}
FILES = {TIME: "speed.svg", MEMORY: "memory.svg"}
LIBRARIES = ("numpy", "jax", "torch")
INK = "#767676"  # in sight on white paper and on black
matplotlib.rcParams |= {"svg.hashsalt": "polyattn", "savefig.transparent": True} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)

Curves = dict[str, list[float]]  # name -> a number for each length


def seconds(library: str, length: int, mask: str | None) -> float:
    """The median time of a forward pass, 2 heads of width 64."""
    from cases import CONTESTANTS, Case

    run = CONTESTANTS[f"polyattn {library}"](
        Case("growth", heads=2, kv_heads=2, rows=length, keys=length, mask=mask)
    )
    assert run is not None
    run()
    times = []
    for _ in range(5):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def extra_bytes(library: str, length: int) -> float:
    script = Path(__file__).parent / "memory.py"
    run = subprocess.run(
        [sys.executable, str(script), library, str(length)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def measure() -> dict[str, Curves]:
    """The numbers of both figures."""
    return {
        TIME: {
            f"{library}, {mask or 'full'}": [seconds(library, n, mask) for n in LENGTHS[TIME]]
            for mask in (None, "window")
            for library in LIBRARIES
        },
        MEMORY: {library: [extra_bytes(library, n) for n in LENGTHS[MEMORY]] for library in LIBRARIES},
    }


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The slope in logarithms over the longer half."""
    half = len(lengths) // 2
    return float(np.polyfit(np.log(lengths[half:]), np.log(values[half:]), 1)[0])


def per_position(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a straight line through all."""
    return float(np.polyfit(lengths, values, 1)[0])


def draw(path: Path, title: str, lengths: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    for name, values in curves.items():
        if title == TIME:
            label = f"{name}: L^{exponent(lengths, values):.2f}"
            axes.loglog(lengths, values, marker="o", label=label)
        else:
            label = f"{name}: {per_position(lengths, values) / 1e3:.1f} kB for each position"
            axes.plot(lengths, [x / 1e6 for x in values], marker="o", label=label)
        print(f"{title}: {label}")
    axes.set(title=title, xlabel="L", ylabel="seconds" if title == TIME else "MB")
    ticks = lengths if title == TIME else lengths[1:]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xticks([], minor=True)  # their labels would lie over those of the lengths
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    folder = Path(sys.argv[1])
    kept = folder / "growth.json"
    if "--draw" not in sys.argv:
        kept.write_text(json.dumps({"lengths": LENGTHS, "curves": measure()}, indent=1) + "\n")
    found = json.loads(kept.read_text())
    for title, file in FILES.items():
        draw(folder / file, title, found["lengths"][title], found["curves"][title])


if __name__ == "__main__":
    main()
