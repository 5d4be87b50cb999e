"""JAX, Flax, Equinox and Keras."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import Tensor

from ..problems import Problem
from .common import added, additive, exact, implementation, inputs, seen


def _give(x: Tensor, p: Problem) -> Any:
    return jnp.asarray(x.float().numpy()).astype(p.dtype)


def _tokens(p: Problem) -> list[Any]:
    """q, k, v as (B, L, H, D)."""
    return [_give(x, p).swapaxes(1, 2) for x in inputs(p)]


def _bias(p: Problem) -> Any:
    bias = added(p)
    return None if bias is None else _give(bias.expand(p.shape), p)


def _mask(p: Problem) -> Any:
    return jnp.asarray(seen(p).numpy())


@implementation("jax.nn", "softcap sinks wide empty", compiles=True)
def jax_nn(p: Problem) -> Any:
    if not exact(added(p), p):
        return None
    out = jax.nn.dot_product_attention(*_tokens(p), bias=_bias(p), mask=_mask(p), scale=p.scale)
    return out.swapaxes(1, 2)


@implementation("flax nnx", "softcap sinks gqa wide scale empty", compiles=True)
def nnx(p: Problem) -> Any:
    from flax import nnx

    if not exact(added(p), p):
        return None
    return nnx.dot_product_attention(*_tokens(p), bias=_bias(p), mask=_mask(p)).swapaxes(1, 2)


@implementation("flax linen", "softcap sinks gqa scale empty", compiles=True)
def linen(p: Problem) -> Any:
    from flax import linen

    if not exact(added(p), p):
        return None
    out = linen.dot_product_attention(
        *_tokens(p), bias=_bias(p), mask=_mask(p), force_fp32_for_softmax=p.dtype != "float32"
    )
    return out.swapaxes(1, 2)


@implementation("equinox", "softcap sinks bias alibi gqa scale empty", compiles=True)
def equinox(p: Problem) -> Any:
    """Its projections are identities."""
    import equinox as eqx

    q, k, v = _tokens(p)
    heads, width, other = q.shape[2], q.shape[3], v.shape[3]
    layer = eqx.nn.MultiheadAttention(
        heads,
        heads * width,
        value_size=heads * other,
        output_size=heads * other,
        qk_size=width,
        vo_size=other,
        key=jax.random.key(0),
    )
    eyes = [jnp.eye(heads * n, dtype=q.dtype) for n in (width, width, other, other)]
    layer = eqx.tree_at(
        lambda m: (m.query_proj.weight, m.key_proj.weight, m.value_proj.weight, m.output_proj.weight),
        layer,
        eyes,
    )
    flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    out = jax.vmap(lambda q, k, v, mask: layer(q, k, v, mask=mask))(*flat, _mask(p))
    return out.reshape(*out.shape[:2], heads, other).swapaxes(1, 2)


@cache
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return keras


@implementation("keras.ops", "softcap sinks wide empty", compiles=True)
def keras_ops(p: Problem) -> Any:
    """It takes a mask or a bias, not both."""
    given = additive(p)
    if given is None:
        return None
    q, k, v = (_of_keras(x) for x in _tokens(p))
    if added(p) is None:
        out = keras().ops.dot_product_attention(q, k, v, mask=_of_keras(_mask(p)), scale=p.scale)
    else:
        out = keras().ops.dot_product_attention(q, k, v, bias=_of_keras(_give(given, p)), scale=p.scale)
    return _to_numpy(out).swapaxes(1, 2)


@implementation("keras MultiHeadAttention", "softcap sinks bias alibi gqa wide scale empty", compiles=True)
def keras_layer(p: Problem) -> Any:
    """Its projections are identities."""
    q, k, v = (_of_keras(x.reshape(*x.shape[:2], -1)) for x in _tokens(p))
    heads, width = p.q.shape[1], p.q.shape[3]
    layer = keras().layers.MultiHeadAttention(heads, width, use_bias=False, dtype=p.dtype)
    layer.build(q.shape, v.shape, k.shape)
    eye = np.eye(heads * width, dtype=np.float32)
    into = eye.reshape(-1, heads, width)
    layer.set_weights([into, into, into, eye.reshape(heads, width, -1)])
    out = layer(q, v, key=k, attention_mask=_of_keras(_mask(p)))
    return _to_numpy(out).reshape(*out.shape[:2], heads, width).swapaxes(1, 2)


def _of_keras(x: Any) -> Any:
    """For whichever backend Keras runs on."""
    return keras().ops.convert_to_tensor(x if keras().backend.backend() == "jax" else _plain(x))


def _plain(x: Any) -> Any:
    import torch

    if x.dtype == bool:
        return torch.from_numpy(np.array(x))
    return torch.from_numpy(np.array(x.astype("float32"))).to(getattr(torch, str(x.dtype)))


def _to_numpy(x: Any) -> Any:
    return keras().ops.convert_to_numpy(x)
