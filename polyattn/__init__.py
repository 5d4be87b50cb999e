"""Attention, written once against the Python array API standard.

>>> import numpy as np
>>> from polyattn import attention
>>> q = k = v = np.eye(2)
>>> attention(q, k, v, scale=0.0)
array([[0.5, 0.5],
       [0.5, 0.5]])
"""

from importlib import import_module
from typing import Any

from polyattn import masks, mods
from polyattn._attention import AttentionAux, attention, attention_vjp
from polyattn._trace import Stage, Trace, trace
from polyattn.implementations import Blockwise, Fused, Reference
from polyattn.problem import AuxRequest

#: Rooms that load when they are first looked into.
_ROOMS = (
    "additive",
    "arrays",
    "caches",
    "calls",
    "conventions",
    "convolution",
    "dialects",
    "differential",
    "dropout",
    "generation",
    "implementations",
    "latent",
    "layers",
    "linear",
    "mixing",
    "models",
    "normalizers",
    "onnx",
    "parity",
    "pictures",
    "places",
    "problem",
    "rotary",
    "selection",
    "testing",
    "truth",
    "weights",
)

__all__ = [
    "AttentionAux",
    "AuxRequest",
    "Blockwise",
    "Fused",
    "Reference",
    "Stage",
    "Trace",
    "attention",
    "attention_vjp",
    "masks",
    "mods",
    "trace",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"polyattn.{name}")
    raise AttributeError(f"module 'polyattn' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
