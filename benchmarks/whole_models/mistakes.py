"""What people get wrong when they port a model: in which component, how it is done to a right port, and what to say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.whole_models.blocks import dropped

__all__ = ["MISTAKES", "Mistake"]


class Mistake(NamedTuple):
    """A mistake in one component of a port."""

    architecture: str
    name: str
    component: str  # of the port; parts of it may be named instead where `parts` says so
    plant: Callable[[nn.Module], None]  # is given the component
    cause: str  # a regular expression: what a sentence about it must hold
    parts: tuple[str, ...] = ()  # components that may be named as well


def put(**attributes: Any) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        for name, value in attributes.items():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no {name}")
            setattr(module, name, value)

    return plant


def weight(change: Callable[[torch.Tensor], torch.Tensor], of: str = "weight") -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        with torch.no_grad():
            getattr(module, of).copy_(change(getattr(module, of).clone()))

    return plant


def without_bias(module: nn.Module) -> None:
    module.bias = None


def halves_to_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Rows of a head as they lie for an interleaved rotary embedding."""
    return rows.unflatten(0, (-1, 2, 8)).transpose(1, 2).flatten(0, 2)


def per_head(rows: torch.Tensor) -> torch.Tensor:
    """Thirds of a fused projection, laid out head by head."""
    return rows.unflatten(0, (3, 4, 16)).transpose(0, 1).flatten(0, 2)


def _llama() -> Iterator[tuple[Any, ...]]:
    yield "epsilon 1e-5", "blocks.0.norm1", put(eps=1e-5), "epsilon.*1e-0?5"
    yield "epsilon 1e-8", "norm", put(eps=1e-8), "epsilon"
    yield "one is added to the weight", "blocks.1.norm2", put(offset=1.0), r"weight \+ 1|1 \+ weight|one"
    yield "LayerNorm for RMSNorm", "blocks.2.norm1", put(mean=True), "mean"
    yield "norm left out", "blocks.1.norm1", put(skipped=True), "norm.*(left out|skipped|missing|not applied)"
    yield "epsilon outside the root", "blocks.2.norm2", put(outside=True), "epsilon"
    yield "unbiased variance", "norm", put(unbiased=True), r"n - 1|unbiased"
    yield "rotary base", "blocks.0.attn", put(base=500000.0), "rotary.*base.*500000|base 5"
    yield "rotary pairing", "blocks.1.attn", put(interleaved=True), "interleaved|neighbours"
    yield "rotary left out", "blocks.2.attn", put(base=None), "rotary.*not applied"
    yield (
        "half of the width turned",
        "blocks.0.attn",
        put(turned_width=8),
        "rotary.*width|width.*rotary|part of",
    )
    yield "positions halved", "blocks.1.attn", put(factor=2.0), "position"
    yield "queries one late", "blocks.0.attn", put(query_shift=1), "position"
    yield "scale of the model's width", "blocks.2.attn", put(scale=64**-0.5), "scale.*64"
    yield "not causal", "blocks.0.attn", put(causal=False), "causal"
    yield "diagonal hidden", "blocks.1.attn", put(shift=-1), "causal"
    yield "kv heads tiled", "blocks.1.attn", put(tiled=True), "tiled"
    yield "window nobody asked for", "blocks.2.attn", put(window=5), "window"
    yield "soft cap nobody asked for", "blocks.0.attn", put(cap=3.0), "soft ?cap"
    yield "value is key", "blocks.2.attn", put(key_as_value=True), "value"
    yield "merged without transpose", "blocks.1.attn", put(unmerged=True), "merged"
    yield (
        "rows in rotary order of pairs",
        "blocks.0.attn.q",
        weight(halves_to_pairs),
        "rotary|interleaved|permut",
    )
    yield "k not loaded", "blocks.1.attn.k", weight(dropped), "not loaded|unloaded|initial|differ"
    yield "o transposed", "blocks.2.attn.o", weight(lambda w: w.T), "transposed"
    yield "o of half size", "blocks.0.attn.o", put(factor=0.5), r"0\.5|half"
    yield "gate and up exchanged", "blocks.1.mlp", put(exchanged=True), "exchanged|swapped"
    yield "GELU for SiLU", "blocks.2.mlp.act", put(kind="gelu"), "GELU"
    yield "down in bfloat16", "blocks.0.mlp.down", weight(lambda w: w.bfloat16().float()), "bfloat16"
    yield "residual left out", "blocks.1", put(residual=(0.0, 1.0)), "residual"
    yield "residual of what was normed", "blocks.2", put(from_normed=True), "residual|norm"
    yield "parallel", "blocks.0", put(parallel=True), "parallel|residual"
    yield "embedding times sqrt(width)", "embed", put(factor=8.0), r"sqrt|x 8"
    yield "one token off", "embed", put(shift=1), r"off by one|shift|id \+ 1"
    yield "negated head", "head", weight(torch.neg), "negat|-1"


def _gpt2() -> Iterator[tuple[Any, ...]]:
    yield "exact GELU", "blocks.0.mlp.act", put(kind="gelu"), "GELU.*exact|exact.*GELU"
    yield "quick GELU", "blocks.1.mlp.act", put(kind="gelu quick"), "quick|sigmoid|1.702"
    yield "per head instead of thirds", "blocks.1.attn.qkv", put(per_head=True), "head"
    yield "weights packed per head", "blocks.2.attn.qkv", weight(per_head), "head|permut"
    yield "epsilon 1e-6", "blocks.2.norm2", put(eps=1e-6), "epsilon.*1e-0?6"
    yield "positions from 1", "places", put(shift=1), r"position|off by one|shift|id \+ 1"
    yield "norm without its bias", "blocks.1.norm1", without_bias, "bias"
    yield "qkv without its bias", "blocks.0.attn.qkv", without_bias, "bias"
    yield "c_proj transposed", "blocks.0.attn.o", weight(lambda w: w.T), "transposed"
    yield "scores not scaled", "blocks.2.attn", put(scale=1.0), "scale"
    yield "scaled twice", "blocks.1.attn", put(scale=1 / 16), "twice|1/16"
    yield "no causal mask", "blocks.0.attn", put(causal=False), "causal"
    yield "heads interleaved", "blocks.1.attn", put(by_columns=True), "heads"
    yield "softmax over the queries", "blocks.0.attn", put(over_queries=True), "queries"
    yield "norms after the sums", "blocks.0", put(before=False), "norm|residual"
    yield "last norm left out", "norm", put(skipped=True), "norm.*(left out|skipped|missing|not applied)"
    yield "RMSNorm for LayerNorm", "blocks.0.norm2", put(mean=False), "mean"
    yield "embedding times sqrt(width)", "words", put(factor=8.0), r"sqrt|x 8"


def _bert() -> Iterator[tuple[Any, ...]]:
    yield "epsilon 1e-5", "blocks.0.norm1", put(eps=1e-5), "epsilon.*1e-0?5"
    yield "GELU by tanh", "blocks.1.mlp.act", put(kind="gelu tanh"), "tanh"
    yield "positions from 2", "places", put(shift=2), r"position|off|shift|id \+ 2"
    yield (
        "token types not loaded",
        "kinds",
        weight(torch.zeros_like),
        "zero|0 throughout|not loaded|initial|missing",
    )
    yield "padding seen", "blocks.1", lambda m: put(no_mask=True)(m.attn), "mask"
    yield "mask inverted", "blocks.2", lambda m: put(flipped_mask=True)(m.attn), "invert|polarity"
    yield "query without its bias", "blocks.0.attn.q", without_bias, "bias"
    yield "norms before", "blocks.1", put(before=True), "norm|residual"
    yield "residual left out", "blocks.2", put(residual=(1.0, 0.0)), "residual"
    yield "ReLU in the pooler", "act", put(kind="relu"), "ReLU"
    yield "value transposed", "blocks.2.attn.v", weight(lambda w: w.T), "transposed"
    yield (
        "norm of the embeddings left out",
        "norm",
        put(skipped=True),
        "norm.*(left out|skipped|missing|not applied)",
    )
    yield (
        "weight and bias of a norm exchanged",
        "blocks.0.norm2",
        lambda m: weight(lambda w: m.bias.clone())(m),
        "weight",
    )


def _t5() -> Iterator[tuple[Any, ...]]:
    yield "scores scaled", "blocks.0.attn", put(scale=0.25), r"scale.*(16|0\.25)"
    yield "LayerNorm for RMSNorm", "blocks.1.norm1", put(mean=True), "mean"
    yield "epsilon 1e-5", "blocks2.0.norm3", put(eps=1e-5), "epsilon.*1e-0?5"
    yield "no relative bias", "blocks.2.attn", put(no_table=True), "bias"
    yield "decoder not causal", "blocks2.1.attn", put(causal=False), "causal"
    yield "self for cross", "blocks2.0.cross", put(itself=True), "key|cross|self"
    yield "padding seen by the decoder", "blocks2.2.cross", put(no_mask=True), "mask"
    yield "exact GELU", "blocks.0.mlp.act", put(kind="gelu"), "GELU.*exact|exact.*GELU"
    yield "gate and up exchanged", "blocks2.1.mlp", put(exchanged=True), "exchanged|swapped"
    yield "cross attention without residual", "blocks2.2", put(without_residual=True), "residual"
    yield (
        "encoder's last norm left out",
        "norm",
        put(skipped=True),
        "norm.*(left out|skipped|missing|not applied)",
    )
    yield "kv heads swapped about", "blocks.1.attn.v", weight(lambda w: w.flip(0)), "revers|permut|order"


def _vit() -> Iterator[tuple[Any, ...]]:
    yield "patches channels last", "patches", put(channels_last=True), "channel|permut|order"
    yield "patches by columns", "patches", put(by_columns=True), "column|permut|order|transposed"
    yield "GELU by tanh", "blocks.2.mlp.act", put(kind="gelu tanh"), "tanh"
    yield "epsilon 1e-5", "blocks.1.norm2", put(eps=1e-5), "epsilon.*1e-0?5"
    yield "scale of the model's width", "blocks.1.attn", put(scale=64**-0.5), "scale.*64"
    yield "causal", "blocks.0.attn", put(causal=True), "causal"
    yield "heads split by columns", "blocks.2.attn", put(by_columns=True), "heads"
    yield "fc1 without its bias", "blocks.0.mlp.up", without_bias, "bias"
    yield "fc2 in half precision", "blocks.1.mlp.down", weight(lambda w: w.half().float()), "float16"
    yield "residual twice", "blocks.2", put(residual=(2.0, 1.0)), "residual"


def _retention() -> Iterator[tuple[Any, ...]]:
    order = torch.arange(4)
    yield "decays reversed", "blocks.0.attn", lambda m: put(decays=m.decays[order.flip(0)])(m), "decay"
    yield "no decay", "blocks.1.attn", lambda m: put(decays=torch.ones(4))(m), "decay"
    yield "read before written", "blocks.2.attn", put(read_first=True), "diagonal|itself|before"
    yield "without its norm", "blocks.1.attn", put(unnormed=True), "norm"
    yield "without its gate", "blocks.2.attn", put(ungated=True), "gate"
    yield "positions not turned", "blocks.0.attn", put(unturned=True), "rotary|position"
    yield "epsilon 1e-6", "norm", put(eps=1e-6), "epsilon.*1e-0?6"
    yield "quick GELU", "blocks.1.mlp.act", put(kind="gelu quick"), "quick|sigmoid|1.702"
    yield (
        "v of another head order",
        "blocks.2.attn.v",
        weight(lambda w: w.roll(16, 0)),
        "head|permut|order|roll|moved round",
    )


MISTAKES = tuple(
    Mistake(architecture, *row)
    for architecture, rows in (
        ("llama", _llama),
        ("gpt2", _gpt2),
        ("bert", _bert),
        ("t5", _t5),
        ("vit", _vit),
        ("retention", _retention),
    )
    for row in rows()
)
