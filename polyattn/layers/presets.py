"""What the frameworks mean by a transformer block when nobody says more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS", "settings"]

#: torch: `torch.nn.TransformerEncoderLayer`. flax: the defaults of nnx.LayerNorm, nnx.gelu and
#: nnx.MultiHeadAttention, normalised first as in Flax's own examples. keras: the defaults of
#: keras.layers.LayerNormalization and keras.layers.MultiHeadAttention, with the ReLU and the order of Keras
#: Hub's TransformerEncoder.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "torch": {
        "epsilon": 1e-5,
        "activation": "relu",
        "norm_first": False,
        "dropout_rate": 0.1,
        "attention_initializer": "xavier_packed",
        "mlp_initializer": "torch_linear",
    },
    "flax": {
        "epsilon": 1e-6,
        "activation": "gelu_tanh",
        "norm_first": True,
        "dropout_rate": 0.0,
        "attention_initializer": "lecun_normal",
        "mlp_initializer": "lecun_normal",
    },
    "keras": {
        "epsilon": 1e-3,
        "activation": "relu",
        "norm_first": False,
        "dropout_rate": 0.0,
        "attention_initializer": "glorot_uniform",
        "mlp_initializer": "glorot_uniform",
    },
}


def settings(who: str, preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a preset, some of them changed."""
    if preset not in PRESETS:
        raise ValueError(
            f"{who}: expected a preset among {', '.join(PRESETS)}, got {preset!r}; take one of these, or compose "
            "the block of its parts"
        )
    if unknown := changes.keys() - PRESETS[preset].keys():
        raise ValueError(
            f"{who}: expected changes of {', '.join(PRESETS[preset])}, got {', '.join(sorted(unknown))}; compose "
            "the block of its parts for anything else"
        )
    return {**PRESETS[preset], **changes}
