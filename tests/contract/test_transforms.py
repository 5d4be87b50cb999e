"""jit, grad, vmap, compile and autograd work on `attention` itself, and say the same in JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, Blockwise, attention, masks, mods
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to
from polyattn.truth import truth


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float32")


def qkv(rows: int = 5, keys: int = 5, heads: int = 4) -> tuple[np.ndarray, ...]:
    return draw(2, heads, rows, 8, seed=1), draw(2, 2, keys, 8, seed=2), draw(2, 2, keys, 3, seed=3)


def close(out: Any, spec: Spec, dtype: str = "float32", name: str = "out", cotangent: Any = None) -> bool:
    return eta(np.asarray(out), truth(spec, cotangent)[name], dtype) <= ACCEPTANCE


LOWER = np.tri(5, dtype=bool)[None, None]
IDS = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]], np.int32)
N = np.array([2, 5], np.int32)

# Every kind of mask: a library's conversion of NumPy arrays -> mask, and the same as a literal.
MASKS: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "array": (lambda a: a(LOWER), LOWER),
    "causal": (lambda a: masks.causal(), LOWER),
    "sliding window": (lambda a: masks.sliding_window(2), LOWER & ~np.tri(5, k=-2, dtype=bool)),
    "lengths": (lambda a: masks.key_lengths(a(N)), (np.arange(5) < N[:, None])[:, None, None]),
    "segments": (lambda a: masks.segments(a(IDS)), (IDS[:, :, None] == IDS[:, None])[:, None]),
    "key ranges": (
        lambda a: masks.key_ranges(a(np.stack([np.arange(5) // 2] * 2)), a(np.arange(5) + 1)),
        np.broadcast_to(LOWER & (np.arange(5) >= np.arange(5)[:, None] // 2), (2, 1, 5, 5)),
    ),
    "combined": (
        lambda a: masks.prefix(a(N)) | ~masks.causal(),
        ~LOWER | (np.arange(5) < N[:, None])[:, None, None],
    ),
    "function": (lambda a: lambda b, h, q, kv: kv <= q, LOWER),
}

# PyTorch itself, on the first use of forward mode or of its default compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

OPERANDS = list(product([True, False], repeat=4))[:-1]


@pytest.mark.rule("rule-15")
@pytest.mark.parametrize(
    "mapped", OPERANDS, ids=lambda m: "".join("qkvb"[i] if x else "-" for i, x in enumerate(m))
)
@pytest.mark.parametrize("library", ["jax", "torch"])
def test_vmap_over_any_operands_equals_a_python_loop(library: str, mapped: tuple[bool, ...]) -> None:
    whole = draw(3, 4, 5, 8), draw(3, 2, 5, 8), draw(3, 2, 5, 3), draw(3, 1, 5, 5)
    given = [x if m else x[0] for x, m in zip(whole, mapped, strict=True)]
    axes = tuple(0 if m else None for m in mapped)

    def f(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return attention(q, k, v, bias=bias, is_causal=True)

    if library == "jax":
        out = jax.vmap(f, in_axes=axes)(*map(jnp.asarray, given))
    else:
        out = torch.func.vmap(f, in_dims=axes)(*map(torch.tensor, map(np.float32, given)))
    for i in range(3):
        q, k, v, bias = (x[i : i + 1] if m else x[:1] for x, m in zip(whole, mapped, strict=True))
        assert close(np.asarray(out)[i : i + 1], Spec(q, k, v, bias=bias, allowed=LOWER))


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_vmapped_lengths_equal_a_python_loop(library: str) -> None:
    (q, k, v), lengths = qkv(), np.array([3, 0], np.int32)

    def f(q: Any, k: Any, v: Any, n: Any) -> Any:
        return attention(q, k, v, mask=masks.key_lengths(n))

    if library == "jax":
        out = jax.vmap(f)(*map(jnp.asarray, (q, k, v, lengths)))
    else:
        out = torch.func.vmap(f)(*map(torch.tensor, (*map(np.float32, (q, k, v)), lengths)))
    allowed = (np.arange(5) < lengths[:, None])[:, None, None]
    assert close(out, Spec(q, k, v, allowed=allowed))


@pytest.mark.rule("rule-15")
def test_offset_lengths_scale_and_cap_may_be_traced_under_jit() -> None:
    q, k, v = qkv(rows=3)

    @jax.jit
    def f(q: Any, k: Any, v: Any, offset: Any, n: Any, scale: Any, cap: Any) -> Any:
        mask, mod = masks.key_lengths(n) & masks.window(3, 0), mods.softcap(cap)
        return attention(q, k, v, mask=mask, score_mod=mod, query_offset=offset, scale=scale)

    for offset, n in [(0, [5, 2]), (2, [4, 0]), (-2, [1, 3])]:
        at, kv = np.arange(3)[:, None] + offset, np.arange(5)
        allowed = (at - 3 <= kv) & (kv <= at) & (kv < np.array(n)[:, None, None, None])
        out = f(q, k, v, offset, jnp.array(n), 0.25, 2.0)
        assert close(out, Spec(q, k, v, allowed=allowed, scale=0.25, softcap=2.0))
    assert f._cache_size() == 1


def test_offsets_per_item_may_be_traced_under_jit() -> None:
    q, k, v = qkv(rows=3)
    f = jax.jit(lambda q, k, v, offset: attention(q, k, v, is_causal=True, query_offset=offset))
    offset = np.array([2, -1], np.int32)
    allowed = np.arange(5) <= (np.arange(3) + offset[:, None])[:, None, :, None]
    assert close(f(q, k, v, offset), Spec(q, k, v, allowed=allowed))


@pytest.mark.rule("rule-15")
@pytest.mark.parametrize("kind", MASKS)
def test_jit_and_compile_keep_every_kind_of_mask(kind: str) -> None:
    (make, allowed), (q, k, v) = MASKS[kind], qkv()
    f = jax.jit(lambda q, k, v: attention(q, k, v, mask=make(jnp.asarray)))
    assert close(f(*map(jnp.asarray, (q, k, v))), Spec(q, k, v, allowed=allowed))
    torch.compiler.reset()
    mask = make(torch.tensor)
    g = torch.compile(lambda q, k, v: attention(q, k, v, mask=mask), fullgraph=True, backend="aot_eager")
    out = g(*(torch.tensor(x, dtype=torch.float32) for x in (q, k, v)))
    assert close(out, Spec(q, k, v, allowed=allowed))


@pytest.mark.slow
def test_the_default_compiler_of_torch_keeps_everything() -> None:
    (q, k, v), sinks, bias = qkv(), draw(4), draw(1, 4, 5, 5)
    torch.compiler.reset()
    lengths = torch.tensor(N)

    def f(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
        mask = masks.key_lengths(lengths) & masks.causal()
        return attention(q, k, v, mask=mask, bias=bias, sinks=sinks, score_mod=mods.softcap(2.0))

    given = [torch.tensor(x, dtype=torch.float32) for x in (q, k, v, bias, sinks)]
    out = torch.compile(f, fullgraph=True)(*given)
    allowed = LOWER & (np.arange(5) < N[:, None])[:, None, None]
    assert close(out, Spec(q, k, v, allowed=allowed, bias=bias, sinks=sinks, softcap=2.0))


def _scalar(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
    out = attention(q, k, v, bias=bias, sinks=sinks, is_causal=True, score_mod=mods.softcap(2.0))
    return (out**3).sum()


def _both(
    of_jax: Callable[..., Any], of_torch: Callable[..., Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    given = draw(1, 2, 3, 2), draw(1, 1, 3, 2), draw(1, 1, 3, 2), draw(1, 1, 3, 3), draw(2)
    with jax.enable_x64(True):
        a = jax.tree.leaves(jax.jit(of_jax)(*map(jnp.asarray, given)))
        assert a[0].dtype == np.float64
    b = jax.tree.leaves(of_torch(*map(torch.tensor, given)))
    return [np.asarray(x) for x in a], [np.asarray(x.detach()) for x in b]


# Sums of at most a few hundred products of numbers near 1: the two libraries differ by rounding alone.
def _agree(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    size = max(np.abs(x).max() for x in a)
    return all(np.abs(x - y).max() <= 256 * 2.0**-53 * size for x, y in zip(a, b, strict=True))


@pytest.mark.rule("rule-15", "rule-25")
@pytest.mark.parametrize("what", ["grad", "jvp", "hessian", "jacrev of grad", "jacfwd"])
def test_derivatives_of_every_order_agree_between_jax_and_torch(what: str) -> None:
    every = tuple(range(5))

    def derive(grad: Any, jvp: Any, hessian: Any, jacrev: Any, jacfwd: Any) -> Callable[..., Any]:
        return {
            "grad": lambda *x: grad(_scalar, every)(*x),
            "jvp": lambda *x: jvp(_scalar, x, tuple(1 + 0 * y for y in x)),
            "hessian": lambda *x: hessian(_scalar, every)(*x),
            "jacrev of grad": lambda *x: jacrev(grad(_scalar, 1), every)(*x),
            "jacfwd": lambda *x: jacfwd(_scalar, every)(*x),
        }[what]

    of_jax = derive(jax.grad, jax.jvp, jax.hessian, jax.jacrev, jax.jacfwd)
    f = torch.func
    a, b = _both(of_jax, derive(f.grad, f.jvp, f.hessian, f.jacrev, f.jacfwd))
    assert len(a) == len(b)
    assert all(np.isfinite(x).all() for x in a)
    assert _agree(a, b)


@pytest.mark.rule("rule-25")
@pytest.mark.parametrize(
    "what", ["jvp", "linearize", "jacfwd", "hessian", "vmap of jvp", "jvp of jvp", "remat"]
)
def test_the_engine_on_jax_goes_through_forward_mode(what: str) -> None:
    given = draw(1, 2, 3, 2), draw(1, 1, 3, 2), draw(1, 1, 3, 2), draw(1, 1, 3, 3), draw(2)

    def derived(way: Any) -> list[np.ndarray]:
        def f(*x: Any) -> Any:
            q, k, v, bias, sinks = x
            mask = masks.query_lengths(jnp.asarray([2]))
            out = attention(
                q,
                k,
                v,
                bias=bias,
                sinks=sinks,
                mask=mask,
                is_causal=True,
                score_mod=mods.softcap(2.0),
                implementation=way,
            )
            return (out**3).sum()

        def tangent(*x: Any) -> Any:
            return jax.jvp(f, x, tuple(1 + 0 * y for y in x))[1]

        with jax.enable_x64(True):
            x = tuple(map(jnp.asarray, given))
            ones = tuple(1 + 0 * y for y in x)
            found = {
                "jvp": lambda: jax.jit(tangent)(*x),
                "linearize": lambda: jax.jit(lambda *x: jax.linearize(f, *x)[1](*ones))(*x),
                "jacfwd": lambda: jax.jit(jax.jacfwd(f, (0, 4)))(*x),
                "hessian": lambda: jax.jit(jax.hessian(f, (1, 4)))(*x),
                "vmap of jvp": lambda: jax.jit(jax.vmap(tangent, (0, None, 0, None, None)))(
                    x[0][None], x[1], x[2][None], *x[3:]
                ),
                "jvp of jvp": lambda: jax.jit(lambda *x: jax.jvp(tangent, x, ones))(*x),
                "remat": lambda: jax.jit(jax.grad(jax.checkpoint(f), (0, 1, 2, 3, 4)))(*x),
            }[what]()
            return [np.asarray(y) for y in jax.tree.leaves(found)]

    expected, found = derived("reference"), derived(Blockwise(rows=2, keys=2))
    assert len(expected) == len(found)
    assert all(np.isfinite(x).all() for x in found)
    assert _agree(expected, found)


@pytest.mark.rule("rule-25")
def test_auto_on_jax_does_not_let_the_size_decide_what_can_be_derived() -> None:
    x = jnp.asarray(draw(1, 2, 520, 4), jnp.float32)

    def f(way: Any, t: Any) -> Any:
        out, aux = attention(t * x, x, x, is_causal=True, implementation=way, return_aux=AuxRequest())
        ran.append(aux.implementation)
        return out.sum()

    def g(t: Any) -> Any:
        mod = lambda s, b, h, q, kv: t * s  # noqa: E731
        out, aux = attention(x, x, x, is_causal=True, score_mod=mod, return_aux=AuxRequest())
        ran.append(aux.implementation)
        return out.sum()

    ran: list[str] = []
    one = (jnp.float32(1),)
    _, forward = jax.jvp(lambda t: f("auto", t), one, one)
    backward, captured = jax.grad(lambda t: f("auto", t))(*one), jax.grad(g)(*one)
    assert ran == ["blockwise", "blockwise", "reference"]  # the engine cannot see what a function captures
    expected = jax.grad(lambda t: f("reference", t))(*one)
    for found in (forward, backward, captured):
        assert abs(found - expected) < 1e-4 * abs(expected)
    with pytest.raises(NotImplementedError, match="use implementation='reference', which has all orders"):
        jax.grad(jax.grad(lambda t: f("auto", t)))(*one)


# Variants for gradcheck: (extra arrays, options, query heads).
SMALL: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], int]] = {
    "plain": ({}, {}, 1),
    "causal": ({}, {"is_causal": True}, 1),
    "softcap": ({}, {"score_mod": mods.softcap(1.5)}, 1),
    "bias": ({"bias": draw(1, 1, 3, 3)}, {}, 1),
    "sinks": ({"sinks": draw(2)}, {}, 2),
    "grouped heads": ({}, {}, 2),
    "a row that sees nothing": ({}, {"mask": ~masks.query_lengths(1)}, 1),
    "a row that sees nothing but a sink": ({"sinks": draw(1)}, {"mask": ~masks.query_lengths(1)}, 1),
}


def _small(name: str, **more: Any) -> tuple[Callable[..., Any], list[np.ndarray]]:
    extra, options, heads = SMALL[name]
    names = ("query", "key", "value", *extra)
    arrays = [
        draw(1, heads, 3, 2, seed=1),
        draw(1, 1, 3, 2, seed=2),
        draw(1, 1, 3, 2, seed=3),
        *extra.values(),
    ]
    return (lambda *x: attention(**dict(zip(names, x, strict=True)), **options, **more)), arrays


@pytest.mark.parametrize("name", SMALL)
def test_torch_gradients_of_first_and_second_order_match_finite_differences(name: str) -> None:
    f, arrays = _small(name)
    given = [torch.tensor(x, requires_grad=True) for x in arrays]
    assert torch.autograd.gradcheck(f, given)
    definition, _ = _small(name, implementation="reference")
    assert torch.autograd.gradcheck(definition, given)
    assert torch.autograd.gradgradcheck(definition, given)


@pytest.mark.parametrize("name", SMALL)
def test_jax_gradients_in_both_modes_match_finite_differences(name: str) -> None:
    f, arrays = _small(name)
    assert max(x.size for x in arrays) <= 16
    with jax.enable_x64(True):
        jax.test_util.check_grads(
            jax.jit(f),
            tuple(map(jnp.asarray, arrays)),
            order=2 if name == "plain" else 1,
            modes=("fwd", "rev"),
        )


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 1, 5, 5), (2, 1, 1, 5), (1, 4, 5, 1), (1, 1, 1, 1)])
def test_bias_may_be_all_that_requires_a_gradient(shape: tuple[int, ...]) -> None:
    (q, k, v), bias = qkv(), draw(*shape)
    cotangent = draw(2, 4, 5, 3, seed=7)
    leaf = torch.tensor(bias, requires_grad=True)
    out = attention(*map(torch.tensor, (q, k, v)), bias=leaf)
    (of_torch,) = torch.autograd.grad(out, leaf, torch.tensor(cotangent))
    with jax.enable_x64(True):
        of_jax = jax.vjp(lambda b: attention(*map(jnp.asarray, (q, k, v)), bias=b), jnp.asarray(bias))[1](
            jnp.asarray(cotangent)
        )[0]
    for grad in (of_torch, of_jax):
        assert close(grad, Spec(q, k, v, bias=bias), "float64", "dbias", cotangent)


@pytest.mark.rule("rule-10")
def test_the_gradient_of_lse_is_the_weighted_mean_of_the_keys_and_zero_where_nothing_is_seen() -> None:
    q, k, v = qkv(heads=2)
    mask = ~masks.query_lengths([2, 0])

    def lse_sum(q: Any, k: Any, v: Any) -> Any:
        _, aux = attention(q, k, v, mask=mask, return_aux=AuxRequest(lse=True))
        seen = aux.lse > -float("inf")
        return aux.lse[seen].sum() if isinstance(q, torch.Tensor) else jnp.where(seen, aux.lse, 0).sum()

    # d lse / dq = sum_j w_j k_j * scale: attention with the keys as values
    allowed = (np.arange(5) >= np.array([[2], [0]]))[:, None, :, None]
    judged = truth(Spec(q, k, k, allowed=allowed))["out"]
    half = judged._replace(value=judged.value / np.sqrt(8), condition=judged.condition / np.sqrt(8))
    leaf = torch.tensor(q, requires_grad=True)
    (of_torch,) = torch.autograd.grad(lse_sum(leaf, torch.tensor(k), torch.tensor(v)), leaf)
    with jax.enable_x64(True):
        of_jax = jax.grad(lse_sum)(*map(jnp.asarray, (q, k, v)))
    for grad in (of_torch, of_jax):
        assert eta(np.asarray(grad), half, "float64") <= ACCEPTANCE
        assert not np.asarray(grad)[0, :, :2].any()


@pytest.mark.parametrize("how", ["strided", "expanded"])
def test_a_cotangent_may_have_any_strides(how: str) -> None:
    q, k, v = qkv()
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    cotangent = torch.tensor(draw(2, 4, 5, 1)).expand(2, 4, 5, 3)
    if how == "strided":
        cotangent = torch.tensor(draw(3, 5, 4, 2)).permute(3, 2, 1, 0)
    grads = torch.autograd.grad(attention(*leaves, is_causal=True), leaves, cotangent)
    assert not cotangent.is_contiguous()
    for grad, name in zip(grads, ("dq", "dk", "dv"), strict=True):
        assert close(grad, Spec(q, k, v, allowed=LOWER), "float64", name, cotangent.numpy())
