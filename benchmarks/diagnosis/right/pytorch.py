"""PyTorch and transformers."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from ..problems import DTYPES, Problem
from .common import added, additive, implementation, inputs, seen


def _sdpa(p: Problem, backend: SDPBackend) -> Tensor | None:
    mask = additive(p)
    if mask is None:
        return None
    q, k, v = inputs(p)
    try:
        with sdpa_kernel([backend]):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=p.scale, enable_gqa=q.shape[1] != k.shape[1]
            )
    except RuntimeError:  # this kernel is not for this problem, or not for this machine
        return None


@implementation("torch SDPA, math", "softcap sinks")
def sdpa_math(p: Problem) -> Tensor | None:
    return _sdpa(p, SDPBackend.MATH)


@implementation("torch SDPA, flash", "softcap sinks empty")
def sdpa_flash(p: Problem) -> Tensor | None:
    return _sdpa(p, SDPBackend.FLASH_ATTENTION)


@implementation("torch SDPA, efficient", "softcap sinks")
def sdpa_efficient(p: Problem) -> Tensor | None:
    return _sdpa(p, SDPBackend.EFFICIENT_ATTENTION)


@implementation("torch SDPA, by flag", "softcap sinks bias alibi empty cross")
def sdpa_flag(p: Problem) -> Tensor | None:
    """is_causal and nothing else hides."""
    if p.mask is not None or p.window is not None or p.start:
        return None
    q, k, v = inputs(p)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=p.is_causal, scale=p.scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@implementation("torch FlexAttention, eager", "sinks", compiles=True)
def flex(p: Problem) -> Tensor:
    allowed, bias = seen(p), added(p)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = s if p.cap is None else p.cap * torch.tanh(s / p.cap)
        s = s if bias is None else s + bias[0, h, i, j]
        return torch.where(allowed[b, h, i, j], s, -torch.inf)

    q, k, v = inputs(p)
    return flex_attention(q, k, v, score_mod=score, scale=p.scale, enable_gqa=q.shape[1] != k.shape[1])


def _flat(x: Tensor) -> Tensor:
    """(B, L, H D)"""
    return x.transpose(1, 2).flatten(2)


@implementation("torch MultiheadAttention", "softcap sinks gqa wide scale empty")
def multihead(p: Problem) -> Tensor | None:
    """Its projections are identities."""
    q, k, v = inputs(p)
    mask = additive(p)
    if mask is None:
        return None
    heads, width = q.shape[1], q.shape[1] * q.shape[3]
    eye, none = torch.eye(width, dtype=q.dtype), torch.zeros(width, dtype=q.dtype)
    out, _ = torch.nn.functional.multi_head_attention_forward(
        *(_flat(x).transpose(0, 1) for x in (q, k, v)),
        embed_dim_to_check=width,
        num_heads=heads,
        in_proj_weight=torch.cat((eye, eye, eye)),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=eye,
        out_proj_bias=none,
        training=False,
        need_weights=False,
        attn_mask=mask.flatten(0, 1),
    )
    return out.transpose(0, 1).unflatten(2, (heads, -1)).transpose(1, 2)


def _module(p: Problem) -> Any:
    """What the functions of transformers ask of the layer that calls them."""
    sinks = None if p.sinks is None else p.sinks.to(DTYPES[p.dtype])
    groups = p.q.shape[1] // p.k.shape[1]
    return types.SimpleNamespace(
        num_key_value_groups=groups, training=False, head_dim=p.q.shape[3], sinks=sinks, is_causal=False
    )


def _transformers(p: Problem, f: Any, **more: Any) -> Tensor | None:
    mask = additive(p)
    if mask is None:
        return None
    with torch.no_grad():
        out, _ = f(_module(p), *inputs(p), mask, scaling=p.stated_scale, dropout=0.0, **more)
    return out.transpose(1, 2)


@implementation("transformers, eager", "softcap sinks empty")
def llama(p: Problem) -> Tensor | None:
    from transformers.models.llama.modeling_llama import eager_attention_forward

    return _transformers(p, eager_attention_forward)


@implementation("transformers, eager of Gemma 2", "sinks empty")
def gemma(p: Problem) -> Tensor | None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    return _transformers(p, eager_attention_forward, softcap=p.cap)


@implementation("transformers, eager of gpt-oss", "softcap")
def gpt_oss(p: Problem) -> Tensor | None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    return None if p.sinks is None else _transformers(p, eager_attention_forward)


@implementation("transformers, sdpa", "softcap sinks empty")
def sdpa_of_transformers(p: Problem) -> Tensor | None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _transformers(p, sdpa_attention_forward, is_causal=False)
