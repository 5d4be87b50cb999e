"""On an NVIDIA GPU: every implementation of JAX and of PyTorch there, small, in decoding and over long texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from shared.libraries import JaxBench, TorchBench, jax, torch

from polyattn import AuxRequest, attention
from polyattn.parity import ACCEPTANCE, eta, round_to
from polyattn.parity.case import Case, Draw, Sample
from polyattn.testing import Bench, check_backend
from polyattn.truth import Spec, truth
from polyattn.truth.definition import Judged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.rule("rule-20"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
    ),  # of torch.compile
]

NAMES = ("reference", "blockwise", "fused", "native")
HALVES = ("float16", "bfloat16")
LONG, LAST = 8192, 16


def bench_on_gpu(library: str) -> Bench:
    if library == "torch":
        assert torch.cuda.is_available(), "the GPU tests were asked for and PyTorch sees no GPU"
        made: Bench = TorchBench(device="cuda")
    else:
        assert jax.default_backend() == "gpu", "the GPU tests were asked for and JAX sees no GPU"
        made = JaxBench()
    return made


def asked_for(name: str) -> tuple[Callable[..., Any], list[str]]:
    """attention by the implementation of that name, where it accepts, else by the definition; and what ran."""
    ran: list[str] = []
    refusal = f"computes exactly for implementation={name!r}"

    def on_trial(*arrays: Any, return_aux: Any = None, **options: Any) -> Any:
        """lse by the definition, since not every kernel has it."""
        _, aux = attention(*arrays, **options, return_aux=AuxRequest(lse=True), implementation="reference")
        try:
            out = attention(*arrays, **options, implementation=name)
        except ValueError as error:
            if refusal not in str(error):
                raise
            out = attention(*arrays, **options, implementation="reference")
        else:
            ran.append(name)
        return out, aux

    return on_trial, ran


@pytest.mark.slow
@pytest.mark.parametrize("library", ["jax", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_every_case_agrees_with_gradients(library: str, name: str) -> None:
    bench = bench_on_gpu(library)
    on_trial, ran = asked_for(name)
    check_backend(bench, attention=on_trial)
    assert ran, f"nothing was computed by {name}"


@pytest.mark.parametrize("library", ["jax", "torch"])
@pytest.mark.parametrize("name", ["blockwise", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5])
def test_decoding_beside_a_long_cache_agrees(library: str, name: str, dtype: str, rows: int) -> None:
    """Thirty-two heads over eight; the last rows of 4099 tokens."""

    def draw(d: Draw) -> Sample:
        keys = 4099
        allowed = np.arange(keys) <= np.arange(keys - rows, keys)[:, None]
        spec = Spec(**d.qkv(2, 32, 8, rows, keys, 128, 128), allowed=allowed[None, None])
        return Sample(spec, {"is_causal": True, "query_offset": "end"})

    def on_trial(*arrays: Any, **options: Any) -> Any:
        return attention(*arrays, **options, implementation=name)

    check_backend(
        bench_on_gpu(library), dtypes=[dtype], only=[Case("decoding", (), draw)], attention=on_trial
    )


@cache
def long_text(dtype: str) -> tuple[dict[str, Any], Any, dict[str, Judged]]:
    """q, k, v of 8192 tokens; a cotangent of the last rows alone; what is true of these rows, and of all keys."""
    rng = np.random.default_rng(0)
    arrays = {name: round_to(rng.normal(size=(1, 2, LONG, 64)), dtype) for name in ("query", "key", "value")}
    cotangent = np.zeros((1, 2, LONG, 64))
    cotangent[:, :, -LAST:] = rng.choice([-1.0, 1.0], size=(1, 2, LAST, 64))
    q, k, v = arrays.values()
    allowed = np.arange(LONG) <= np.arange(LONG - LAST, LONG)[:, None]
    spec = Spec(q[:, :, -LAST:], k, v, allowed=allowed[None, None])
    return arrays, cotangent, truth(spec, cotangent[:, :, -LAST:])


LONG_TEXTS = [
    (library, name, dtype)
    for library in ("jax", "torch")
    for name in ("blockwise", "fused", "native")
    for dtype in ("bfloat16", "float32")
    if (library, name, dtype) != ("jax", "native", "float32")  # cuDNN has halves
]


@pytest.mark.parametrize(("library", "name", "dtype"), LONG_TEXTS)
def test_causal_attention_over_8192_tokens_agrees_with_gradients(library: str, name: str, dtype: str) -> None:
    bench = bench_on_gpu(library)
    arrays, cotangent, judged = long_text(dtype)

    def f(given: Any) -> Any:
        out = attention(**given, is_causal=True, implementation=name)
        return out, out[..., 0]  # a bench wants two results

    given = {n: bench.array(x, dtype) for n, x in arrays.items()}
    out, _, gradients = bench.run(f, given, bench.array(cotangent, dtype))
    assert gradients is not None
    found = {"out": bench.numpy(out)[:, :, -LAST:], "dq": bench.numpy(gradients["query"])[:, :, -LAST:]}
    found |= {"dk": bench.numpy(gradients["key"]), "dv": bench.numpy(gradients["value"])}
    assert {what: eta(x, judged[what], dtype) <= ACCEPTANCE for what, x in found.items()} == dict.fromkeys(
        found, True
    )
    assert not bench.numpy(gradients["query"])[:, :, :-LAST].any()


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_auto_takes_a_kernel_over_a_long_text(library: str) -> None:
    bench = bench_on_gpu(library)
    arrays, _, _ = long_text("bfloat16")
    given = {n: bench.array(x, "bfloat16") for n, x in arrays.items()}
    _, aux = attention(**given, is_causal=True, return_aux=AuxRequest())
    assert aux.implementation in ("native", "fused")
    _, aux = attention(
        **given, is_causal=True, sinks=bench.array(np.zeros(2), "float32"), return_aux=AuxRequest()
    )
    assert aux.implementation == "fused"
