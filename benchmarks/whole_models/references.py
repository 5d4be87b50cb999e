"""The models that were ported, as transformers has them, or in their parallel form; random weights that make every part
matter; and which of their parts is which of the port's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.whole_models import ports

__all__ = ["ARCHITECTURES", "Pair", "pair"]

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


def _linears(pairs: Mapping[str, str], ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for name, port in pairs.items():
        yield (
            f"{ours}.{name}" if name and ours else ours or name,
            f"{theirs}.{port}" if port and theirs else theirs or port,
        )


_GATED = {"": "", "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "act_fn": "act"}
_GATED_T5 = {"": "", "wi_0": "gate", "wi_1": "up", "wo": "down", "act": "act"}
_QKVO = {"": "", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
_QKVO_T5 = {"": "", "q": "q", "k": "k", "v": "v", "o": "o"}


def _names(architecture: str) -> Iterator[tuple[str, str]]:
    top: dict[str, dict[str, str]] = {
        "llama": {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"},
        "gpt2": {
            "transformer.wte": "words",
            "transformer.wpe": "places",
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        "bert": {
            "embeddings.word_embeddings": "words",
            "embeddings.position_embeddings": "places",
            "embeddings.token_type_embeddings": "kinds",
            "embeddings.LayerNorm": "norm",
            "pooler.dense": "pool",
            "pooler.activation": "act",
        },
        "t5": {
            "shared": "embed",
            "encoder.final_layer_norm": "norm",
            "decoder.final_layer_norm": "norm2",
        },
        "vit": {
            "embeddings.patch_embeddings": "patches",
            "layernorm": "norm",
            "pooler.dense": "pool",
            "pooler.activation": "act",
        },
        "retention": {"embed_tokens": "embed", "final_norm": "norm", "lm_head": "head"},
    }
    yield from top[architecture].items()
    for i in range(ports.LAYERS):
        block = f"blocks.{i}"
        if architecture == "llama":
            layer = f"model.layers.{i}"
            yield layer, block
            yield f"{layer}.input_layernorm", f"{block}.norm1"
            yield from _linears(_QKVO, f"{layer}.self_attn", f"{block}.attn")
            yield f"{layer}.post_attention_layernorm", f"{block}.norm2"
            yield from _linears(_GATED, f"{layer}.mlp", f"{block}.mlp")
        elif architecture == "gpt2":
            layer = f"transformer.h.{i}"
            yield layer, block
            yield f"{layer}.ln_1", f"{block}.norm1"
            yield from _linears({"": "", "c_attn": "qkv", "c_proj": "o"}, f"{layer}.attn", f"{block}.attn")
            yield f"{layer}.ln_2", f"{block}.norm2"
            mlp = {"": "", "c_fc": "up", "act": "act", "c_proj": "down"}
            yield from _linears(mlp, f"{layer}.mlp", f"{block}.mlp")
        elif architecture == "bert":
            layer = f"encoder.layer.{i}"
            yield layer, block
            yield from _linears(
                {"query": "q", "key": "k", "value": "v"}, f"{layer}.attention.self", f"{block}.attn"
            )
            yield f"{layer}.attention.output.dense", f"{block}.attn.o"
            yield f"{layer}.attention.output.LayerNorm", f"{block}.norm1"
            yield f"{layer}.intermediate.dense", f"{block}.mlp.up"
            yield f"{layer}.intermediate.intermediate_act_fn", f"{block}.mlp.act"
            yield f"{layer}.output.dense", f"{block}.mlp.down"
            yield f"{layer}.output.LayerNorm", f"{block}.norm2"
        elif architecture == "t5":
            for side, target in (("encoder", f"blocks.{i}"), ("decoder", f"blocks2.{i}")):
                layer = f"{side}.block.{i}"
                yield layer, target
                yield f"{layer}.layer.0.layer_norm", f"{target}.norm1"
                yield from _linears(_QKVO_T5, f"{layer}.layer.0.SelfAttention", f"{target}.attn")
                last = 1
                if side == "decoder":
                    last = 2
                    yield f"{layer}.layer.1.layer_norm", f"{target}.norm2"
                    yield from _linears(_QKVO_T5, f"{layer}.layer.1.EncDecAttention", f"{target}.cross")
                yield f"{layer}.layer.{last}.layer_norm", f"{target}.norm{last + 1}"
                yield from _linears(_GATED_T5, f"{layer}.layer.{last}.DenseReluDense", f"{target}.mlp")
        elif architecture == "vit":
            layer = f"layers.{i}"
            yield layer, block
            yield f"{layer}.layernorm_before", f"{block}.norm1"
            yield from _linears(_QKVO, f"{layer}.attention", f"{block}.attn")
            yield f"{layer}.layernorm_after", f"{block}.norm2"
            mlp = {"": "", "fc1": "up", "activation_fn": "act", "fc2": "down"}
            yield from _linears(mlp, f"{layer}.mlp", f"{block}.mlp")
        else:
            layer = f"layers.{i}"
            yield layer, block
            yield f"{layer}.retention_norm", f"{block}.norm1"
            parts = {"": "", "q": "q", "k": "k", "v": "v", "g": "gate", "o": "o"}
            yield from _linears(parts, f"{layer}.retention", f"{block}.attn")
            yield f"{layer}.ffn_norm", f"{block}.norm2"
            yield f"{layer}.fc1", f"{block}.mlp.up"
            yield f"{layer}.activation", f"{block}.mlp.act"
            yield f"{layer}.fc2", f"{block}.mlp.down"


REFERENCES = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5, "vit": vit, "retention": RetentionModel}
PORTS = {
    "llama": ports.Llama,
    "gpt2": ports.GPT2,
    "bert": ports.BERT,
    "t5": ports.T5,
    "vit": ports.ViT,
    "retention": ports.Retention,
}
ARCHITECTURES = tuple(REFERENCES)


@dataclass(frozen=True)
class Pair:
    """A model, its port, what both are given, and which part is which."""

    reference: nn.Module
    port: nn.Module
    batch: dict[str, Tensor]
    port_batch: dict[str, Tensor]
    names: dict[str, str]


def pair(architecture: str, seed: int) -> Pair:
    """A reference with random weights, and a right port that holds the same."""
    torch.manual_seed(seed)
    reference = REFERENCES[architecture]().eval()
    with torch.no_grad():
        for name, x in reference.named_parameters():
            _fill(name, x)
    port = PORTS[architecture]().eval()
    names = dict(_names(architecture))
    with torch.no_grad():
        _load(architecture, reference, port, names)
    given = _batch(architecture)
    back = {
        "input_ids": "ids",
        "attention_mask": "mask",
        "pixel_values": "image",
        "decoder_input_ids": "ids2",
    }
    port_batch = {
        back.get(name, name): x.bool() if name == "attention_mask" else x for name, x in given.items()
    }
    return Pair(reference, port, given, port_batch, names)


def _fill(name: str, x: Tensor) -> None:
    """Norms near one, biases that count, products that keep their size."""
    if x.ndim == 1 and name.endswith("weight"):
        x.copy_(1 + 0.3 * torch.randn(x.shape))
    elif x.ndim == 1:
        x.copy_(0.3 * torch.randn(x.shape))
    elif "embed" in name or name.endswith(("wte.weight", "wpe.weight", "shared.weight", "cls_token")):
        x.copy_(0.5 * torch.randn(x.shape))
    elif "relative_attention_bias" in name:
        x.copy_(torch.randn(x.shape))
    else:
        inner = x.shape[0] if ".c_" in name else x[0].numel()  # Conv1D holds (in, out)
        x.copy_(1.2 * torch.randn(x.shape) * inner**-0.5)


def _load(architecture: str, reference: nn.Module, port: nn.Module, names: Mapping[str, str]) -> None:
    theirs, loaded = dict(port.named_modules()), set()
    for name, module in reference.named_modules():
        if name not in names:
            continue
        source = module.projection if hasattr(module, "projection") else module
        for kind, x in source.named_parameters(recurse=False):
            target = getattr(theirs[names[name]], kind)
            target.copy_(x.T if type(module).__name__ == "Conv1D" and x.ndim == 2 else x)
            loaded.add(f"{names[name]}.{kind}")
    if architecture == "vit":
        port.first.copy_(reference.embeddings.cls_token)
        port.places.copy_(reference.embeddings.position_embeddings)
        loaded |= {"first", "places"}
    if architecture == "t5":
        for side, table in (("encoder", "table"), ("decoder", "table2")):
            attention = getattr(reference, side).block[0].layer[0].SelfAttention
            getattr(port, table).weight.copy_(attention.relative_attention_bias.weight)
            loaded.add(f"{table}.weight")
    missing = {name for name, _ in port.named_parameters()} - loaded
    if missing:
        raise AssertionError(f"{architecture}: nothing was loaded into {', '.join(sorted(missing))}")


def _batch(architecture: str) -> dict[str, Tensor]:
    ids = torch.randint(1, ports.WORDS - 2, (2, 13))
    mask = torch.arange(13) < torch.tensor([[13], [9]])
    return {
        "llama": {"input_ids": ids},
        "gpt2": {"input_ids": ids},
        "bert": {"input_ids": ids, "attention_mask": mask.long()},
        "t5": {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "decoder_input_ids": ids.flip(1)[:, :7].contiguous(),
        },
        "vit": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "retention": {"ids": ids},
    }[architecture]
