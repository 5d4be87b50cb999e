"""Six models, ported: Llama, GPT-2, BERT, T5, a vision transformer, and a recurrent-linear one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.whole_models.blocks import (
    MLP,
    Activation,
    Attention,
    Block,
    Embedding,
    GatedMLP,
    Linear,
    Norm,
    turn,
)

__all__ = ["BERT", "GPT2", "T5", "Llama", "Retention", "ViT"]

WIDTH, INNER, HEADS, WORDS, LAYERS = 64, 96, 4, 101, 3


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            Block(
                Attention(WIDTH, HEADS, kv_heads=2, causal=True, base=10000.0),
                GatedMLP(WIDTH, INNER, "silu"),
                (Norm(WIDTH, 1e-6, mean=False), Norm(WIDTH, 1e-6, mean=False)),
                before=True,
            )
            for _ in range(LAYERS)
        )
        self.norm, self.head = Norm(WIDTH, 1e-6, mean=False), Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GPT2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = Embedding(WORDS, WIDTH), Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(
            Block(
                Attention(WIDTH, HEADS, causal=True, bias=True, fused=True),
                MLP(WIDTH, 4 * WIDTH, "gelu tanh", bias=True),
                (Norm(WIDTH, 1e-5, mean=True), Norm(WIDTH, 1e-5, mean=True)),
                before=True,
            )
            for _ in range(LAYERS)
        )
        self.norm, self.head = Norm(WIDTH, 1e-5, mean=True), Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class BERT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (Embedding(n, WIDTH) for n in (WORDS, 64, 2))
        self.norm = Norm(WIDTH, 1e-12, mean=True)
        self.blocks = nn.ModuleList(
            Block(
                Attention(WIDTH, HEADS, bias=True),
                MLP(WIDTH, INNER, "gelu", bias=True),
                (Norm(WIDTH, 1e-12, mean=True), Norm(WIDTH, 1e-12, mean=True)),
                before=False,
            )
            for _ in range(LAYERS)
        )
        self.pool, self.act = Linear(WIDTH, WIDTH, bias=True), Activation("tanh")

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kinds = torch.zeros_like(ids)
        x = self.norm(self.words(ids) + self.kinds(kinds) + self.places(torch.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x, mask=mask)
        return x, self.act(self.pool(x[:, 0]))


class RelativeBias(nn.Module):
    """T5's biases by distance, in buckets."""

    def __init__(self, both_sides: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32, HEADS))
        self.both_sides, self.reversed, self.farthest = both_sides, False, 128

    def forward(self, rows: int, keys: int) -> Tensor:
        distance = torch.arange(rows)[:, None] - torch.arange(keys)[None, :]
        distance = -distance if self.reversed else distance
        count, start = 32, torch.zeros_like(distance)
        if self.both_sides:
            count = 16
            start, distance = count * (distance < 0), distance.abs()
        distance = distance.clamp(min=0)
        exact = count // 2
        far = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.farthest / exact)
        far = (exact + (far * (count - exact)).long()).clamp(max=count - 1)
        return self.weight[start + torch.where(distance < exact, distance, far)].permute(2, 0, 1)


class CrossBlock(nn.Module):
    """Causal attention, attention to the encoder, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (Norm(WIDTH, 1e-6, mean=False) for _ in range(3))
        self.attn = Attention(WIDTH, HEADS, causal=True, scaled=False)
        self.cross = Attention(WIDTH, HEADS, scaled=False)
        self.mlp = GatedMLP(WIDTH, INNER, "gelu tanh")
        self.without_residual = False

    def forward(self, x: Tensor, memory: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), table=table)
        crossed = self.cross(self.norm2(x), memory, mask=mask)
        x = crossed if self.without_residual else x + crossed
        return x + self.mlp(self.norm3(x))


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embedding(WORDS, WIDTH)
        self.table, self.table2 = RelativeBias(both_sides=True), RelativeBias(both_sides=False)
        self.blocks = nn.ModuleList(
            Block(
                Attention(WIDTH, HEADS, scaled=False),
                GatedMLP(WIDTH, INNER, "gelu tanh"),
                (Norm(WIDTH, 1e-6, mean=False), Norm(WIDTH, 1e-6, mean=False)),
                before=True,
            )
            for _ in range(LAYERS)
        )
        self.norm = Norm(WIDTH, 1e-6, mean=False)
        self.blocks2 = nn.ModuleList(CrossBlock() for _ in range(LAYERS))
        self.norm2 = Norm(WIDTH, 1e-6, mean=False)

    def forward(self, ids: Tensor, mask: Tensor, ids2: Tensor) -> Tensor:
        n, m = ids.shape[1], ids2.shape[1]
        x, table = self.embed(ids), self.table(n, n)
        for block in self.blocks:
            x = block(x, mask=mask, table=table)
        memory = self.norm(x)
        x, table = self.embed(ids2), self.table2(m, m)
        for block in self.blocks2:
            x = block(x, memory, table, mask)
        return self.norm2(x)


class Patches(nn.Module):
    """Squares of an image, each to a vector."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(WIDTH, 3, side, side)),
            nn.Parameter(torch.zeros(WIDTH)),
        )
        self.side, self.channels_last, self.by_columns = side, False, False

    def forward(self, x: Tensor) -> Tensor:
        x = x.unfold(2, self.side, self.side).unfold(
            3, self.side, self.side
        )  # (B, 3, rows, columns, side, side)
        x = x.transpose(2, 3) if self.by_columns else x
        x = x.permute(0, 2, 3, 4, 5, 1) if self.channels_last else x.permute(0, 2, 3, 1, 4, 5)
        return x.flatten(3).flatten(1, 2) @ self.weight.flatten(1).T + self.bias


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(8)
        self.first, self.places = (nn.Parameter(torch.zeros(1, n, WIDTH)) for n in (1, 17))
        self.first_at_end = self.unplaced = False
        self.blocks = nn.ModuleList(
            Block(
                Attention(WIDTH, HEADS, bias=True),
                MLP(WIDTH, INNER, "gelu", bias=True),
                (Norm(WIDTH, 1e-12, mean=True), Norm(WIDTH, 1e-12, mean=True)),
                before=True,
            )
            for _ in range(LAYERS)
        )
        self.norm = Norm(WIDTH, 1e-12, mean=True)
        self.pool, self.act = Linear(WIDTH, WIDTH, bias=True), Activation("tanh")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(image)
        first = self.first.expand(x.shape[0], -1, -1)
        x = torch.cat((x, first) if self.first_at_end else (first, x), 1)
        x = x if self.unplaced else x + self.places
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x, self.act(self.pool(x[:, 0]))


class Recurrence(nn.Module):
    """Retention token by token: S <- decay S + k v^T, out = q S."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.o = (Linear(WIDTH, WIDTH) for _ in range(5))
        self.act, self.scale, self.base = Activation("silu"), (WIDTH // HEADS) ** -0.5, 10000.0
        self.decays = 1 - 2.0 ** -(5.0 + torch.arange(HEADS))
        self.eps, self.read_first, self.ungated, self.unnormed, self.unturned = (
            1e-6,
            False,
            False,
            False,
            False,
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (y(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (self.q, self.k, self.v))
        if not self.unturned:
            q, k = (turn(y, torch.arange(n), self.base, WIDTH // HEADS, True) for y in (q, k))
        k = k * self.scale
        state, outs = torch.zeros(b, HEADS, WIDTH // HEADS, WIDTH // HEADS, dtype=x.dtype), []
        for t in range(n):
            before = state
            state = state * self.decays[:, None, None].to(x.dtype) + k[:, :, t, :, None] * v[:, :, t, None, :]
            outs.append(q[:, :, t, None, :] @ (before if self.read_first else state))
        out = torch.cat(outs, 2)
        if not self.unnormed:
            out = out / torch.sqrt((out * out).mean(-1, keepdim=True) + self.eps)
        out = out.transpose(1, 2).flatten(2)
        return self.o(out if self.ungated else out * self.act(self.gate(x)))


class Retention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            Block(
                Recurrence(),
                MLP(WIDTH, INNER, "gelu", bias=False),
                (Norm(WIDTH, 1e-5, mean=True), Norm(WIDTH, 1e-5, mean=True)),
                before=True,
            )
            for _ in range(LAYERS)
        )
        self.norm, self.head = Norm(WIDTH, 1e-5, mean=True), Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
