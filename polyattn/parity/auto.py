"""What "auto" would run for a problem given in words, on every library here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from polyattn import masks, mods
from polyattn.implementations import choose
from polyattn.parity.bench import BENCHES
from polyattn.problem import pose

__all__ = ["explain_plan", "parse_plan"]

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
    shapes = [
        (n["B"], n["H"], n["L"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["E"]),
    ]
    if (largest := max(int(np.prod(shape)) for shape in shapes)) > 2**28:
        raise ValueError(
            f"polyattn info: expected a plan with arrays of at most 2**28 elements, got {largest}; plan a smaller problem"
        )
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
        options: dict[str, Any] = {"query_offset": "end", "is_causal": bool(n["causal"])}
        if n["window"]:
            options["mask"] = masks.sliding_window(n["window"])
        if n["softcap"]:
            options["score_mod"] = mods.softcap(float(n["softcap"]))
        if n["sinks"]:
            options["sinks"] = bench.array(np.zeros(n["H"]), dtype)
        arrays = (bench.array(np.zeros(shape, np.float32), dtype) for shape in shapes)
        problem = pose("polyattn info", *arrays, wanted=("lse",) if n["lse"] else (), **options)
        choice = choose(problem, "auto")
        lines.append(f"{name}: {choice.implementation.name}, because {choice.why}")
    return iter(lines)
