"""Attention with parameters: every layer is a frozen configuration and pure functions on a dict of arrays.

>>> import numpy as np
>>> from polyattn import layers
>>> layer = layers.MultiHeadAttention(8, 2)
>>> params = layer.init(seed=0, like=np.zeros((), np.float32))
>>> layer(params, np.ones((3, 5, 8), np.float32)).shape
(3, 5, 8)
"""

from polyattn.layers.alignment import AdditiveAttention, LuongAttention
from polyattn.layers.attending import AttentionLayer, Memory
from polyattn.layers.blocks import DecoderAux, DecoderBlock, EncoderBlock, EncoderDecoderAttention
from polyattn.layers.delta import GatedDeltaNet, KimiDeltaAttention
from polyattn.layers.dense import MLP, Embedding, Linear
from polyattn.layers.derivative import vjp
from polyattn.layers.differential import DifferentialAttention
from polyattn.layers.experts import MixtureOfExperts
from polyattn.layers.forgetting import ForgettingAttention
from polyattn.layers.initializers import Constant, Distribution, Normal, Uniform
from polyattn.layers.language import LanguageModel
from polyattn.layers.latent import LatentAttention
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params
from polyattn.layers.mixing import MultiTokenAttention, TalkingHeadsAttention
from polyattn.layers.multihead import MultiHeadAttention
from polyattn.layers.named import (
    CausalSelfAttention,
    CrossAttention,
    GroupedQueryAttention,
    MultiHeadCrossAttention,
    MultiQueryAttention,
    ScaledDotProductAttention,
    SelfAttention,
)
from polyattn.layers.norm import LayerNorm, RMSNorm
from polyattn.layers.presets import PRESETS
from polyattn.layers.recurrent import LightningAttention, LinearAttention, RecurrentLayer
from polyattn.layers.selecting import MixtureOfBlockAttention, NativeSparseAttention
from polyattn.layers.stacks import Decoder, Encoder
from polyattn.layers.tensor_product import TensorProductAttention

__all__ = [
    "MLP",
    "PRESETS",
    "AdditiveAttention",
    "AttentionLayer",
    "CausalSelfAttention",
    "Constant",
    "CrossAttention",
    "Decoder",
    "DecoderAux",
    "DecoderBlock",
    "DifferentialAttention",
    "Distribution",
    "Embedding",
    "Encoder",
    "EncoderBlock",
    "EncoderDecoderAttention",
    "ForgettingAttention",
    "GatedDeltaNet",
    "GroupedQueryAttention",
    "KimiDeltaAttention",
    "LanguageModel",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "LayerResult",
    "LightningAttention",
    "Linear",
    "LinearAttention",
    "LuongAttention",
    "Memory",
    "MixtureOfBlockAttention",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "MultiHeadCrossAttention",
    "MultiQueryAttention",
    "MultiTokenAttention",
    "NativeSparseAttention",
    "Normal",
    "Parameter",
    "Params",
    "RMSNorm",
    "RecurrentLayer",
    "ScaledDotProductAttention",
    "SelfAttention",
    "TalkingHeadsAttention",
    "TensorProductAttention",
    "Uniform",
    "vjp",
]
