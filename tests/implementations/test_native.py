"""Kernels of the libraries: exact where they run, refused with a reason where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract.test_random_problems import samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared.libraries import JaxBench, TorchBench, polyattn_torch, torch

from polyattn import AuxRequest, Blockwise, attention, layers, masks, mods
from polyattn.parity import ACCEPTANCE, FLOOR_ACCEPTANCE, Spec, eta, floor_ratio, round_to
from polyattn.parity.case import Case
from polyattn.testing import Bench, NumpyBench, check_backend, judge
from polyattn.truth import truth

REFUSAL = "expected a problem that a kernel of the library computes exactly for implementation='native'"


def native_or_refused(*arrays: Any, return_aux: Any = None, **options: Any) -> Any:
    """out from the kernel, unless it refuses with a reason; lse from the definition."""
    _, aux = attention(*arrays, **options, return_aux=return_aux, implementation="reference")
    try:
        return attention(*arrays, **options, implementation="native"), aux
    except ValueError as refusal:
        if REFUSAL not in str(refusal):
            raise
        return attention(*arrays, **options, return_aux=return_aux, implementation="reference")


@pytest.mark.rule("rule-20", "rule-21")
def test_kernels_of_torch_agree_on_every_case_and_dtype() -> None:
    check_backend(TorchBench(), attention=native_or_refused)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "examples"), [(TorchBench, 200), (NumpyBench, 200), (JaxBench, 12)])
def test_all_implementations_agree_on_random_problems(make: Any, examples: int) -> None:
    bench: Bench = make()

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def agree(data: st.DataObject) -> None:
        dtype, sample = data.draw(samples(("float32",)))
        tile = Blockwise(*data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
        case = Case("random", "all", lambda d: sample)

        def blockwise(*arrays: Any, **options: Any) -> Any:
            return attention(*arrays, **options, implementation=tile)

        for way in (attention, blockwise, *([native_or_refused] if bench.name == "torch" else [])):
            outcome = judge(bench, case, sample, dtype, way)
            assert outcome.agrees, outcome

    agree()


@pytest.mark.parametrize(
    "mask",
    [
        masks.causal(),
        masks.sliding_window(40),
        masks.window(30, 50),
        masks.chunked(100),
        masks.dilated(7) & masks.causal(),
        masks.causal() | masks.prefix(33),
        ~masks.window(200, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [0, "end", -150])
def test_query_tiles_with_their_own_keys_are_the_definition(mask: Any, offset: Any) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(1, 4, 300, 8)),
        rng.normal(size=(1, 2, 390, 8)),
        rng.normal(size=(1, 2, 390, 5)),
    )
    at = 90 if offset == "end" else offset
    allowed = mask.dense(300, 390, query_offset=at)[None, None]
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = attention(*tensors, mask=mask, query_offset=offset, implementation="native")
    cotangent = rng.normal(size=out.shape)
    judged = truth(Spec(q, k, v, allowed=allowed), cotangent)
    gradients = torch.autograd.grad(out, tensors, torch.tensor(cotangent))
    assert eta(out.detach().numpy(), judged["out"], "float64") <= 4
    for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        assert eta(gradient.numpy(), judged[name], "float64") <= 4, name


def test_sinks_rescale_the_kernel_by_its_lse() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 4, 50, 8))
    sinks = np.array([-np.inf, 0.0, 3.0, 40.0])
    with torch.no_grad():
        out, aux = attention(
            *(torch.tensor(x) for x in (q, k, v)),
            is_causal=True,
            sinks=torch.tensor(sinks),
            return_aux=AuxRequest(),
        )
    assert aux.implementation == "native"
    spec = Spec(q, k, v, allowed=np.tril(np.ones((50, 50), bool))[None, None], sinks=sinks)
    assert eta(out.numpy(), truth(spec)["out"], "float64") <= 4


@pytest.mark.rule("rule-13", "rule-20")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout_rate": 0.1, "dropout_seed": 0}, "with dropout, which none of them takes"),
        ({"scale": torch.ones(2)}, "with a scale that is an array, which none of them takes"),
        ({"score_mod": mods.softcap(2.0), "query_offset": torch.tensor(0)}, "with a score_mod, which none of them takes"),
        ({"sinks": torch.zeros(2), "bias": torch.zeros(3, 3)}, "where scaled_dot_product_attention does not take a sink; the flash kernel of the CPU does not take a bias"),
    ],
)  # fmt: skip
def test_torch_refuses_with_a_reason(options: dict[str, Any], reason: str) -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, **options, implementation="native")
    assert str(caught.value) == f"polyattn.attention: {REFUSAL}, got one {reason}; use 'auto'"


def test_numpy_and_jax_on_the_cpu_refuse_with_a_reason() -> None:
    import jax

    for x, reason in (
        (np.zeros((2, 2)), "numpy has no attention kernel"),
        (
            jax.numpy.zeros((2, 2)),
            "there is no GPU, and on other devices jax.nn.dot_product_attention is no fused kernel",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            attention(x, x, x, implementation="native")
        assert str(caught.value) == f"polyattn.attention: {REFUSAL}, got one where {reason}; use 'auto'"


@pytest.mark.rule("rule-13", "rule-20")
def test_a_library_without_a_fused_kernel_says_so() -> None:
    x = np.zeros((2, 2))
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, implementation="fused")
    assert str(caught.value) == (
        "polyattn.attention: expected a problem that a fused kernel computes exactly for implementation='fused', got "
        "one where numpy has no fused kernel; use 'auto'"
    )


AUTOCAST: dict[str, Any] = {
    "plain": {},
    "window": {"mask": masks.sliding_window(64), "implementation": "native"},
    "blockwise": {"mask": masks.sliding_window(64), "implementation": "blockwise"},
    "reference": {"is_causal": True, "implementation": "reference"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_does_not_reach_into_attention(name: str, dtype: str) -> None:
    bench, options = TorchBench(), AUTOCAST[name]
    q, k, v = (round_to(x, "bfloat16") for x in np.random.default_rng(0).normal(size=(3, 1, 2, 200, 16)))
    given = [bench.array(x, dtype).requires_grad_() for x in (4 * q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*given, **options)
    gradients = torch.autograd.grad(out, given, torch.ones_like(out))  # as PyTorch wants it: outside
    allowed = np.ones((200, 200), bool) if name == "plain" else np.tri(200, dtype=bool)
    if "mask" in options:
        allowed &= ~np.tri(200, k=-64, dtype=bool)
    judged = truth(Spec(4 * q, k, v, allowed=allowed[None, None]), np.ones(q.shape))
    assert str(out.dtype) == f"torch.{dtype}"
    for quantity, x in zip(("out", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True):
        assert eta(bench.numpy(x), judged[quantity], dtype) <= ACCEPTANCE


def test_a_module_under_autocast_computes_in_the_dtype_of_its_parameters() -> None:
    module = polyattn_torch.Module(layers.MultiHeadAttention(32, 4))
    x = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside, of_half = module(x), module(x.bfloat16())
    assert (inside == module(x)).all()
    assert (of_half == module(x.bfloat16().float())).all()


@pytest.mark.rule("rule-21")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 4, 3, 6, 8), (1, 2, 260, 260, 16)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "bias", "window", "func"])
def test_gradients_of_half_precision_are_as_good_as_rounded_ones(
    kind: str, shape: tuple[int, ...], dtype: str
) -> None:
    batch, heads, rows, keys, width = shape
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (
        round_to(size * rng.normal(size=(batch, heads, n, width)), dtype)
        for size, n in ((4, rows), (4, keys), (1, keys), (1, rows))
    )
    bias = round_to(rng.normal(size=(1, 1, rows, keys)), dtype)
    bench, lower = TorchBench(), np.tri(rows, keys, dtype=bool)
    options: dict[str, Any] = {
        "causal": {"is_causal": True, "query_offset": 0},
        "mask": {"mask": bench.array(lower)},
        "bias": {"bias": bench.array(bias, dtype)},
        "window": {"mask": masks.window(None, 0), "query_offset": 0},
    }.get(kind, {})
    leaves = [bench.array(x, dtype).requires_grad_(kind != "func") for x in (q, k, v)]

    def f(*qkv: Any) -> Any:
        return attention(*qkv, **options, implementation="native")

    if kind == "func":
        gradients = torch.func.vjp(f, *leaves)[1](bench.array(cotangent, dtype))
    else:
        gradients = torch.autograd.grad(f(*leaves), leaves, bench.array(cotangent, dtype))
    allowed = lower if kind in ("causal", "mask", "window") else np.ones_like(lower)
    spec = Spec(q, k, v, allowed=allowed[None, None], bias=bias if kind == "bias" else None)
    judged = truth(spec, cotangent)
    for name, x in zip(("dq", "dk", "dv"), gradients, strict=True):
        assert str(x.dtype) == f"torch.{dtype}"
        assert floor_ratio(bench.numpy(x), judged[name], dtype) <= FLOOR_ACCEPTANCE, name


@pytest.mark.gpu
def test_kernels_on_cuda_agree_with_the_definition() -> None:
    assert torch.cuda.is_available(), "the GPU tests were asked for and there is no GPU"
    check_backend(TorchBench(device="cuda"), attention=native_or_refused)
