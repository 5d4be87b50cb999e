"""What "auto" would run for a problem given in words, on every library here or on a chip that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from polyattn import masks, mods
from polyattn.implementations import choose
from polyattn.implementations.fused import kernels_of
from polyattn.parity.bench import BENCHES
from polyattn.problem import Problem, pose

__all__ = ["explain_plan", "explain_target", "parse_plan"]

MOST_SCORES = 2**36  # whose tiles are counted in seconds

_NUMBERS = {"B": 1, "H": 8, "Hkv": 0, "L": 1024, "S": 0, "D": 64, "E": 0, "causal": 0, "window": 0, "softcap": 0, "sinks": 0, "lse": 0}  # fmt: skip


def parse_plan(text: str) -> tuple[dict[str, int], str]:
    """The numbers and the dtype of "L=4096,H=8,causal=1,dtype=float32"; what is not given has a default.

    >>> numbers, dtype = parse_plan("L=4096,H=8")
    >>> numbers["L"], numbers["S"], numbers["Hkv"], dtype
    (4096, 4096, 8, 'float32')
    """
    numbers, dtype = dict(_NUMBERS), "float32"
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        if name == "dtype" and value in ("float16", "bfloat16", "float32", "float64"):
            dtype = value
        elif equals and name in numbers and value.isdecimal() and int(value) <= 2**24:
            numbers[name] = int(value)
        else:
            raise ValueError(
                f"polyattn info: expected NAME=NUMBER with NAME one of {', '.join(numbers)}, or dtype=float32, joined by "
                f"commas in --plan, got {word.strip()[:40]!r}; write for example L=4096,H=8,causal=1"
            )
    for name, other in (("S", "L"), ("Hkv", "H"), ("E", "D")):
        numbers[name] = numbers[name] or numbers[other]
    return numbers, dtype


def explain_plan(text: str) -> Iterator[str]:
    """A line per library: the implementation that "auto" chooses, and why."""
    n, dtype = parse_plan(text)
    shapes = _shapes(n)
    lines = []
    for name in BENCHES:
        try:
            bench = BENCHES[name]()
        except ImportError:
            lines.append(f"{name}: not installed")
            continue
        if dtype not in bench.dtypes:
            lines.append(f"{name}: has no {dtype}")
            continue
        arrays = [bench.array(np.zeros(shape, np.float32), dtype) for shape in shapes]
        lines.append(_chosen(name, _posed(n, *arrays)))
    return iter(lines)


def explain_target(text: str, platform: str) -> list[str]:
    """What "auto" chooses on a chip that need not be here, why, and what the kernel made of the engine would do.

    LookupError where no library here has such kernels.
    """
    found = kernels_of(BENCHES)
    if found is None:
        raise LookupError(
            "polyattn info: expected JAX, which traces programs for other machines, with --platform, got an environment "
            "without it; pip install 'polyattn[jax]'"
        )
    library, kernels = found
    if platform not in kernels.targets:
        raise ValueError(
            f"polyattn info: expected --platform to be one of {', '.join(kernels.targets)}, got {platform[:40]!r}; "
            "choose one of them"
        )
    n, dtype = parse_plan(text)
    if n["L"] * n["S"] > MOST_SCORES:
        raise ValueError(
            f"polyattn info: expected a plan with at most {MOST_SCORES} scores a head with --platform, got "
            f"{n['L']} x {n['S']}; plan a smaller problem"
        )
    lines: list[str] = []

    def look(*arrays: Any) -> None:
        p = _posed(n, *arrays)
        lines[:] = [_chosen(f"{library} on {platform}", p), *kernels.describe(p)]

    kernels.trace(platform, look, [(shape, dtype) for shape in _shapes(n)])
    return lines


def _shapes(n: dict[str, int]) -> list[tuple[int, ...]]:
    """Of query, key, value, and sinks if there are any."""
    shapes: list[tuple[int, ...]] = [
        (n["B"], n["H"], n["L"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["E"]),
    ]
    if (largest := max(math.prod(shape) for shape in shapes)) > 2**28:
        raise ValueError(
            f"polyattn info: expected a plan with arrays of at most 2**28 elements, got {largest}; plan a smaller problem"
        )
    return [*shapes, (n["H"],)] if n["sinks"] else shapes


def _posed(n: dict[str, int], query: Any, key: Any, value: Any, sinks: Any = None) -> Problem:
    options: dict[str, Any] = {"query_offset": "end", "is_causal": bool(n["causal"]), "sinks": sinks}
    if n["window"]:
        options["mask"] = masks.sliding_window(n["window"])
    if n["softcap"]:
        options["score_mod"] = mods.softcap(float(n["softcap"]))
    return pose("polyattn info", query, key, value, wanted=("lse",) if n["lse"] else (), **options)


def _chosen(where: str, p: Problem) -> str:
    choice = choose(p, "auto")
    return f"{where}: {choice.implementation.name}, because {choice.why}"
