"""A model and a right port that holds the same random weights, such that every part matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.whole_models import ports
from benchmarks.whole_models.names import NAMES, in_all_layers
from benchmarks.whole_models.references import REFERENCES

__all__ = ["ARCHITECTURES", "Pair", "pair"]

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
    names: Mapping[str, str]  # "*" is the number of a layer


def pair(architecture: str, seed: int) -> Pair:
    """A reference with random weights, and a right port that holds the same."""
    torch.manual_seed(seed)
    reference = REFERENCES[architecture]().eval()
    with torch.no_grad():
        for name, x in reference.named_parameters():
            _fill(name, x)
    port = PORTS[architecture]().eval()
    names = NAMES[architecture]
    with torch.no_grad():
        _load(architecture, reference, port, in_all_layers(names))
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
