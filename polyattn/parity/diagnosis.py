"""Why an implementation of attention returned what it did."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn.arrays import backend_of, is_array
from polyattn.conventions.call import Call, call_of
from polyattn.parity.explanations import Search
from polyattn.parity.findings import Diagnosis
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["diagnose"]


def diagnose(
    output: Any,
    query: Any,
    key: Any,
    value: Any,
    *,
    dtype: str | None = None,
    pairs: bool = True,
    **context: Any,
) -> Diagnosis:
    """Why an implementation of attention returned `output`: the convention or the mistake that explains it.

    output (..., Hq, L, E) is what came from anywhere; query, key, value and context are what was meant:
    arguments of `polyattn.attention` (mask, is_causal, scale, score_mod, bias, sinks, query_offset, layout), and
    rotary=, a `rotary.Rotary` still to be applied to query and key, and embed_dim=, the width of the model.
    Arrays may be of any library. dtype: the precision of the implementation, if output does not tell.

    Every known difference is tried alone, then in pairs; an explanation counts if eta, the error over what
    rounding explains, is at most 4, and if what was wrong is at most half as wrong with it. What rounds inside
    (bfloat16, TF32) and dropout that was left on are recognised by their traces. Nothing is called a cause that does
    not explain the numbers.

    >>> import numpy as np
    >>> from polyattn import attention
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 4, 16, 8))
    >>> print(diagnose(attention(q, k, v, scale=32**-0.5), q, k, v))
    matches scale = 1/sqrt(32) (model width, not head width): eta ...; as stated: eta ...
    """
    call = call_of(query, key, value, context, who="polyattn.parity.diagnose")
    seen, name = _observed(output, call, dtype, context.get("layout", "BHLD"))
    return Search(call, seen, name).run(pairs)


def _observed(output: Any, call: Call, dtype: str | None, layout: str) -> tuple[Floats, str]:
    if isinstance(output, tuple):
        raise TypeError(
            f"polyattn.parity.diagnose: expected output to be one array, got a tuple of {len(output)}; "
            "pass the one that holds the result of attention"
        )
    plain = np.asarray(backend_of(output).to_numpy(output) if is_array(output) else output)
    name = dtype or plain.dtype.name
    if name not in UNIT_ROUNDOFF:
        raise TypeError(
            f"polyattn.parity.diagnose: expected dtype among {', '.join(UNIT_ROUNDOFF)}, got {name}; pass dtype="
        )
    seen = plain.astype(np.float64)
    shape = (*call.shape[:3], call.v.shape[3])
    apart = (shape[0], shape[2], shape[1], shape[3])
    flat = (shape[0], shape[2], shape[1] * shape[3])
    one = apart[1:] if layout == "BLHD" else shape[1:]  # without a batch axis
    if seen.shape == flat and seen.shape != one:  # heads already side by side
        seen = seen.reshape(apart).swapaxes(1, 2)
    elif layout == "BLHD" and seen.ndim > 2:
        seen = seen.swapaxes(-2, -3)
    if seen.size != math.prod(shape) or seen.shape[-2:] != shape[-2:]:
        raise ValueError(
            f"polyattn.parity.diagnose: expected output of shape {shape} or {flat}, got {plain.shape}; "
            "layout= says how heads and length lie"
        )
    return seen.reshape(shape), name
