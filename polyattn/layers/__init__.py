"""Attention with parameters: every layer is a frozen configuration and pure functions on a dict of arrays.

>>> import numpy as np
>>> from polyattn import layers
>>> layer = layers.MultiHeadAttention(8, 2)
>>> params = layer.init(seed=0, like=np.zeros((), np.float32))
>>> layer(params, np.ones((3, 5, 8), np.float32)).shape
(3, 5, 8)
"""

from polyattn.layers.alignment import AdditiveAttention, LuongAttention
from polyattn.layers.blocks import (
    PRESETS,
    Decoder,
    DecoderAux,
    DecoderBlock,
    Encoder,
    EncoderBlock,
    EncoderDecoderAttention,
)
from polyattn.layers.dense import MLP, Embedding, Linear
from polyattn.layers.initializers import Constant, Distribution, Normal, Uniform
from polyattn.layers.layer import Layer, Parameter, Params
from polyattn.layers.multihead import (
    CausalSelfAttention,
    CrossAttention,
    GroupedQueryAttention,
    MultiHeadAttention,
    MultiHeadCrossAttention,
    MultiQueryAttention,
    ScaledDotProductAttention,
    SelfAttention,
)
from polyattn.layers.norm import LayerNorm, RMSNorm

__all__ = [
    "MLP",
    "PRESETS",
    "AdditiveAttention",
    "CausalSelfAttention",
    "Constant",
    "CrossAttention",
    "Decoder",
    "DecoderAux",
    "DecoderBlock",
    "Distribution",
    "Embedding",
    "Encoder",
    "EncoderBlock",
    "EncoderDecoderAttention",
    "GroupedQueryAttention",
    "Layer",
    "LayerNorm",
    "Linear",
    "LuongAttention",
    "MultiHeadAttention",
    "MultiHeadCrossAttention",
    "MultiQueryAttention",
    "Normal",
    "Parameter",
    "Params",
    "RMSNorm",
    "ScaledDotProductAttention",
    "SelfAttention",
    "Uniform",
]
