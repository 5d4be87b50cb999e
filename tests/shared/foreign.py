"""Libraries asked in their own words, and how far two results may be apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.dialects import DIALECTS
from polyattn.dialects.libraries import Library, library_of
from polyattn.parity.case import Case, Later, Sample
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF

Array = Any
Keywords = Mapping[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
#: Dialects whose library none of the extras installs: it is asked where it is.
ELSEWHERE = ("tokamax", "mlx")
HERE = [
    d.name
    for d in DIALECTS.values()
    if any(claim.tested for claim in d.answers.values())
    and (d.name not in ELSEWHERE or find_spec(d.package) is not None)
]


def library(name: str) -> Library:
    found = library_of(name)
    assert isinstance(found, Library), found
    return found


def drawn(
    case: Case, array: Callable[[Array], Array] = lambda x: x
) -> tuple[Sample, tuple[Array, ...], dict[str, Any]]:
    sample = case.sample(0, "float32")

    def convert(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return array(x.astype(np.float32) if x.dtype.kind == "f" else x)

    operands = tuple(convert(x) for x in sample.inputs or (sample.spec.q, sample.spec.k, sample.spec.v))
    options = {n: x.make(convert) if isinstance(x, Later) else convert(x) for n, x in sample.options.items()}
    return sample, operands, options


def bound(q: Array, k: Array, v: Array, scale: float) -> float:
    """How far two results in float32 may be apart: an average of values, its weights erring with the scores."""
    q, k, v = (np.asarray(x) for x in (q, k, v))
    scores = scale * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
    return float(2 * ACCEPTANCE * UNIT_ROUNDOFF["float32"] * np.abs(v).max() * (1 + 2 * scores))
