"""What every library is given: the problem said with a mask and a bias, and which problems it can be told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..problems import DTYPES, Problem
from ..stages import PLAIN

Implementation = Callable[[Problem], Any]

#: name -> what gives the output of a problem, or None where it has no word for it
IMPLEMENTATIONS: dict[str, Implementation] = {}

#: those that compile for seconds for every shape
COMPILES: set[str] = set()


def features(p: Problem) -> set[str]:
    """What an implementation may lack."""
    there = {
        "softcap": p.cap is not None,
        "alibi": p.alibi is not None,
        "bias": p.bias is not None,
        "sinks": p.sinks is not None,
        "rotary": p.rotary is not None,
        "scale": p.scale is not None,
        "gqa": p.q.shape[1] != p.k.shape[1],
        "wide": p.q.shape[3] != p.v.shape[3],
        "empty": not bool(p.allowed.any(-1).all()),
        "hidden": not bool(p.allowed.all()),
        # A turned query that is rounded to half precision is another query.
        "turned and rounded": p.rotary is not None and p.dtype != "float32",
        "cross": p.q.shape[2] != p.k.shape[2],
        "float16": p.dtype == "float16",
        "bfloat16": p.dtype == "bfloat16",
    }
    return {name for name, is_there in there.items() if is_there}


def implementation(
    name: str, lacks: str = "", compiles: bool = False
) -> Callable[[Implementation], Implementation]:
    """Registers it. lacks: features, as above, that it cannot be told, or answers by another convention."""
    lacking = {*lacks.split(), "turned and rounded"}

    def register(f: Implementation) -> Implementation:
        def told(p: Problem) -> Any:
            if features(p) & lacking:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, of kernels that do not run and of what will go
                return f(p)

        COMPILES.update({name} if compiles else ())
        IMPLEMENTATIONS[name] = told
        return f

    return register


def inputs(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in the dtype, turned."""
    q, k = PLAIN["rotate"](p, p.q, p.k, p.v)
    return tuple(x.to(DTYPES[p.dtype]) for x in (q, k, p.v))


def added(p: Problem) -> Tensor | None:
    """What is added to the scores, (1, Hq, L, S), in float32; None for nothing."""
    found = None if p.bias is None else p.bias
    if p.alibi is not None:
        i, j = p.places
        leaning = -p.alibi[:, None, None] * (i - j).abs()
        found = leaning[None] if found is None else found + leaning
    return found


def exact(x: Tensor | None, p: Problem) -> bool:
    """Whether the dtype holds it."""
    return x is None or torch.equal(x.to(DTYPES[p.dtype]).float(), x)


def seen(p: Problem) -> Tensor:
    """(B, Hq, L, S), True = may attend."""
    return p.allowed.expand(p.shape)


def additive(p: Problem, hidden: float = -math.inf) -> Tensor | None:
    """Mask and bias as one, (B, Hq, L, S), in the dtype; None where the dtype does not hold it."""
    bias = added(p)
    if not exact(bias, p):
        return None
    full = torch.zeros(p.shape) if bias is None else bias.expand(p.shape)
    return full.masked_fill(~seen(p), hidden).to(DTYPES[p.dtype])
