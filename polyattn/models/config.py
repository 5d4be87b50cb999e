"""What the config of a Hugging Face model says, in the words of `polyattn.layers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn import masks
from polyattn.layers import (
    MLP,
    AttentionLayer,
    Embedding,
    Encoder,
    EncoderBlock,
    LanguageModel,
    Linear,
    MixtureOfExperts,
    MultiHeadAttention,
    RMSNorm,
)
from polyattn.rotary import Rotary

__all__ = ["GATED", "WHO", "Config"]

WHO = "polyattn.models.families.language_model"
#: Hugging Face's name of an activation -> ours, beside a gate.
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}


class Config:
    """A config whose entries are asked for by name."""

    def __init__(self, config: Any) -> None:
        self.whole: dict[str, Any] = dict(config) if isinstance(config, Mapping) else config.to_dict()

    def __getattr__(self, name: str) -> Any:
        if name not in self.whole:
            raise ValueError(
                f"{WHO}: expected a config of {self.whole.get('model_type')} with {name}, got one without; pass the whole "
                "config.json"
            )
        return self.whole[name]

    def get(self, name: str, otherwise: Any = None) -> Any:
        found = self.whole.get(name)
        return otherwise if found is None else found

    @property
    def depth(self) -> int:
        return int(self.num_hidden_layers)

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.hidden_size, epsilon=self.rms_norm_eps)

    @property
    def width(self) -> int:
        return int(self.get("head_dim", self.hidden_size // self.num_attention_heads))

    def layer_types(self, otherwise: str) -> list[str]:
        return list(self.get("layer_types", [otherwise] * self.depth))

    def head_norm(self, dim: int) -> RMSNorm:
        return RMSNorm(dim, epsilon=self.rms_norm_eps)

    def mlp(self, activation: str = "hidden_act", width: int | None = None) -> MLP:
        kind = getattr(self, activation)
        if kind not in GATED:
            raise ValueError(
                f"{WHO}: expected {activation} among {', '.join(GATED)}, got {kind!r}; compose the model of polyattn.layers"
            )
        hidden = self.intermediate_size if width is None else width
        return MLP(
            self.hidden_size, hidden, activation=GATED[kind], use_bias=bool(self.get("mlp_bias", False))
        )

    def attention(self, kind: str = "full_attention", **more: Any) -> MultiHeadAttention:
        """Grouped heads with rotary positions; with a window where the kind of layer has one."""
        window = masks.sliding_window(self.sliding_window) if kind == "sliding_attention" else None
        bias = bool(self.get("attention_bias", False))
        rotary = (
            Rotary.from_config(self.whole, head_dim=self.width)
            if "rotary" not in more
            else more.pop("rotary")
        )
        return MultiHeadAttention(
            self.hidden_size,
            self.num_attention_heads,
            num_kv_heads=self.get("num_key_value_heads"),
            head_dim=self.width,
            mask=window,
            rotary=rotary,
            is_causal=True,
            **{"qkv_bias": bias, "out_bias": bias, **more},
        )

    def model(self, blocks: tuple[EncoderBlock, ...], **more: Any) -> LanguageModel:
        tied = bool(self.get("tie_word_embeddings", False))
        head = None if tied else Linear(self.hidden_size, self.vocab_size, use_bias=False)
        trunk = Encoder(blocks, self.depth, final_norm=self.norm)
        return LanguageModel(Embedding(self.vocab_size, self.hidden_size), trunk, head=head, **more)

    def block(self, attention: AttentionLayer, mlp: MLP | MixtureOfExperts) -> EncoderBlock:
        return EncoderBlock(attention, mlp, self.norm, norm_first=True)
