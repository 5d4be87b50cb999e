"""Compiles attention for TPUs and an H100 on a machine that has neither: time, memory, and what is refused.

    python benchmarks/ahead_of_time.py                                  some 20 minutes on two cores
    python benchmarks/ahead_of_time.py --quick                          causal, for one TPU and one GPU
    python benchmarks/ahead_of_time.py --chips v5e --problems window    these alone, at every length
    python benchmarks/ahead_of_time.py --json FILE                      also a JSON line per program

Needs the extra aot, in an environment of its own: `make aot` makes it. Nothing runs on a chip, so nothing is said of speed.
The backward program is the gradient of the sum with respect to q, k and v, the forward pass within. Memory is of one
chip: 8 heads of width 128, one item.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before JAX is imported, here and in the processes that compile.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from ahead_of_time_cases import CONTESTANTS, DIRECTIONS, DTYPES, PROBLEMS, Case
from polyattn_jax.targets import TARGETS, target

LENGTHS = (2048, 8192, 32768, 131072)
Task = tuple[str, Case, str]  # chip, case, contestant


def usual() -> list[Case]:
    """Causal at every length, every problem at one, and float32 at one."""
    cases = [Case("causal", n, direction=d) for n in LENGTHS for d in DIRECTIONS]
    cases += [Case(p, 32768, direction=d) for p in PROBLEMS if p != "causal" for d in DIRECTIONS]
    return cases + [Case("causal", 32768, "float32", d) for d in DIRECTIONS]


def run(task: Task) -> dict[str, Any] | None:
    """What came of one program; None where the contestant has no such thing."""
    chip, case, name = target(task[0]), task[1], task[2]
    found: dict[str, Any] = {"chip": chip.name, **vars(case), "contestant": name}
    try:
        program = CONTESTANTS[name](case, chip.platform)
        if program is None:
            return None
        shapes = [chip.shape(shape, case.dtype) for shape in program.shapes(case)]
        compiled = chip.compile(program.function(case.direction), *shapes)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of the contestant, while it was traced: peers have errors of many kinds
        return found | {"fits": False, "says": f"refused: {str(error).strip().splitlines()[0]}"}
    finally:
        jax.clear_caches()
    return found | vars(compiled) | {"fits": compiled.fits, "says": str(compiled)}


def quiet() -> None:
    """The compilers write to the terminal that there is no chip."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    names = ("polyattn", "jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "cores": os.cpu_count()}


def some_of(known: Sequence[Any], kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """The type of an option that takes some of these, joined by commas."""

    def parse(text: str) -> list[Any]:
        try:
            given = [kind(word.strip()) for word in text.split(",")]
        except ValueError:
            given = [None]
        if not set(given) <= set(known):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(map(str, known))}, joined by commas, got {text!r}"
            )
        return given

    return parse


def asked() -> tuple[list[Task], argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="causal at two lengths, for v5e and h100")
    parser.add_argument("--chips", type=some_of(list(TARGETS)), help=", ".join(TARGETS))
    parser.add_argument("--implementations", type=some_of(list(CONTESTANTS)), help=", ".join(CONTESTANTS))
    parser.add_argument("--problems", type=some_of(PROBLEMS), help=", ".join(PROBLEMS))
    parser.add_argument("--lengths", type=some_of(LENGTHS, int), help=", ".join(map(str, LENGTHS)))
    parser.add_argument("--dtypes", type=some_of(DTYPES), help=", ".join(DTYPES))
    parser.add_argument("--directions", type=some_of(DIRECTIONS), help=", ".join(DIRECTIONS))
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="processes that compile"
    )
    parser.add_argument("--json", type=Path, help="write a JSON line per program here")
    args = parser.parse_args()
    if args.quick:
        cases = [Case("causal", n, direction=d) for n in (2048, 32768) for d in DIRECTIONS]
    elif args.problems or args.lengths or args.dtypes:
        cases = [
            Case(*words)
            for words in product(
                args.problems or PROBLEMS, args.lengths or LENGTHS, args.dtypes or DTYPES[:1], DIRECTIONS
            )
        ]
    else:
        cases = usual()
    cases = [case for case in cases if case.direction in (args.directions or DIRECTIONS)]
    chips = args.chips or (["v5e", "h100"] if args.quick else list(TARGETS))
    try:
        print("for", ", ".join(target(name).device.device_kind for name in chips))
    except ModuleNotFoundError as error:
        parser.error(str(error))
    return list(product(chips, cases, args.implementations or CONTESTANTS)), args


def main() -> None:
    tasks, args = asked()
    lines, last = [], None
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), initializer=quiet) as pool:
        for (chip, case, name), found in zip(tasks, pool.map(run, tasks), strict=True):
            if last != (chip, case):
                print(f"{target(chip).title}  {case}")
            last = (chip, case)
            if found is not None:
                print(f"  {name:12}{found['says']}")
                lines.append(found | machine())
            sys.stdout.flush()
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
