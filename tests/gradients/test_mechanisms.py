"""Layers that are no attention, blocks, and every mechanism as a function: NumPy's gradients are JAX's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from shared.libraries import jax, jnp
from shared.running import Floats, drawn, normal

from polyattn import additive, attention, convolution, differential, latent, layers, linear, masks, mods
from polyattn.additive import additive_attention, additive_attention_vjp
from polyattn.dropout import drop
from polyattn.gradients import vjp
from polyattn.mixing import multi_token_attention, talking_heads_attention
from polyattn.parity import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.rotary import Rotary, rotate
from polyattn.selection import moba_attention, selected_attention

NORM = layers.LayerNorm(8, epsilon=1e-5)
TOKENS = np.array([[1, 3, 1, 0], [2, 2, 4, 1]], np.int32)
BLOCK = layers.EncoderBlock.preset("torch", 8, 2, 12)
MODERN = layers.EncoderBlock(
    layers.GroupedQueryAttention(8, 4, num_kv_heads=2, rotary=Rotary(), is_causal=True, sinks=True),
    layers.MLP(8, 12, activation="swiglu"),
    layers.RMSNorm(8, epsilon=1e-6),
    norm_first=True,
)
#: layer, and its inputs
LAYERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "Linear": (layers.Linear(8, 3), (normal(2, 4, 8),)),
    "Embedding": (layers.Embedding(5, 8), (TOKENS,)),
    "LayerNorm": (NORM, (normal(2, 4, 8),)),
    "RMSNorm": (layers.RMSNorm(8, epsilon=1e-6), (normal(2, 4, 8),)),
    **{
        f"MLP, {activation}": (layers.MLP(8, 12, activation=activation), (normal(2, 4, 8),))
        for activation in ("relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu", "clipped_swiglu")
    },
    "MixtureOfExperts": (
        layers.MixtureOfExperts(8, 12, num_experts=4, top_k=2, activation="swiglu", shared=None),
        (normal(2, 4, 8),),
    ),
    "EncoderBlock": (BLOCK, (normal(2, 4, 8),)),
    "Encoder": (layers.Encoder(MODERN, 2, final_norm=layers.RMSNorm(8, epsilon=1e-6)), (normal(2, 4, 8),)),
    "Decoder": (
        layers.Decoder(layers.DecoderBlock.preset("torch", 8, 2, 12), 2),
        (normal(2, 4, 8), normal(2, 5, 8, seed=1)),
    ),
    "LanguageModel": (
        layers.LanguageModel(layers.Embedding(5, 8), layers.Encoder(MODERN, 2)),
        (TOKENS,),
    ),
}

Q, K, V = normal(2, 4, 6, 8, seed=1), normal(2, 2, 6, 8, seed=2), normal(2, 2, 6, 4, seed=3)
K4, V4 = normal(2, 4, 6, 8, seed=2), normal(2, 4, 6, 4, seed=3)
DECAY, BETA = -np.abs(normal(2, 2, 6, 1, seed=4)), 1 / (1 + np.abs(normal(2, 2, 6, 1, seed=5)))
CHOSEN = np.random.default_rng(0).integers(-1, 6, (2, 2, 6, 3)).astype(np.int32)
SEEN = np.arange(35).reshape(7, 5) % 3 > 0
LENGTHS = np.array([4, 6], np.int32)


def _attention(*names: str, **options: Any) -> Callable[..., Any]:
    """attention of (q, k, v, *the arrays of those names)."""
    return lambda q, k, v, *more: attention(q, k, v, **dict(zip(names, more, strict=True)), **options)


#: a function, and its arrays
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{
        f"attention, {name}": (_attention(normalizer=name), (Q, K, V))
        for name in ("softmax", "sigmoid", "softpick", "sparsemax", "entmax15")
    },
    "attention, bias and sinks and scale": (
        _attention("bias", "sinks", "scale", is_causal=True),
        (Q, K, V, normal(2, 1, 6, 6, seed=6), normal(4, seed=7), np.abs(normal(4, seed=8))),
    ),
    "attention, dropout": (_attention(dropout_rate=0.3, dropout_seed=5), (Q, K, V)),
    "attention, layout": (
        lambda q, k, v: attention(q, k, v, layout="BLHD"),
        tuple(np.swapaxes(x, 1, 2) for x in (Q, K, V)),
    ),
    "attention, lengths": (
        lambda q, k, v, n: attention(q, k, v, mask=masks.key_lengths(n) & masks.causal()),
        (Q, K, V, LENGTHS),
    ),
    "attention, a bool mask": (_attention("mask"), (Q, K, V, normal(2, 1, 6, 6, seed=9) > 0)),
    "attention, a row that sees nothing": (_attention("mask"), (Q, K, V, np.arange(36).reshape(6, 6) > 8)),
    "attention, alibi and a cap": (
        lambda q, k, v, s: attention(q, k, v, score_mod=mods.compose(mods.alibi(s), mods.softcap(2.0))),
        (Q, K, V, np.abs(normal(4, seed=8))),
    ),
    "attention, a function that holds an array": (
        lambda q, k, v, s: attention(q, k, v, score_mod=lambda score, b, h, i, j: score * s + score**2),
        (Q, K, V, normal(seed=8)),
    ),
    "linear_attention": (lambda *x: linear.linear_attention(*x), (Q, K, V)),
    "linear_attention, decay": (
        lambda q, k, v, g: linear.linear_attention(q, k, v, decay=g, chunk_size=4),
        (Q, K, V, DECAY),
    ),
    "linear_attention, decay per entry": (
        lambda q, k, v, g: linear.linear_attention(q, k, v, decay=g, chunk_size=4),
        (Q, K, V, -np.abs(K)),
    ),
    **{
        f"linear_attention, delta, {n} at once": (
            lambda q, k, v, g, b, s, n=n: linear.linear_attention(
                linear.l2norm(q), linear.l2norm(k), v, decay=g, beta=b, state=s, chunk_size=n
            ),
            (Q, K, V, DECAY, BETA, normal(2, 2, 8, 4, seed=6)),
        )
        for n in (1, 4)
    },
    "additive_attention": (additive_attention, (Q, K4, V4, normal(8, seed=4))),
    "differential_attention": (
        lambda q, k, v, lam: differential.differential_attention(q, k, v, lam=lam),
        (Q, K4, V4, normal(4, seed=4)),
    ),
    "latent_attention": (
        latent.latent_attention,
        (normal(2, 4, 6, 5), normal(2, 1, 6, 5, seed=1), normal(3, 4, 3, seed=2), normal(3, 4, 2, seed=3)),
    ),
    "moba_attention": (lambda q, k, v: moba_attention(q, k, v, block_size=2, count=2), (Q, K, V)),
    "talking_heads_attention": (
        lambda q, k, v, a, b: talking_heads_attention(q, k, v, a, b, is_causal=True),
        (Q, K4, V4, normal(4, 4), normal(4, 4, seed=1)),
    ),
    "multi_token_attention": (
        lambda q, k, v, w: multi_token_attention(q, k, v, w, is_causal=True),
        (Q, K4, V4, normal(4, 2, 3)),
    ),
    "causal_convolution": (
        convolution.causal_convolution,
        (normal(2, 6, 8), normal(3, 8, seed=1), normal(8, seed=2)),
    ),
    "selected_attention": (selected_attention, (Q, K, V, CHOSEN)),
    "rotate": (rotate, (Q, normal(6, 4, seed=1), normal(6, 4, seed=2))),
    "drop": (lambda x: drop(x, 0.3, 7), (normal(2, 6, 8),)),
}


def called(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    layer, inputs = LAYERS[name]
    return layer, (drawn(layer, seed=1), *inputs)


def cast(tree: Any, xp: Any, dtype: str) -> Any:
    """Arrays, in dicts and tuples, of that library, and real ones of that dtype."""
    if isinstance(tree, dict):
        return {name: cast(x, xp, dtype) for name, x in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(cast(x, xp, dtype) for x in tree)
    return xp.asarray(tree.astype(dtype) if tree.dtype.kind == "f" else tree)


@cache
def by_jax(name: str) -> tuple[Any, Any, Any, Any]:
    """The result in float64, a gradient for it, what JAX makes of that, and how far off JAX is in float32.

    None for integers and masks. How far: the largest error, for each array that comes out, of eight gradients; at least
    a rounding.
    """
    f, arrays = called(name)
    moving = [i for i, x in enumerate(arrays) if isinstance(x, dict) or x.dtype.kind == "f"]
    rng = np.random.default_rng(3)

    def moved(arrays: Any, *some: Any) -> Any:
        every = list(arrays)
        for i, x in zip(moving, some, strict=True):
            every[i] = x
        return f(*every)

    @jax.jit
    def derived(arrays: Any, d: Any) -> Any:
        there, back = jax.vjp(partial(moved, arrays), *(arrays[i] for i in moving))
        found = iter(back(d))
        return there, [next(found) if i in moving else None for i in range(len(arrays))]

    with jax.enable_x64(True):
        given = {dtype: cast(arrays, jnp, dtype) for dtype in ("float64", "float32")}
        shapes = jax.eval_shape(f, *given["float64"])
        several = [
            jax.tree.map(lambda x: rng.choice([-1.0, -0.5, 0.5, 1.0], size=x.shape), shapes) for _ in range(8)
        ]
        true, rounded = (
            [jax.tree.map(np.asarray, derived(given[dtype], cast(d, jnp, dtype))) for d in several]
            for dtype in given
        )
    far = [jax.tree.map(_far, x, y) for x, y in zip(rounded, true, strict=True)]
    (there, theirs), d = true[0], several[0]
    return there, d, theirs, jax.tree.map(lambda *each: max(each), *far)


def _far(rounded: Any, true: Any) -> float:
    """The largest error of a result in float32, at least that of one rounding."""
    largest = UNIT_ROUNDOFF["float32"] * np.abs(true).max(initial=0)
    return float(max(np.abs(rounded - true).max(initial=0), largest))


def assert_those_of_jax(name: str, library: Any, dtype: str) -> None:
    """Output and gradients against JAX's own in float64, within what the roundings of this dtype explain."""
    there, d, theirs, far = by_jax(name)
    f, arrays = called(name)
    out, pullback = vjp(f, *cast(arrays, library, dtype))
    pairs = [*_pairs(out, there), *_pairs(pullback(cast(d, library, dtype)), theirs)]
    for (x, y), unit in zip(pairs, jax.tree.leaves(far), strict=True):
        assert tuple(x.shape) == y.shape
        room = ACCEPTANCE * unit * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
        assert np.abs(np.asarray(x) - y).max(initial=0) <= room


def _pairs(ours: Any, theirs: Any) -> list[tuple[Any, Any]]:
    if theirs is None:
        assert ours is None
        return []
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        return [pair for name in theirs for pair in _pairs(ours[name], theirs[name])]
    if isinstance(theirs, list | tuple):
        return [pair for x, y in zip(ours, theirs, strict=True) for pair in _pairs(x, y)]
    return [(ours, theirs)]


RUNS = pytest.mark.parametrize(
    ("library", "dtype"), [(np, "float64"), (np, "float32"), (strict, "float64")], ids=["64", "32", "strict"]
)


@RUNS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradients_of_a_mechanism_are_those_of_jax(name: str, library: Any, dtype: str) -> None:
    assert_those_of_jax(name, library, dtype)


@RUNS
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradients_of_a_layer_are_those_of_jax(name: str, library: Any, dtype: str) -> None:
    assert_those_of_jax(name, library, dtype)


def test_every_layer_is_tried() -> None:
    from layers.test_table import ROWS  # type: ignore[import-not-found]

    tried = {type(part) for layer, _ in LAYERS.values() for part in layer.parts()}
    tried |= {type(part) for row in ROWS for part in row.layer.parts()}
    public = {x for name in layers.__all__ if isinstance(x := getattr(layers, name), type)}
    public = {x for x in public if issubclass(x, layers.Layer)}
    assert public - tried <= {layers.Layer, layers.AttentionLayer, layers.RecurrentLayer}


def test_dropout_and_options_that_are_arrays() -> None:
    layer = layers.MultiHeadAttention(8, 2, dropout_rate=0.5)
    params, x, bias = drawn(layer), normal(2, 4, 8), normal(2, 2, 4, 4, seed=1)
    out, pullback = layers.vjp(layer, params, x, bias=bias, dropout_seed=3)
    d_params, d_x, d_options = pullback(out)
    assert d_options.keys() == {"bias"}

    def f(params: Any, x: Any, bias: Any) -> Any:
        return layer(params, x, bias=bias, dropout_seed=3)

    with jax.enable_x64(True):
        there, back = jax.vjp(f, *jax.tree.map(jnp.asarray, (params, x, bias)))
        theirs = back(there)
    for ours, true in _pairs((d_params, d_x, d_options["bias"]), theirs):
        assert np.abs(ours - np.asarray(true)).max() <= 256 * UNIT_ROUNDOFF["float64"] * np.abs(d_x).max()


@pytest.mark.parametrize("rows", [7, 2])
def test_additive_attention_has_its_derivative_in_tiles(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, weight = (
        normal(2, 3, 7, 4),
        normal(2, 1, 5, 4, seed=1),
        normal(2, 1, 5, 6, seed=2),
        normal(4, seed=3),
    )
    bias = normal(1, 3, 7, 5, seed=4)
    monkeypatch.setattr(additive, "TILE", rows * 2 * 3 * 5 * 4)
    out, pullback = additive_attention_vjp(q, k, v, weight, bias=bias, mask=SEEN)
    found = pullback(out)
    assert list(found) == ["query", "key", "value", "weight", "bias"]

    def f(*x: Any) -> Any:
        return additive_attention(*x[:4], bias=x[4], mask=SEEN)

    assert np.array_equal(out, f(q, k, v, weight, bias))
    step = np.longdouble(np.finfo(np.longdouble).eps) ** (1 / np.longdouble(3))
    given: list[Floats] = [q, k, v, weight, bias]
    for i, gradient in enumerate(found.values()):
        along = normal(*given[i].shape, seed=5)

        def quotient(h: Any, i: int = i, along: Floats = along) -> Any:
            up, down = (
                f(
                    *(
                        x.astype(np.longdouble) + (sign * h * along if j == i else 0)
                        for j, x in enumerate(given)
                    )
                )
                for sign in (1, -1)
            )
            return np.sum((up - down) * out) / (2 * h)

        near, far = quotient(step), quotient(2 * step)
        room = abs(far - near) + 64 * UNIT_ROUNDOFF["float64"] * np.sum(np.abs(gradient * along))
        assert abs(np.sum(gradient * along) - near) <= room < 1e-6
