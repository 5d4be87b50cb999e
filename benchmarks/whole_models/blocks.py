"""The parts of six ports, plainly, in PyTorch. What a port gets wrong is an attribute of the part that gets it wrong."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MLP",
    "Activation",
    "Attention",
    "Block",
    "Embedding",
    "Fused",
    "GatedMLP",
    "Linear",
    "Norm",
    "turn",
]

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "gelu quick": lambda x: x * torch.sigmoid(1.702 * x),
}


class Activation(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.kind](x)


class Norm(nn.Module):
    """LayerNorm with a mean, RMSNorm without."""

    def __init__(self, width: int, eps: float, mean: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if mean else None
        self.eps, self.mean, self.offset = eps, mean, 0.0
        self.outside = self.unbiased = self.skipped = False

    def forward(self, x: Tensor) -> Tensor:
        if self.skipped:
            return x
        if self.mean:
            x = x - x.sum(-1, keepdim=True) / x.shape[-1]
        square = (x * x).sum(-1, keepdim=True) / (x.shape[-1] - self.unbiased)
        size = torch.sqrt(square) + self.eps if self.outside else torch.sqrt(square + self.eps)
        x = x / size * (self.weight + self.offset)
        return x if self.bias is None else x + self.bias


class Linear(nn.Module):
    def __init__(self, width: int, out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, width))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("...i,oi->...o", x, self.weight) * self.factor
        return x if self.bias is None else x + self.bias


class Fused(Linear):
    """Query, key and value of one product, as thirds; or, wrongly, as three of each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, 3 * width, bias=True)
        self.heads, self.per_head = heads, False

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.per_head:
            x = x.unflatten(-1, (self.heads, 3, -1)).transpose(-3, -2).flatten(-3)
        return x


class Embedding(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))
        self.factor, self.shift = 1.0, 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids + self.shift] * self.factor


def turn(x: Tensor, at: Tensor, base: float, width: int, interleaved: bool) -> Tensor:
    """Rotary embedding of the first `width` entries of (B, H, L, D)."""
    angle = at[:, None] * base ** (-torch.arange(0, width, 2) / width)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    part, rest = x[..., :width], x[..., width:]
    one, two = (part[..., 0::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
    turned = one * cos - two * sin, two * cos + one * sin
    part = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((part, rest), -1)


class Attention(nn.Module):
    """Attention with its projections. `other` is what keys and values are made of, where it is not x."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = False,
        base: float | None = None,
        fused: bool = False,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads or heads, width // heads
        self.scale = self.size**-0.5 if scaled else 1.0
        self.causal, self.base, self.turned_width = causal, base, self.size
        self.shift, self.window, self.cap, self.factor, self.query_shift = 0, None, None, 1.0, 0
        self.interleaved = self.tiled = self.key_as_value = self.unmerged = self.itself = False
        self.by_columns = self.flipped_mask = self.no_mask = self.no_table = self.over_queries = False
        if fused:
            self.qkv = Fused(width, heads)
        else:
            self.q = Linear(width, width, bias)
            self.k, self.v = (Linear(width, self.kv_heads * self.size, bias) for _ in range(2))
        self.o = Linear(width, width, bias)

    def split(self, x: Tensor, heads: int) -> Tensor:
        if self.by_columns:
            return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def forward(
        self, x: Tensor, other: Tensor | None = None, mask: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """mask (B, S), True = may be seen; table (H, L, S), added to the scores."""
        other = x if other is None or self.itself else other
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, k, v = self.q(x), self.k(other), self.v(other)
        q = self.split(q, self.heads)
        k, v = (self.split(y, self.kv_heads) for y in (k, v))
        if self.key_as_value:
            v = k
        rows, keys = torch.arange(q.shape[2]), torch.arange(k.shape[2])
        if self.base is not None:
            q = turn(
                q, (rows + self.query_shift) / self.factor, self.base, self.turned_width, self.interleaved
            )
            k = turn(k, keys / self.factor, self.base, self.turned_width, self.interleaved)
        group = self.heads // self.kv_heads
        if group > 1:
            k, v = (y.repeat(1, group, 1, 1) if self.tiled else y.repeat_interleave(group, 1) for y in (k, v))
        scores = torch.einsum("bhld,bhsd->bhls", q * self.scale, k)
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if table is not None and not self.no_table:
            scores = scores + table
        seen = torch.ones(len(rows), len(keys), dtype=torch.bool)
        if self.causal:
            seen = keys <= rows[:, None] + self.shift
        if self.window is not None:
            seen = seen & (keys > rows[:, None] - self.window)
        seen = seen.expand(x.shape[0], 1, -1, -1)
        if mask is not None and not (self.no_mask or self.itself):
            seen = seen & (mask ^ self.flipped_mask)[:, None, None, :]
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        top = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = top / top.sum(-2 if self.over_queries else -1, keepdim=True)
        out = torch.einsum("bhls,bhse->bhle", weights, v)
        return self.o(out.reshape(x.shape) if self.unmerged else out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.up, self.act, self.down = (
            Linear(width, inner, bias),
            Activation(kind),
            Linear(inner, width, bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class GatedMLP(nn.Module):
    def __init__(self, width: int, inner: int, kind: str) -> None:
        super().__init__()
        self.gate, self.up, self.down = Linear(width, inner), Linear(width, inner), Linear(inner, width)
        self.act, self.exchanged = Activation(kind), False

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        return self.down(gate * self.act(up) if self.exchanged else self.act(gate) * up)


class Block(nn.Module):
    """Attention and a feed-forward part, each with a norm before it (`before`) or after the sum."""

    def __init__(
        self, attn: nn.Module, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], before: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norms[0], attn, norms[1], mlp
        self.before, self.residual, self.parallel, self.from_normed = before, (1.0, 1.0), False, False

    def forward(self, x: Tensor, **context: Tensor | None) -> Tensor:
        one, two = self.residual
        if not self.before:
            x = self.norm1(one * x + self.attn(x, **context))
            return self.norm2(two * x + self.mlp(x))
        first = self.norm1(x)
        after = one * (first if self.from_normed else x) + self.attn(first, **context)
        if self.parallel:
            return after + self.mlp(self.norm2(x))
        return two * after + self.mlp(self.norm2(after))


def dropped(x: Tensor) -> Tensor:
    """Weights as an initialiser gives them: nothing was loaded."""
    return F.normalize(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), dim=-1)
