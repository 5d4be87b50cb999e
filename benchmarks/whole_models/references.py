"""The models that were ported, as transformers has them, or in their parallel form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.whole_models import ports

__all__ = ["REFERENCES"]

COMMON: dict[str, Any] = {
    "hidden_size": ports.WIDTH,
    "num_hidden_layers": ports.LAYERS,
    "num_attention_heads": ports.HEADS,
    "intermediate_size": ports.INNER,
    "attn_implementation": "sdpa",
}


class ParallelRetention(nn.Module):
    """Retention as a masked product: (q k^T o decay^(i - j)) v."""

    def __init__(self) -> None:
        super().__init__()
        width = ports.WIDTH
        self.q, self.k, self.v, self.g, self.o = (nn.Linear(width, width, bias=False) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        n, heads = x.shape[1], ports.HEADS
        q, k, v = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        size = q.shape[-1]
        angle = torch.arange(n)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
        phase = torch.polar(torch.ones_like(angle), angle)

        def turned(y: Tensor) -> Tensor:
            pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * phase).flatten(-2).to(y.dtype)

        distance = torch.arange(n)[:, None] - torch.arange(n)
        decay = (1 - 2.0 ** -(5.0 + torch.arange(heads)))[:, None, None]
        held = torch.where(distance >= 0, decay ** distance.clamp(min=0), 0.0).to(x.dtype)
        out = (turned(q) @ turned(k).mT * size**-0.5 * held) @ v
        out = F.rms_norm(out, (size,), eps=1e-6).transpose(1, 2).flatten(2)
        return self.o(out * F.silu(self.g(x)))


class RetentionLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.retention_norm, self.ffn_norm = nn.LayerNorm(ports.WIDTH), nn.LayerNorm(ports.WIDTH)
        self.retention, self.activation = ParallelRetention(), nn.GELU()
        self.fc1 = nn.Linear(ports.WIDTH, ports.INNER, bias=False)
        self.fc2 = nn.Linear(ports.INNER, ports.WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.retention(self.retention_norm(x))
        return x + self.fc2(self.activation(self.fc1(self.ffn_norm(x))))


class RetentionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(ports.WORDS, ports.WIDTH)
        self.layers = nn.ModuleList(RetentionLayer() for _ in range(ports.LAYERS))
        self.final_norm = nn.LayerNorm(ports.WIDTH)
        self.lm_head = nn.Linear(ports.WIDTH, ports.WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.final_norm(x))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **COMMON, vocab_size=ports.WORDS, num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=64
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=ports.WORDS,
        n_positions=64,
        n_embd=ports.WIDTH,
        n_layer=ports.LAYERS,
        n_head=ports.HEADS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(**COMMON, vocab_size=ports.WORDS, max_position_embeddings=64)
    )


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=ports.WORDS,
        d_model=ports.WIDTH,
        d_kv=ports.WIDTH // ports.HEADS,
        d_ff=ports.INNER,
        num_layers=ports.LAYERS,
        num_decoder_layers=ports.LAYERS,
        num_heads=ports.HEADS,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5Model(config)


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**COMMON, image_size=32, patch_size=8))


REFERENCES = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5, "vit": vit, "retention": RetentionModel}
