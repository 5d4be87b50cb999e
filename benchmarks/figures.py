"""Speed and memory over length, as SVG and as fitted exponents.

    python benchmarks/figures.py benchmarks/results

Time of the forward pass grows as L^2 for full attention and as L for a window; the extra memory of forward and
backward through the engine grows as L. The exponents are slopes of least squares in logarithms, over the longer
half of the lengths, where constant costs no longer show.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from cases import CONTESTANTS, Case
from matplotlib.figure import Figure

LENGTHS = (512, 1024, 2048, 4096, 8192)
LIBRARIES = ("numpy", "jax", "torch")
matplotlib.rcParams["svg.hashsalt"] = "polyattn"


def seconds(library: str, length: int, mask: str | None) -> float:
    """The median time of a forward pass, 2 heads of width 64."""
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


def exponent(values: list[float]) -> float:
    """The slope in logarithms over the longer half."""
    half = len(LENGTHS) // 2
    return float(np.polyfit(np.log(LENGTHS[half:]), np.log(values[half:]), 1)[0])


def draw(path: Path, title: str, unit: str, curves: dict[str, list[float]]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.loglog(LENGTHS, values, marker="o", label=f"{name}: L^{exponent(values):.2f}")
        print(f"{title}: {name} grows as L^{exponent(values):.2f}")
    axes.set(title=title, xlabel="L", ylabel=unit)
    axes.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    folder = Path(sys.argv[1])
    speed = {
        f"{library}, {mask or 'full'}": [seconds(library, n, mask) for n in LENGTHS]
        for mask in (None, "window")
        for library in LIBRARIES
    }
    draw(folder / "speed.svg", "time of the forward pass", "seconds", speed)
    memory = {library: [extra_bytes(library, n) for n in LENGTHS] for library in LIBRARIES}
    draw(folder / "memory.svg", "extra memory of forward and backward", "bytes", memory)


if __name__ == "__main__":
    main()
