"""What the frameworks mean by a transformer block when nobody says more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.calls import shown

__all__ = ["PRESETS", "settings"]

_NAMES = ("torch", "flax", "keras")
_ENTRIES = {
    "epsilon": (1e-5, 1e-6, 1e-3),
    "activation": ("relu", "gelu_tanh", "relu"),
    "norm_first": (False, True, False),
    "dropout_rate": (0.1, 0.0, 0.0),
    "attention_initializer": ("xavier_packed", "lecun_normal", "glorot_uniform"),
    "mlp_initializer": ("torch_linear", "lecun_normal", "glorot_uniform"),
}
#: torch: `torch.nn.TransformerEncoderLayer`. flax: the defaults of nnx.LayerNorm, nnx.gelu and
#: nnx.MultiHeadAttention, normalised first as in Flax's own examples. keras: the defaults of
#: keras.layers.LayerNormalization and keras.layers.MultiHeadAttention, with the ReLU and the order of Keras
#: Hub's TransformerEncoder.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: {entry: values[i] for entry, values in _ENTRIES.items()} for i, name in enumerate(_NAMES)
}


def settings(who: str, preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a preset, some of them changed."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(
            f"{who}: expected a preset among {', '.join(PRESETS)}, got {shown(preset)}; take one of these, or compose "
            "the block of its parts"
        )
    if unknown := changes.keys() - PRESETS[preset].keys():
        raise ValueError(
            f"{who}: expected changes of {', '.join(PRESETS[preset])}, got {', '.join(sorted(unknown))}; compose "
            "the block of its parts for anything else"
        )
    return {**PRESETS[preset], **changes}
