"""Weights of layers: in files, from and to other libraries, from one array library to another.

>>> import numpy as np
>>> from polyattn import layers, weights
>>> layer = layers.MultiHeadAttention(8, 2)
>>> params = layer.init(0, like=np.zeros(()))
>>> sorted(weights.to_format(layer, params, "torch"))
['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']
"""

from polyattn.weights.conversion import from_format, to_format
from polyattn.weights.ctranslate2 import CTranslate2, read_ctranslate2
from polyattn.weights.files import load, save
from polyattn.weights.formats import FORMATS
from polyattn.weights.gguf import Gguf, read_gguf
from polyattn.weights.modules import read, write
from polyattn.weights.permutations import (
    grouped_to_tiled,
    half_to_interleaved,
    interleaved_to_half,
    tiled_to_grouped,
)
from polyattn.weights.tree import convert, flatten, unflatten

__all__ = [
    "FORMATS",
    "CTranslate2",
    "Gguf",
    "convert",
    "flatten",
    "from_format",
    "grouped_to_tiled",
    "half_to_interleaved",
    "interleaved_to_half",
    "load",
    "read",
    "read_ctranslate2",
    "read_gguf",
    "save",
    "tiled_to_grouped",
    "to_format",
    "unflatten",
    "write",
]
