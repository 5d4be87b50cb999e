"""Times the contestants on the cases: interleaved rounds, medians, ratios.

    python benchmarks/run.py            all cases, a table
    python benchmarks/run.py --smoke    tiny cases, to see that everything runs
    python benchmarks/run.py --json F   also a JSON line per measurement, with versions and machine

Only ratios inside one run mean anything: the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from cases import CASES, CONTESTANTS, SMOKE, Case


def measure(case: Case, rounds: int, seconds: float) -> dict[str, float]:
    """The median time of every contestant in seconds, rounds interleaved."""
    runs = {name: make(case) for name, make in CONTESTANTS.items()}
    for run in runs.values():
        run()  # compiles, allocates
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    packages = ("polyattn", "numpy", "jax", "torch")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny cases, one round")
    parser.add_argument("--rounds", type=int, default=15, help="at most so many rounds a case")
    parser.add_argument("--seconds", type=float, default=30.0, help="and about so many seconds")
    parser.add_argument("--json", type=Path, help="write a JSON line per measurement here")
    args = parser.parse_args()
    lines = []
    width = max(map(len, CONTESTANTS))
    for case in SMOKE if args.smoke else CASES:
        times = measure(case, 1 if args.smoke else args.rounds, args.seconds)
        print(case.name)
        for name, value in times.items():
            ratios = ", ".join(
                f"{times[peer] / value:.2f}x {peer}" for peer in ("naive numpy", "torch sdpa", "jax.nn")
            )
            print(f"  {name:{width}} {value * 1e3:10.3f} ms   {ratios}")
            lines.append({"case": case.name, "contestant": name, "seconds": value, **machine()})
        sys.stdout.flush()
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
