"""Small models of PyTorch, as others port them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from shared.libraries import torch

__all__ = ["BATCH", "Block", "Slow", "llama", "slowed", "small", "tokens"]

BATCH = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
tokens = np.random.default_rng(1).integers(0, 50, (2, 7))


class Attention(torch.nn.Module):
    """Four heads, causal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.scale = (width // 4) ** -0.5

    def forward(self, x: Any) -> Any:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, width))


class Block(torch.nn.Module):
    """Norm first."""

    def __init__(self, width: int, norm_first: bool = True) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
        )
        self.norm_first = norm_first

    def forward(self, x: Any) -> Any:
        if self.norm_first:
            x = x + self.attention(self.norm_1(x))
            return x + self.mlp(self.norm_2(x))
        x = self.norm_1(x + self.attention(x))
        return self.norm_2(x + self.mlp(x))


class Small(torch.nn.Module):
    """Three blocks and a norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(width) for _ in range(3)])
        self.norm = torch.nn.LayerNorm(width)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def small(seed: int = 0) -> Any:
    """A random model with random norms."""
    torch.manual_seed(seed)
    model = Small().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


def llama() -> Any:
    """A random Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes, **heads)).eval()


class Slow(torch.nn.Module):
    """A linear map whose sums are taken one by one, from the last to the first."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Any) -> Any:
        out = (x[..., None, :] * self.weight).flip(-1).cumsum(-1)[..., -1]
        return out if self.bias is None else out + self.bias


def slowed(model: Any) -> Any:
    """The same model with sums in another order."""
    made = copy.deepcopy(model)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Slow(child).eval())
    return made
