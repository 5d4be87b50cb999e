"""Attention, written once against the Python array API standard.

>>> import numpy as np
>>> from polyattn import attention
>>> q = k = v = np.eye(2)
>>> attention(q, k, v, scale=0.0)
array([[0.5, 0.5],
       [0.5, 0.5]])
"""

from polyattn import masks, mods
from polyattn._attention import AttentionAux, AuxRequest, attention, attention_vjp
from polyattn._trace import Stage, Trace, trace
from polyattn.implementations.blockwise.plan import Blockwise
from polyattn.implementations.choice import Reference

__all__ = [
    "AttentionAux",
    "AuxRequest",
    "Blockwise",
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
