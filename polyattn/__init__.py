"""Attention, written once against the Python array API standard.

>>> import numpy as np
>>> from polyattn import attention
>>> q = k = v = np.eye(2)
>>> attention(q, k, v, scale=0.0)
array([[0.5, 0.5],
       [0.5, 0.5]])
"""

from polyattn import masks, mods
from polyattn.attention import AttentionAux, AuxRequest, attention, attention_vjp
from polyattn.choice import Reference
from polyattn.plan import Blockwise
from polyattn.trace import Stage, Trace, trace

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
