"""`diagnose`: from an output as it comes to what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyattn.conventions.call import call_of
from polyattn.parity.diagnosis.findings import Diagnosis
from polyattn.parity.diagnosis.reading import observed
from polyattn.parity.diagnosis.search import searched

__all__ = ["diagnose"]


def diagnose(
    output: Any,
    query: Any,
    key: Any,
    value: Any,
    *,
    dtype: str | None = None,
    pairs: bool = True,
    rows: slice | Sequence[int] | Any | None = None,
    heads: slice | Sequence[int] | Any | None = None,
    where: Any | None = None,
    decimals: int | None = None,
    **context: Any,
) -> Diagnosis:
    """Why an implementation of attention returned `output`: the convention or the mistake that explains it.

    output (..., Hq, L, E) is what came from anywhere; query, key, value and context are what was meant:
    arguments of `polyattn.attention` (mask, is_causal, scale, score_mod, bias, sinks, query_offset, layout), and
    rotary=, a `rotary.Rotary` still to be applied to query and key, and embed_dim=, the width of the model.
    Arrays may be of any library. dtype: the precision of the implementation, if output does not tell.

    A part of an output: rows, heads (indices or a slice) say which query rows and heads count, and output has only
    those or all; where, bools that broadcast to it, which elements do. decimals: output was printed to so many.

    Every known difference is tried alone, with a number fitted, then in pairs; an explanation counts if eta, the error
    over what rounding explains, is at most 4, and if it leaves at most an eighth of what was wrong. Half precision inside
    and dropout that was left on are recognised by their traces. What nothing explains has a profile: where it is wrong.

    >>> import numpy as np
    >>> from polyattn import attention
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 4, 16, 8))
    >>> print(diagnose(attention(q, k, v, scale=32**-0.5), q, k, v))
    matches scale = 1/sqrt(32) (model width, not head width): eta ...; as stated: eta ...
    """
    call = call_of(query, key, value, context, who="polyattn.parity.diagnose", per_item=True)
    layout = context.get("layout", "BHLD")
    seen = observed(output, call, layout, dtype, rows=rows, heads=heads, where=where, decimals=decimals)
    return searched(call, seen, pairs)
