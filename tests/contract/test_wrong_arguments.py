"""Whatever is passed for whatever parameter: an answer, or a TypeError or ValueError that polyattn itself has raised."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

import polyattn
from polyattn import AuxRequest, attention, attention_vjp, layers, masks, mods, rotary, trace
from polyattn.additive import additive_attention, additive_scores
from polyattn.caches import KVCache
from polyattn.dropout import drop
from polyattn.linear import linear_attention
from polyattn.problem import packed_positions
from polyattn.rotary import Rotary, rotate, sinusoidal

pytestmark = pytest.mark.rule("rule-13")

OURS = tuple(str(Path(polyattn.__file__).parents[1] / folder) for folder in ("polyattn", "backends"))
X = np.ones((2, 4, 8), np.float32)
Q = np.ones((2, 4, 3, 8), np.float32)
V = np.ones((3,), np.float32)
TOKENS = np.zeros((2, 4), np.int32)

#: What nobody means, or hardly anybody, in whatever place.
WRONG: Mapping[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "a large integer": 2**70,
    "a string": "causal",
    "bytes": b"x",
    "a list": [1.0, 2.0],
    "an empty list": [],
    "a tuple": (2, 0),
    "a dict": {"w": X},
    "an object": object(),
    "a class": int,
    "a dtype": np.float32,
    "a function": lambda x: x,
    "a ufunc": np.tanh,
    "a builtin": abs,
    "a range": range(3),
    "a generator": np.random.default_rng(0),
    "a mask": masks.causal(),
    "a function that makes masks": masks.window,
    "a mod": mods.softcap(3.0),
    "a layer": layers.LayerNorm(8, epsilon=1e-5),
    "a complex number": 1j,
    "an array of integers": np.ones((2, 3), np.int64),
    "an array of bools": np.ones((3, 3), bool),
    "an array of complex numbers": np.ones((3,), np.complex64),
    "an array of strings": np.array(["a", "b"]),
    "an array of objects": np.array([None, None]),
    "an array without axes": np.array(1.0, np.float32),
    "an array without entries": np.zeros((0, 4, 3, 8), np.float32),
    "an array of another library": torch.ones(3),
    "an array of dates": np.array(["2026-01-01"], "datetime64[D]"),
}

MHA, NORM = layers.MultiHeadAttention(8, 2), layers.LayerNorm(8, epsilon=1e-5)
MLP = layers.MLP(8, 16, activation="relu")
BLOCK = layers.EncoderBlock(MHA, MLP, NORM, norm_first=True)
MOBA = layers.MixtureOfBlockAttention(8, 2, block_size=2, count=2)
SEQ2SEQ = layers.EncoderDecoderAttention(MHA, MHA, NORM, norm_first=True)
CACHE = KVCache.empty(2, 4, 8, 8, like=Q)
SQUARE = dict.fromkeys(("query", "key", "value"), Q)
ALL = {
    "mask": masks.causal(),
    "bias": None,
    "score_mod": None,
    "is_causal": True,
    "query_offset": 0,
    "key_offset": 0,
    "query_positions": None,
    "key_positions": None,
    "cu_seqlens_q": None,
    "cu_seqlens_k": None,
    "scale": 1.0,
    "sinks": None,
    "dropout_rate": 0.5,
    "dropout_seed": 0,
    "layout": "BHLD",
}
HOW = {"return_aux": AuxRequest(), "implementation": "auto"}


def init(layer: Any) -> dict[str, Any]:
    return layer.init(0, like=X)


def run(layer: Any) -> dict[str, Any]:
    return {"params": init(layer), "x": X}


MORE = {"mask": None, "bias": None, "is_causal": False, "query_offset": None, "dropout_seed": None}

#: Every public function, with a call of it that is right: its arguments are exchanged for the wrong ones, one by one.
CALLS: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "attention": (attention, SQUARE | ALL | HOW),
    "attention_vjp": (attention_vjp, SQUARE | ALL | {"implementation": "blockwise"}),
    "pullback": (attention_vjp(Q, Q, Q)[1], {"d_out": Q, "d_lse": Q[..., 0]}),
    "trace": (trace, SQUARE | ALL),
    "AuxRequest": (lambda **names: attention(Q, Q, Q, return_aux=AuxRequest(**names)), dict.fromkeys(AuxRequest._fields, True)),
    "Blockwise": (polyattn.Blockwise, {"rows": 8, "keys": 8}),
    "Reference": (polyattn.Reference, {"max_bytes": 8}),
    "additive_attention": (additive_attention, SQUARE | {"weight": Q[0, 0, 0], "bias": None, "mask": None} | HOW),
    "additive_scores": (additive_scores, {"query": Q, "key": Q, "weight": Q[0, 0, 0]}),
    "linear_attention": (linear_attention, SQUARE | {"decay": None, "beta": None, "state": None, "scale": None, "chunk_size": 2}),
    "Rotary": (Rotary, {"base": 1e4, "width": 4, "interleaved": True, "scaling": rotary.Linear(2.0), "sections": (1, 1), "section_order": "chunked"}),
    "Rotary()": (Rotary(), {"x": Q, "positions": np.arange(3), "length": 3, "layout": "BHLD"}),
    "Rotary.frequencies": (Rotary().frequencies, {"width": 8, "length": 3}),
    "Rotary.from_config": (Rotary.from_config, {"config": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "layer_type": None, "head_dim": 8, "interleaved": True}),
    "rotary.Linear": (rotary.Linear, {"factor": 2.0}),
    "rotary.DynamicNTK": (rotary.DynamicNTK, {"factor": 2.0, "original_length": 8}),
    "rotary.YaRN": (rotary.YaRN, {"factor": 2.0, "original_length": 8, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True}),
    "rotary.Llama3": (rotary.Llama3, {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8}),
    "rotary.LongRoPE": (rotary.LongRoPE, {"short_factor": (1.0,), "long_factor": (2.0,), "original_length": 8, "factor": 2.0, "attention_factor": 1.0}),
    "rotary.Proportional": (rotary.Proportional, {"proportion": 0.5, "factor": 2.0}),
    "rotate": (rotate, {"x": Q, "cos": Q[0, 0, :, :4], "sin": Q[0, 0, :, :4], "interleaved": False}),
    "sinusoidal": (sinusoidal, {"length": 3, "dim": 4, "like": X, "base": 1e4}),
    "drop": (drop, {"x": X, "rate": 0.5, "seed": 0}),
    "KVCache.empty": (KVCache.empty, {"batch": 2, "kv_heads": 2, "capacity": 4, "head_dim": 8, "value_dim": 8, "like": X}),
    "KVCache.append": (CACHE.append, {"key": Q, "value": Q}),
    "causal": (masks.causal, {}),
    "window": (masks.window, {"left": 1, "right": 1}),
    "sliding_window": (masks.sliding_window, {"size": 2}),
    "chunked": (masks.chunked, {"n": 2}),
    "dilated": (masks.dilated, {"step": 2}),
    "prefix": (masks.prefix, {"n": 2}),
    "neighborhood": (masks.neighborhood, {"shape": [4, 4], "window": 3, "causal": [0]}),
    "sliding_tiles": (masks.sliding_tiles, {"shape": [4, 4], "tile": 2, "window": 1}),
    "block_causal": (masks.block_causal, {"size": 2}),
    "block_diffusion": (masks.block_diffusion, {"n": 4, "size": 2}),
    "shared_prefix": (masks.shared_prefix, {"n": 2, "q_ids": np.arange(3), "kv_ids": None}),
    "tree": (masks.tree, {"parents": np.array([-1, 0]), "prefix": 1, "keys": None}),
    "global_tokens": (masks.global_tokens, {"at": 2}),
    "strided": (masks.strided, {"stride": 2}),
    "random_blocks": (masks.random_blocks, {"n": 8, "size": 2, "count": 1, "seed": 0}),
    "packed_positions": (packed_positions, {"cu_seqlens": np.array([0, 2]), "tokens": 2}),
    "key_lengths": (masks.key_lengths, {"n": 2}),
    "query_lengths": (masks.query_lengths, {"n": 2}),
    "segments": (masks.segments, {"q_ids": np.array([0, 0, 1]), "kv_ids": np.array([0, 0, 1])}),
    "from_array": (masks.from_array, {"allowed": np.ones((3, 3), bool)}),
    "mask_mod": (lambda f: masks.mask_mod(f).dense(3), {"f": lambda b, h, q, kv: kv <= q}),
    "mask &": (lambda other: masks.causal() & other, {"other": masks.causal()}),
    "mask |": (lambda other: other | masks.causal(), {"other": masks.causal()}),
    "mask.dense": (masks.causal().dense, {"queries": 3, "keys": 3, "batch": 1, "heads": 1, "query_offset": 0, "key_offset": 0, "like": X}),
    "mask.additive": (masks.causal().additive, {"queries": 3, "keys": 3, "dtype": np.float32}),
    "mask.tile": (masks.causal().tile, {"queries": range(3), "keys": range(3), "b": 0, "h": 0, "query_offset": 0, "key_offset": 0}),
    "mask.tiles": (masks.causal().tiles, {"queries": 3, "keys": 3, "tile": (2, 2), "b": 0, "h": 0, "query_offset": 0, "key_offset": 0}),
    "mask.show": (masks.causal().show, {"queries": 3, "keys": 3, "query_offset": 0, "b": 0, "h": 0}),
    "softcap": (mods.softcap, {"cap": 3.0}),
    "alibi": (mods.alibi, {"slopes": 4}),
    "forgetting": (mods.forgetting, {"log_forget": np.zeros((4, 3))}),
    "temperature": (mods.temperature, {"strength": 0.1, "every": 8, "first": 1}),
    "alibi_slopes": (mods.alibi_slopes, {"heads": 4}),
    "relative_position_bias": (mods.relative_position_bias, {"table": np.ones((32, 4)), "bidirectional": True, "max_distance": 128}),
    "relative_bucket": (mods.relative_bucket, {"distance": np.arange(3), "buckets": 32, "bidirectional": True, "max_distance": 128}),
    "compose": (lambda f: attention(Q, Q, Q, score_mod=mods.compose(f)), {"f": mods.softcap(3.0)}),
    "ScaledDotProductAttention": (layers.ScaledDotProductAttention, {"scale": 1.0, "dropout_rate": 0.1, "implementation": "auto"}),
    "ScaledDotProductAttention()": (layers.ScaledDotProductAttention(), {"params": {}} | SQUARE | {"dropout_seed": 0, "mask": None, "is_causal": True}),
    "MultiHeadAttention": (layers.MultiHeadAttention, {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "context_dim": 8, "qkv_bias": True, "out_bias": True, "output_projection": True, "is_causal": False, "context_length": 8, "dropout_rate": 0.1, "scale": 1.0, "mask": None, "score_mod": None, "sinks": False, "rotary": None, "qk_norm": None, "shares_kv": False, "implementation": "auto", "initializer": "glorot_uniform"}),
    "MultiHeadAttention()": (MHA, run(MHA) | {"context": X} | MORE),
    "MultiHeadAttention.run": (MHA.run, run(MHA) | {"context": None} | MORE | {"cache": MHA.empty_cache(2, 8, like=X), "return_aux": None}),
    "init": (MHA.init, {"seed": 0, "like": X}),
    "empty_cache": (MHA.empty_cache, {"batch": 2, "capacity": 4, "like": X, "circular": False}),
    "empty_cache of a stack": (layers.Encoder(BLOCK, 2).empty_cache, {"batch": 2, "capacity": 4, "like": X, "circular": False}),
    "MixtureOfBlockAttention": (layers.MixtureOfBlockAttention, {"embed_dim": 8, "num_heads": 2, "block_size": 2, "count": 2, "num_kv_heads": 1, "rotary": None, "scale": 1.0}),
    "MixtureOfBlockAttention()": (MOBA, run(MOBA) | {"is_causal": True, "dropout_seed": 0}),
    "NativeSparseAttention": (layers.NativeSparseAttention, {"embed_dim": 8, "num_heads": 2, "block_size": 2, "count": 2, "window_size": 2, "initial": 1, "local": 1, "compression_dim": 4}),
    "SelfAttention": (layers.SelfAttention, {"embed_dim": 8, "head_dim": 4}),
    "CausalSelfAttention": (layers.CausalSelfAttention, {"embed_dim": 8, "num_heads": 2, "context_length": 8}),
    "MultiHeadCrossAttention": (layers.MultiHeadCrossAttention, {"embed_dim": 8, "num_heads": 2, "context_dim": 8}),
    "CrossAttention": (layers.CrossAttention, {"embed_dim": 8, "head_dim": 4, "context_dim": 8}),
    "GroupedQueryAttention": (layers.GroupedQueryAttention, {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 1}),
    "MultiQueryAttention": (layers.MultiQueryAttention, {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 1}),
    "AdditiveAttention": (layers.AdditiveAttention, {"embed_dim": 8, "hidden_dim": 4, "context_dim": 8, "dropout_rate": 0.1, "initializer": "glorot_uniform"}),
    "AdditiveAttention()": (layers.AdditiveAttention(8, 4), run(layers.AdditiveAttention(8, 4)) | {"context": X, "mask": None, "is_causal": False, "query_offset": None, "dropout_seed": None}),
    "LuongAttention": (layers.LuongAttention, {"embed_dim": 8, "score": "concat", "context_dim": 8, "hidden_dim": 8, "dropout_rate": 0.1}),
    "LuongAttention()": (layers.LuongAttention(8, score="general"), run(layers.LuongAttention(8, score="general")) | {"context": X}),
    "LayerNorm": (layers.LayerNorm, {"dim": 8, "epsilon": 1e-5, "use_bias": True}),
    "LayerNorm()": (NORM, run(NORM)),
    "RMSNorm": (layers.RMSNorm, {"dim": 8, "epsilon": 1e-5}),
    "RMSNorm()": (layers.RMSNorm(8, epsilon=1e-5), run(layers.RMSNorm(8, epsilon=1e-5))),
    "Linear": (layers.Linear, {"in_dim": 8, "out_dim": 8, "use_bias": True, "initializer": "glorot_uniform"}),
    "Linear()": (layers.Linear(8, 8), run(layers.Linear(8, 8))),
    "Embedding": (layers.Embedding, {"size": 8, "dim": 8, "initializer": layers.Normal(0.02)}),
    "Embedding()": (layers.Embedding(8, 8), {"params": init(layers.Embedding(8, 8)), "tokens": TOKENS}),
    "MLP": (layers.MLP, {"embed_dim": 8, "hidden_dim": 8, "activation": "gelu", "use_bias": True, "dropout_rate": 0.1, "initializer": "glorot_uniform"}),
    "MLP()": (MLP, run(MLP) | {"dropout_seed": 0}),
    "EncoderBlock": (layers.EncoderBlock, {"attention": MHA, "mlp": MLP, "norm": NORM, "norm_first": True, "dropout_rate": 0.1}),
    "EncoderBlock()": (BLOCK, run(BLOCK) | MORE),
    "EncoderBlock.preset": (layers.EncoderBlock.preset, {"name": "torch", "embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "epsilon": 1e-5}),
    "DecoderBlock": (layers.DecoderBlock, {"self_attention": MHA, "cross_attention": MHA, "norm": NORM, "norm_first": True, "dropout_rate": 0.1, "mlp": MLP}),
    "DecoderBlock.preset": (layers.DecoderBlock.preset, {"name": "torch", "embed_dim": 8, "num_heads": 2, "mlp_dim": 8}),
    "EncoderDecoderAttention": (layers.EncoderDecoderAttention, {"self_attention": MHA, "cross_attention": MHA, "norm": NORM, "norm_first": True, "dropout_rate": 0.1}),
    "EncoderDecoderAttention()": (SEQ2SEQ, run(SEQ2SEQ) | {"context": X, "context_mask": None, "context_bias": None, "is_causal": True, "dropout_seed": 0}),
    "Encoder": (layers.Encoder, {"block": BLOCK, "depth": 2, "final_norm": NORM, "kv_from": (None, 0)}),
    "Encoder()": (layers.Encoder(BLOCK, 2), run(layers.Encoder(BLOCK, 2)) | {"dropout_seed": 0, "mask": None}),
    "Encoder.run": (layers.Encoder(BLOCK, 2).run, run(layers.Encoder(BLOCK, 2)) | {"cache": layers.Encoder(BLOCK, 2).empty_cache(2, 8, like=X), "return_aux": None}),
    "Decoder": (layers.Decoder, {"block": SEQ2SEQ, "depth": 2, "final_norm": NORM}),
    "Normal": (layers.Normal, {"std": 0.02, "truncated": True}),
    "Uniform": (layers.Uniform, {"limit": 0.02}),
    "Constant": (layers.Constant, {"value": 0.0}),
}  # fmt: skip


def answered(call: Callable[[], Any]) -> str | None:
    """What is wrong with how a call ended; None if nothing is."""
    with np.errstate(all="ignore"):
        try:
            call()
        except (TypeError, ValueError) as error:
            innermost = traceback.extract_tb(error.__traceback__)[-1]
            if not innermost.filename.startswith(OURS):
                return f"{type(error).__name__} of {innermost.filename}: {str(error)[:100]}"
            return (
                None
                if str(error).startswith("polyattn")
                else f"{innermost.filename}:{innermost.lineno} {str(error)[:100]}"
            )
        except Exception as error:
            innermost = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} of {innermost.filename}:{innermost.lineno}: {str(error)[:100]}"
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_value_for_an_argument_is_answered_here(name: str) -> None:
    f, right = CALLS[name]
    f(**right)
    found = {
        f"{parameter} = {what}": end
        for parameter in right
        for what, value in WRONG.items()
        if (end := answered(lambda p=parameter, x=value: f(**right | {p: x}))) is not None
    }
    assert found == {}


@pytest.mark.parametrize(
    "name", [name for name, (f, _) in CALLS.items() if getattr(f, "__name__", "") != "<lambda>"]
)
def test_a_call_of_the_wrong_form_is_answered_here(name: str) -> None:
    f, right = CALLS[name]
    wrong = {
        "too many by position": lambda: f(*[X] * 30),
        "an unknown name": lambda: f(**right, no_such_argument=1),
        "a word of PyTorch": lambda: f(**right, attn_mask=None, bias_k=None),
    }
    required = [
        p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty and p.name in right
    ]
    wrong |= {
        f"without {n}": lambda n=n: f(**{name: x for name, x in right.items() if name != n}) for n in required
    }
    assert {what: end for what, call in wrong.items() if (end := answered(call)) is not None} == {}
    for what, call in wrong.items():
        if not (what == "too many by position" and name in ("Encoder()", "Encoder.run")):
            with pytest.raises((TypeError, ValueError)):
                call()
