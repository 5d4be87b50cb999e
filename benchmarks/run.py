"""Times the contestants on the cases: interleaved rounds, medians, ratios, targets.

    python benchmarks/run.py                    every case, a table, the targets and their verdicts
    python benchmarks/run.py --case window      cases with this in their name
    python benchmarks/run.py --smoke            tiny cases, to see that everything runs
    python benchmarks/run.py --json FILE        also a JSON line per measurement, with versions and machine

Only ratios inside one run mean anything: the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from cases import CASES, CONTESTANTS, SMOKE, TARGETS, Case, Target

Times = dict[tuple[str, str], float]  # (case, contestant) -> median seconds


def measure(case: Case, rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """The median time of every contestant in seconds, rounds interleaved; and that of its first call."""
    runs, first = {}, {}
    for name, make in CONTESTANTS.items():
        try:
            run = make(case)
        except ImportError as error:
            print(f"  {name} is not installed: {error}")
            continue
        if run is not None:
            before = time.perf_counter()
            run()  # compiles, allocates
            first[name] = time.perf_counter() - before
            runs[name] = run
    # Of something that takes microseconds, one round is many calls.
    calls = 200 if case.rows * case.keys * case.heads <= 4096 else 1
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > seconds:
            break
        # In another order each round, and each after a call that is not timed: who comes after a contestant
        # whose threads still spin, or that leaves the caches cold, would be slower for it.
        for name, run in random.Random(done).sample(list(runs.items()), len(runs)):
            if first[name] < 2.0:
                run()
            before = time.perf_counter()
            for _ in range(calls):
                run()
            times[name].append((time.perf_counter() - before) / calls)
    return {name: statistics.median(values) for name, values in times.items()}, first


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    versions = {}
    for name in ("polyattn", "numpy", "jax", "torch", "onnxruntime", "keras"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": versions,
    }


def show(case: Case, times: dict[str, float], first: dict[str, float]) -> None:
    peers = [name for name in times if not name.startswith("polyattn")]
    print(
        f"{case.name}  (B {case.batch}, H {case.heads}/{case.kv_heads}, L {case.rows}, S {case.keys}, D {case.width})"
    )
    for name, value in times.items():
        ratios = "  ".join(f"{times[peer] / value:6.2f}x {peer}" for peer in peers)
        ratios = ratios if name.startswith("polyattn") else ""
        print(f"  {name:25}{value * 1e3:11.3f} ms  first call {first[name]:6.2f} s  {ratios}".rstrip())
    sys.stdout.flush()


def verdict(target: Target, times: Times) -> str | None:
    """A line that says whether a target is reached; None if it was not measured."""
    first, _, second = target.case.partition(" / ")
    ours, peer = times.get((first, target.ours)), times.get((second or first, target.peer))
    if ours is None or peer is None:
        return None
    if target.extra is not None:
        more = (ours - peer) * 1e6
        reached = more <= target.extra
        text = f"{target.case}: {target.ours} costs {more:.1f} us more than {target.peer}, target {target.extra:g}"
    else:
        reached = peer / ours >= target.ratio
        text = f"{target.case}: {target.ours} {peer / ours:.2f}x {target.peer}, target {target.ratio:g}x"
    return f"  {'reached' if reached else 'MISSED '}  {text}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny cases, one round")
    parser.add_argument("--case", default="", help="cases with this in their name")
    parser.add_argument("--rounds", type=int, default=9, help="at most so many rounds a case")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="and after three of them about so many seconds"
    )
    parser.add_argument("--json", type=Path, help="write a JSON line per measurement here")
    args = parser.parse_args()
    all_times: Times = {}
    for case in SMOKE if args.smoke else CASES:
        if args.case in case.name:
            times, first = measure(case, 1 if args.smoke else args.rounds, args.seconds)
            show(case, times, first)
            all_times |= {(case.name, name): value for name, value in times.items()}
    print("targets")
    for target in TARGETS:
        if line := verdict(target, all_times):
            print(line)
    if args.json:
        facts = machine()
        lines = [{"case": c, "contestant": n, "seconds": s, **facts} for (c, n), s in all_times.items()]
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
