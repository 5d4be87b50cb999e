"""The dialect of MLX."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS"]

DIALECTS = (
    Dialect(
        name="mlx",
        what="mlx.core.fast.scaled_dot_product_attention",
        package="mlx",
        version="0.32.4, on a CPU",
        signature="q: query, k: key, v: value, *, scale: scale, mask: mask = None, sinks: sinks = None, "
        "force_fused: free = False, stream: free = None",
        answers=claims(
            tested=USUAL
            | {
                "empty row": "mean",
                "empty bias row": "NaN",
                "causal": "word",
                "mask and causal": "one place",
                "scale": "required",
                "sinks": "given",
                "poison": "values leak",
                "float64": "float32",
            },
            notes={"float64": "on the CPU alone"},
        ),
        notes=(
            "With sinks a row that sees nothing is 0.",
            "Arrays are NumPy's here, which MLX takes; its own are not arrays of the standard.",
        ),
    ),
)
