"""In float16 and bfloat16 right kernels measure at most 4, and mistakes that a model survives measure more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyattn import attention
from polyattn.truth import ACCEPTANCE, Judged, Spec, eta, round_to, truth
from polyattn.truth.measure import unit_of
from polyattn.truth.tiles import places

HALF = ("bfloat16", "float16")
NAMES = ("out", "dq", "dk", "dv")
SHAPES = [(4, 2, 32, 16, 2.0), (1, 1, 500, 32, 4.0)]  # Hq, Hkv, L = S, D, amplitude
Floats = np.ndarray[Any, Any]


def problem(dtype: str, shape: tuple[int, int, int, int, float], causal: bool = False) -> tuple[Spec, Floats]:
    heads, kv_heads, n, width, amplitude = shape
    rng = np.random.default_rng(n)

    def draw(count: int) -> Floats:
        return round_to(rng.normal(size=(1, count, n, width)), dtype)

    q, k, v = round_to(amplitude * draw(heads), dtype), draw(kv_heads), draw(kv_heads)
    allowed = np.ones((1, 1, n, n), bool)
    spec = Spec(q, k, v, allowed=np.tril(allowed) if causal else allowed)
    return spec, rng.choice([-1.0, -0.5, 0.5, 1.0], size=q.shape)


def in_torch(f: Callable[..., Any], spec: Spec, cotangent: Floats, dtype: str) -> list[Floats]:
    q, k, v, g = (
        torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)
        for x in (spec.q, spec.k, spec.v, cotangent)
    )
    out = f(q, k, v)
    return [x.detach().double().numpy() for x in (out, *torch.autograd.grad(out, (q, k, v), g.detach()))]


def in_jax(f: Callable[..., Any], spec: Spec, cotangent: Floats, dtype: str) -> list[Floats]:
    q, k, v, g = (jnp.asarray(x, dtype) for x in (spec.q, spec.k, spec.v, cotangent))
    out, pullback = jax.vjp(f, q, k, v)
    return [np.asarray(x, np.float64) for x in (out, *pullback(g))]


def sdpa(backend: Any, causal: bool) -> Callable[..., Any]:
    def f(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
            )

    return f


def jax_nn(q: Any, k: Any, v: Any, causal: bool) -> Any:
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=causal), 1, 2)


KERNELS: dict[str, Callable[..., list[Floats]]] = {
    "torch flash": lambda causal, *x: in_torch(sdpa(SDPBackend.FLASH_ATTENTION, causal), *x),
    "torch math": lambda causal, *x: in_torch(sdpa(SDPBackend.MATH, causal), *x),
    "jax.nn": lambda causal, *x: in_jax(lambda q, k, v: jax_nn(q, k, v, causal), *x),
    "blockwise in torch": lambda causal, *x: in_torch(
        lambda q, k, v: attention(q, k, v, is_causal=causal, implementation="blockwise"), *x
    ),
    "reference in jax": lambda causal, *x: in_jax(
        lambda q, k, v: attention(q, k, v, is_causal=causal, implementation="reference"), *x
    ),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", KERNELS)
def test_right_kernels_are_accepted(name: str, dtype: str) -> None:
    for shape, causal in zip(SHAPES, (False, True), strict=True):
        spec, cotangent = problem(dtype, shape, causal)
        judged = truth(spec, cotangent, dtype=dtype)
        found = KERNELS[name](causal, spec, cotangent, dtype)
        for quantity, x in zip(NAMES, found, strict=True):
            assert eta(x, judged[quantity], dtype) <= ACCEPTANCE, (quantity, shape, causal)


Results = dict[str, Judged]


def plus_one(spec: Spec, g: Floats) -> dict[str, Floats]:
    """exp(s) / (1 + sum exp(s)), as with a sink of 0."""
    return values(truth(replace(spec, sinks=np.zeros(spec.q.shape[1])), g, dtype="float32"))


def stale_key(spec: Spec, g: Floats) -> dict[str, Floats]:
    """The last slot of a cache still holds the token before."""
    k, v = (np.concatenate([x[:, :, :-1], x[:, :, -2:-1]], 2) for x in (spec.k, spec.v))
    return values(truth(replace(spec, k=k, v=v), g, dtype="float32"))


def filled(spec: Spec, g: Floats) -> dict[str, Floats]:
    """Hidden scores are -1, not -inf."""
    group = spec.q.shape[1] // spec.k.shape[1]
    scores = (spec.q @ np.repeat(spec.k, group, 1).mT) * spec.q.shape[3] ** -0.5
    shift = np.where(spec.allowed, 0.0, -1.0 - scores)
    return values(truth(replace(spec, allowed=np.ones((1, 1, 1, 1), bool), shift=shift), g, dtype="float32"))


def values(judged: Results) -> dict[str, Floats]:
    return {name: judged[name].value for name in NAMES}


def changed(
    name: str, change: Callable[[Floats, Spec], Floats]
) -> Callable[[Spec, Floats], dict[str, Floats]]:
    def wrong(spec: Spec, g: Floats) -> dict[str, Floats]:
        right = values(truth(spec, g, dtype="float32"))
        return right | {name: change(right[name], spec)}

    return wrong


def delta_forgotten(spec: Spec, g: Floats) -> dict[str, Floats]:
    """dS = P dP, without the row's mean; the weights from the values of an identity."""
    judged, group = truth(spec, g, dtype="float32"), spec.q.shape[1] // spec.k.shape[1]
    keys, k = spec.k.shape[2], np.repeat(spec.k, group, 1)
    eye = np.broadcast_to(np.eye(keys), (*spec.k.shape[:2], keys, keys))
    w = truth(replace(spec, v=eye), dtype="float32")["out"].value
    ds = w * (g @ np.repeat(spec.v, group, 1).mT) * spec.q.shape[3] ** -0.5
    dk = (ds.mT @ spec.q).reshape(*spec.k.shape[:2], group, *spec.k.shape[2:]).sum(2)
    return values(judged) | {"dq": ds @ k, "dk": dk}


def last_key_dropped(x: Floats, spec: Spec) -> Floats:
    return np.concatenate([x[:, :, :-1], np.zeros_like(x[:, :, -1:])], 2)


MISTAKES: dict[str, tuple[Callable[[Spec, Floats], dict[str, Floats]], str]] = {
    "output 11 % too large": (changed("out", lambda x, spec: 1.11 * x), "out"),
    "softmax plus one": (plus_one, "out"),
    "stale last key": (stale_key, "out"),
    "hidden scores filled with -1": (filled, "out"),
    "scale 1/sqrt(D + 1)": (
        lambda spec, g: values(truth(replace(spec, scale=(spec.q.shape[3] + 1) ** -0.5), g, dtype="float32")),
        "out",
    ),
    "dq without scale": (changed("dq", lambda x, spec: x * spec.q.shape[3] ** 0.5), "dq"),
    "dk of the wrong group": (changed("dk", lambda x, spec: x[:, ::-1]), "dk"),
    "delta forgotten, dq": (delta_forgotten, "dq"),
    "delta forgotten, dk": (delta_forgotten, "dk"),
    "dk of the last key dropped": (changed("dk", last_key_dropped), "dk"),
    "dv of the last key dropped": (changed("dv", last_key_dropped), "dv"),
    "dv 11 % too large": (changed("dv", lambda x, spec: 1.11 * x), "dv"),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, dtype: str) -> None:
    """On the smallest of the problems; the right results, rounded once, are accepted there."""
    wrong, quantity = MISTAKES[mistake]
    spec, cotangent = problem(dtype, SHAPES[0], causal=True)
    judged = truth(spec, cotangent, dtype=dtype)[quantity]
    assert eta(round_to(judged.value, dtype), judged, dtype) <= ACCEPTANCE
    assert eta(round_to(wrong(spec, cotangent)[quantity], dtype), judged, dtype) > ACCEPTANCE


def test_float64_is_truth_enough_for_shorter_results() -> None:
    """Tiles or not, long double or not: less than a millionth of what is accepted."""
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(2, 1, 2, 700, 16))
    k, v = rng.normal(size=(2, 1, 1, 400, 16))
    bias, allowed = rng.normal(size=(1, 2, 700, 400)), rng.random((1, 1, 700, 400)) > 0.2
    spec = Spec(q, k, v, allowed=allowed, bias=bias, sinks=rng.normal(size=2), softcap=3.0)
    assert len(list(places(spec.shape))) > 1
    whole = truth(spec, g, see=lambda name, judged: None)
    tiled = truth(spec, g, dtype="float32")
    assert set(whole) == set(tiled) == {*NAMES, "lse", "dbias", "dsinks", "dscale"}
    for name, judged in whole.items():
        assert tiled[name].value.dtype == np.float64
        assert eta(tiled[name].value, judged, "float32") <= ACCEPTANCE * 1e-6, name
        for dtype in ("float32", *HALF):
            unit = unit_of(judged, dtype)
            assert (np.abs(unit_of(tiled[name], dtype) - unit) <= 1e-6 * unit).all(), (name, dtype)
