"""How often `polyattn.parity.compare_models` names what was ported wrongly.

    python -m benchmarks.whole_models                     every mistake alone, right ports, and three mistakes at once
    python -m benchmarks.whole_models --only llama        one architecture
    python -m benchmarks.whole_models --triples 60        more of them
    python -m benchmarks.whole_models --show "rotary base" --only llama     what it says

The ports are plain PyTorch and share no code with the models they were ported from: five of transformers and retention
in its parallel form. A component counts as named if the mistake is in it; any other that is named is accused falsely.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import time
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.whole_models.mistakes import MISTAKES, Mistake
from benchmarks.whole_models.pairing import ARCHITECTURES, pair
from polyattn.parity import compare_models

__all__ = ["Trial", "figures", "run", "singles", "triples"]

TARGETS = {"component named": 95.0, "cause named": 80.0}


class Trial(NamedTuple):
    """What was said of a port with these mistakes."""

    architecture: str
    mistakes: tuple[Mistake, ...]
    found: tuple[bool, ...]  # the component of each
    explained: tuple[bool, ...]  # its cause
    accused: tuple[str, ...]  # healthy components
    seconds: float
    text: str


def run(architecture: str, mistakes: tuple[Mistake, ...], seed: int = 0) -> Trial:
    """Plants the mistakes in a right port, and asks."""
    p = pair(architecture, seed)
    parts = dict(p.port.named_modules())
    for mistake in mistakes:
        mistake.plant(parts[mistake.component])
    start = time.perf_counter()
    with torch.no_grad():
        result = compare_models(p.reference, p.port, p.batch, port_batch=p.port_batch, names=p.names)
    seconds = time.perf_counter() - start
    said = {wrong.port_name: wrong.cause or "" for wrong in result.wrong}
    meant = [(mistake.component, *mistake.parts) for mistake in mistakes]
    return Trial(
        architecture,
        mistakes,
        tuple(any(name in said for name in names) for names in meant),
        tuple(
            any(re.search(mistake.cause, said.get(name, "")) is not None for name in names)
            for names, mistake in zip(meant, mistakes, strict=True)
        ),
        tuple(name for name in said if not any(name in names for names in meant)),
        seconds,
        str(result),
    )


def singles(architectures: tuple[str, ...] = ARCHITECTURES) -> Iterator[Trial]:
    """Right ports first, then every mistake alone."""
    for architecture in architectures:
        yield run(architecture, ())
        for mistake in MISTAKES:
            if mistake.architecture == architecture:
                yield run(architecture, (mistake,))


def triples(count: int, architectures: tuple[str, ...] = ARCHITECTURES, seed: int = 0) -> Iterator[Trial]:
    """Three mistakes at once, in components of which none holds another."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        architecture = architectures[i % len(architectures)]
        own = [mistake for mistake in MISTAKES if mistake.architecture == architecture]
        while True:
            chosen = tuple(own[int(j)] for j in rng.choice(len(own), 3, replace=False))
            if not any(_nested(a.component, b.component) for a, b in combinations(chosen, 2)):
                break
        yield run(architecture, chosen, seed=i)


def _nested(a: str, b: str) -> bool:
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def figures(trials: list[Trial]) -> dict[str, float]:
    """Per cent of mistakes whose component and whose cause was named; healthy components accused."""
    found = [x for trial in trials for x in trial.found]
    explained = [x for trial in trials for x in trial.explained]
    return {
        "mistakes": len(found),
        "component named": 100 * statistics.mean(found) if found else 100.0,
        "cause named": 100 * statistics.mean(explained) if explained else 100.0,
        "healthy accused": sum(len(trial.accused) for trial in trials),
        "median seconds": statistics.median(trial.seconds for trial in trials),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=ARCHITECTURES, action="append")
    parser.add_argument("--triples", type=int, default=60)
    parser.add_argument("--show", metavar="NAME", help="print what is said of one mistake")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    chosen = tuple(options.only or ARCHITECTURES)
    if options.show is not None:
        for mistake in MISTAKES:
            if mistake.name == options.show and mistake.architecture in chosen:
                print(run(mistake.architecture, (mistake,)).text)
        return
    for title, trials in (
        ("one mistake", list(singles(chosen))),
        ("three mistakes", list(triples(options.triples, chosen))),
    ):
        for trial in trials:
            for mistake, found, explained in zip(trial.mistakes, trial.found, trial.explained, strict=True):
                if not (found and explained):
                    word = "cause not named" if found else "NOT NAMED"
                    print(f"{trial.architecture}: {mistake.name} ({mistake.component}): {word}")
            if trial.accused:
                others = " and ".join(mistake.name for mistake in trial.mistakes) or "a right port"
                print(f"{trial.architecture}: {others}: ACCUSED {', '.join(trial.accused)}")
        print(title)
        for name, value in figures(trials).items():
            target = f"   (meant: at least {TARGETS[name]:g})" if name in TARGETS else ""
            print(f"  {name:16} {value:.3g}{target}")


if __name__ == "__main__":
    main()
