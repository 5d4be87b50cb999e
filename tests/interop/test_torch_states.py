"""Whatever PyTorch may hand over or have switched on: autocast, tracers, nested and sparse tensors, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from polyattn import AuxRequest, attention, attention_vjp, masks, trace
from polyattn.truth import Spec, truth
from polyattn.truth.measure import FLOOR_ACCEPTANCE, floor_ratio, round_to

SDPA = torch.nn.functional.scaled_dot_product_attention
X = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 4, 3)))


# second derivatives

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "causal": {"is_causal": True},
    "window": {"mask": masks.window(1, 1)},
    "bias": {"bias": X[..., :1].clone().requires_grad_()},
    "blockwise": {"implementation": "blockwise"},
}


@pytest.mark.rule("rule-15", "rule-25")
@pytest.mark.parametrize("how", WAYS)
def test_a_second_derivative_is_right_or_a_sentence_and_never_left_out(how: str) -> None:
    leaves = [X.clone().requires_grad_() for _ in range(3)]
    (first,) = torch.autograd.grad(attention(*leaves, **WAYS[how]).sum(), leaves[1], create_graph=True)
    with pytest.raises(
        NotImplementedError, match="got the derivative of a gradient; use implementation='reference'"
    ):
        (leaves[1].sum() + (first**2).sum()).backward()
    options = {**WAYS[how], "implementation": "reference"}
    assert torch.autograd.gradgradcheck(lambda *qkv: attention(*qkv, **options), leaves)


@pytest.mark.parametrize("how", WAYS)
def test_a_bias_alone_that_is_derived_twice_is_a_sentence(how: str) -> None:
    bias = torch.zeros(1, 2, 4, 4, dtype=X.dtype, requires_grad=True)
    options = {name: x for name, x in WAYS[how].items() if name != "bias"}
    (first,) = torch.autograd.grad(
        attention(X, X, X, bias=bias, **options)[0, 0, 0, 0], bias, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="expected one derivative of a kernel"):
        (first**2).sum().backward()


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_the_gradient_of_max_scores_goes_to_the_largest_scores_in_equal_parts(library: str) -> None:
    q, k = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [4.0], [4.0]])
    options: dict[str, Any] = {
        "scale": 1.0,
        "return_aux": AuxRequest(max_scores=True),
        "mask": ~masks.query_lengths(1),
    }

    def largest(q: Any, k: Any) -> Any:
        _, aux = attention(q, k, k, **options)
        return aux.max_scores[..., 1:].sum()

    if library == "torch":
        leaves = [torch.tensor(x, requires_grad=True) for x in (q, k)]
        found = torch.autograd.grad(largest(*leaves), leaves)
    else:
        import jax

        with jax.enable_x64(True):
            found = jax.grad(largest, (0, 1))(*map(jax.numpy.asarray, (q, k)))
    for x, expected in zip(found, ([[0], [4], [4]], [[0], [2.5], [2.5]]), strict=True):
        assert np.array_equal(np.asarray(x), expected)


# autocast


@pytest.mark.rule("rule-9")
@pytest.mark.parametrize("way", ["auto", "reference", "blockwise", "native"])
def test_autocast_brings_mixed_halves_together_as_it_does_for_sdpa(way: Any) -> None:
    q, k, v = (round_to(x, "bfloat16") for x in np.random.default_rng(0).normal(size=(3, 1, 2, 6, 8)))
    given = [
        torch.tensor(x).to(d).requires_grad_()
        for x, d in zip((q, k, v), (torch.bfloat16, torch.float32, torch.float16), strict=True)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = SDPA(*given), attention(*given, implementation=way)
        other, pullback = attention_vjp(*(x.detach() for x in given))
        stages = trace(*(x.detach() for x in given))
    assert out.dtype == expected.dtype == other.dtype == stages.out.dtype == torch.bfloat16
    judged = truth(Spec(q, k, v))["out"]
    assert floor_ratio(out.detach().double().numpy(), judged, "bfloat16") <= FLOOR_ACCEPTANCE
    gradients = torch.autograd.grad(out.sum(), given)
    again = pullback(torch.ones_like(other))
    for x, g, h in zip(given, gradients, again.values(), strict=True):
        assert g.dtype == h.dtype == x.dtype


def test_mixed_dtypes_stay_refused_outside_of_autocast_and_beside_float64() -> None:
    half, single, double = X.bfloat16(), X.float(), X
    with pytest.raises(TypeError, match="expected query, key and value of one dtype"):
        attention(half, single, single)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="of one dtype"):
        attention(double, single, single)


# tracers


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("how", ["auto", "causal", "window"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_torchscript_traces_a_call(how: str, kv_heads: int) -> None:
    given = (X, X[:, :kv_heads] + 1, X[:, :kv_heads] - 1)

    def f(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, **WAYS[how])

    traced = torch.jit.trace(f, given, check_trace=False)
    others = tuple(2 * x for x in given)
    assert torch.equal(traced(*others), f(*others))


def test_a_proxy_of_fx_is_a_sentence() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return attention(x, x, x, is_causal=True)

    with pytest.raises(TypeError) as caught:
        torch.fx.symbolic_trace(Model())
    assert str(caught.value) == (
        "polyattn.attention: expected query to be a tensor, got a Proxy of torch.fx.symbolic_trace; trace with "
        "torch.export or torch.compile, or keep the call whole, torch.fx.wrap of a function that makes it"
    )


# tensors that are no rectangles

JAGGED = torch.nested.nested_tensor([torch.rand(n, 2, 8) for n in (3, 5)], layout=torch.jagged).transpose(
    1, 2
)
OTHER: dict[str, Callable[[], Any]] = {
    "mask": lambda: attention(JAGGED, JAGGED, JAGGED, mask=masks.window(1, 1)),
    "causal": lambda: attention(JAGGED, JAGGED, JAGGED, is_causal=True),
    "array": lambda: attention(JAGGED, JAGGED, JAGGED, mask=torch.ones(3, 3, dtype=torch.bool)),
    "bias": lambda: attention(X, X, X, bias=JAGGED),
    "strided": lambda: attention(*[torch.nested.nested_tensor([X[0], X[0, :, :2]])] * 3),
}


@pytest.mark.rule("rule-13")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("how", OTHER)
def test_nested_tensors_beside_anything_else_are_a_sentence(how: str) -> None:
    with pytest.raises(TypeError) as caught:
        OTHER[how]()
    name = "bias" if how == "bias" else "query"
    assert str(caught.value) == (
        f"polyattn.attention: expected {name} to be a tensor with one length for all items (nested ones of layout "
        "torch.jagged go to PyTorch's kernel, where no other argument is given), got a nested tensor; pad it, "
        "torch.nested.to_padded_tensor, and say masks.key_lengths(lengths), or lay the items end to end and say "
        "masks.segments(ids)"
    )


def test_plain_jagged_tensors_go_to_the_kernel_and_nowhere_else() -> None:
    with torch.no_grad():
        out, expected = attention(JAGGED, JAGGED, JAGGED), SDPA(JAGGED, JAGGED, JAGGED)
    for x, y in zip(out.unbind(), expected.unbind(), strict=True):
        assert torch.equal(x, y)
    for way in ("reference", "blockwise"):
        with pytest.raises(ValueError, match="the lengths of a nested tensor are no numbers"):
            attention(JAGGED, JAGGED, JAGGED, implementation=way)


def test_a_sparse_tensor_is_a_sentence() -> None:
    with pytest.raises(
        TypeError, match=r"expected query to be a dense tensor, got one of layout torch.sparse_coo; call"
    ):
        attention(X.to_sparse(), X, X)
