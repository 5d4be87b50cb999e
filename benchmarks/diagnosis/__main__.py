"""How often `polyattn.parity.diagnose` names the right cause: defects are planted and diagnosed.

    python -m benchmarks.diagnosis                            a line for each theme, then the figures and their targets
    python -m benchmarks.diagnosis --all                      a row for each defect, pair, library and unknown error
    python -m benchmarks.diagnosis --kinds singles --seeds 1  a part of it; kinds: singles, pairs, right, unknown
    python -m benchmarks.diagnosis --first 1000               other random problems, other pairs
    python -m benchmarks.diagnosis --dtype bfloat16 --jobs 2  one dtype, two processes
    python -m benchmarks.diagnosis --only 'scale 1/sqrt(72)' --seed 3 --dtype float32   one of them, as it is diagnosed

Attention is written here once more, plainly, in PyTorch, as a chain of stages; a defect replaces some of them. Inputs
and outputs are float32, or bfloat16 with float32 inside. A defect counts wherever its effect in float64 exceeds what
rounding explains (eta 4) by more than right code errs; a pair wherever each of the two moves the result of the other by
as much. Of a defect with a number the number must be said, to three digits. Named first is what `diagnose` says first;
what cannot be told apart from it on the inputs is counted separately. Whatever is said that is not so is an accusation:
of defects, of right outputs of every library that is installed, of errors that have no name.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

from .problems import DTYPES
from .report import again, figures, samples, table
from .trial import JOIN, KINDS, Task, Trial, run, tasks

Mapped = Callable[[Iterable[Task]], Iterable[Trial | None]]


@contextmanager
def runner(jobs: int) -> Iterator[Mapped]:
    """What runs tasks in order, in so many processes."""
    if jobs == 1:
        yield partial(map, run)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield partial(pool.imap, run, chunksize=4)


def trials(kind: str, dtypes: list[str], asked: argparse.Namespace, each: Mapped) -> Iterator[Trial]:
    """Those of one kind that have something to judge. Pairs are looked through until so many of them show."""

    def work(*dtypes: str) -> Iterator[Task]:
        seeds = asked.right if kind == "right" else asked.seeds
        drawn = tasks(kind, list(dtypes), seeds, asked.first)
        return (task for task in drawn if re.search(asked.match, task.name))

    if kind != "pairs":
        yield from filter(None, each(work(*dtypes)))
        return
    for dtype in dtypes:
        left, found = work(dtype), 0
        # By sixteen: a pool takes all that it is given, and there are forty thousand candidates.
        while found < asked.pairs and (part := list(islice(left, 16))):
            for trial in islice(filter(None, each(part)), asked.pairs - found):
                found += 1
                yield trial


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diagnosis", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="all by default")
    parser.add_argument("--seeds", type=int, default=3, help="random problems per defect and unknown error")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of defects per dtype")
    parser.add_argument("--right", type=int, default=4, help="random problems per library and feature")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="float32, bfloat16 by default; right also float16"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--all", action="store_true", help="a row for each")
    parser.add_argument("--samples", type=int, default=40, help="how many of what went wrong are printed")
    parser.add_argument("--match", default="", help="only names in which this regular expression is found")
    parser.add_argument("--only", help="the name of one defect, 'one & other', 'library on feature' or error")
    parser.add_argument("--seed", type=int, default=0, help="of --only")
    return parser


def _one(asked: argparse.Namespace) -> int:
    """--only: what is said of it."""
    known = {task.name: kind for kind in KINDS if kind != "pairs" for task in tasks(kind, ["float32"], 1)}
    kind = "pairs" if JOIN in asked.only else known.get(asked.only)
    if kind is None:
        print(
            f"python -m benchmarks.diagnosis: expected --only to be a name that --all prints, got {asked.only!r}"
        )
        return 2
    for dtype in asked.dtype or ["float32", "bfloat16"]:
        trial = run(Task(kind, asked.only, dtype, asked.seed))
        print(
            again(trial)
            if trial
            else f"- {dtype}, seed {asked.seed}: it does not show there, or has no word for it"
        )
    return 0


def main(words: list[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    if asked.only:
        return _one(asked)
    done: list[Trial] = []
    with runner(asked.jobs) as each:
        for kind in asked.kinds:
            dtypes = asked.dtype or [*list(DTYPES)[:2], *(["float16"] if kind == "right" else [])]
            mine = list(trials(kind, dtypes, asked, each))
            if mine and (asked.all or kind in ("singles", "right")):
                print(*table(kind, mine, "name" if asked.all else "group"), "", sep="\n", flush=True)
            done += mine
    if not done:
        print("nothing shows")
        return 1
    if wrong := samples(done, asked.samples):
        print("what was not named, or accused:", *wrong, "", sep="\n")
    lines = figures(done)
    print(*(line.text for line in lines), sep="\n")
    return 0 if all(line.reached for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
