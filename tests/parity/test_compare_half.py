"""Half precision in `compare`: kernels agree, eager programs agree with what they round named, mistakes do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from polyattn import attention
from polyattn.parity import Comparison, compare, comparing
from polyattn.truth import ACCEPTANCE

HALF = ("bfloat16", "float16")
RNG = np.random.default_rng(0)
Q = 3 * RNG.normal(size=(1, 4, 48, 32)).astype(np.float32)
K, V = RNG.normal(size=(2, 1, 4, 48, 32)).astype(np.float32)
INPUTS = {"query": Q, "key": K, "value": V}


def eager(mistake: float = 1.0) -> Callable[..., Any]:
    """As models of transformers with attn_implementation="eager": scores are stored in the dtype of the query."""

    def f(q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.mT * (mistake * q.shape[-1] ** -0.5)
        return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v

    return f


@dataclass(frozen=True)
class Said:
    """What is read of a finding."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Rightly:
    """What is read of a diagnosis: of an output that is right but for what a right program rounds."""

    findings: tuple[Said, ...]
    agrees: bool = True


def compared(f: Callable[..., Any], dtype: str) -> Comparison:
    return compare(
        f,
        lambda q, k, v: attention(q, k, v),
        INPUTS,
        on=("torch", "torch"),
        dtype=dtype,
        names=("eager", "ours"),
    )


def rounding(dtype: str) -> Callable[..., Rightly]:
    return lambda *args, **options: Rightly((Said((f"scores rounded to {dtype}",)),))


@pytest.mark.parametrize("dtype", HALF)
def test_what_an_eager_program_rounds_is_named_and_agrees(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "diagnose", rounding(dtype))
    found = compared(eager(), dtype)
    assert found.agrees, str(found)
    assert found.sides[0].allowed == (f"scores rounded to {dtype}",)
    assert found.verdict.startswith("AGREE: eager and ours are the definition of attention (worst eta ")
    assert found.verdict.endswith(f"; eager with scores rounded to {dtype}")
    assert max(found.between.values()) <= 2 * ACCEPTANCE
    assert found.to_json()["sides"][0]["allowed"] == [f"scores rounded to {dtype}"]


@pytest.mark.parametrize("dtype", HALF)
def test_a_rounding_excuses_nothing_else(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an output that is further off, nor a gradient."""
    monkeypatch.setattr(comparing, "diagnose", rounding(dtype))
    for wrong in (
        eager(1.5),
        lambda q, k, v: eager()(q, k, v.detach()),
        lambda q, k, v: eager()(q.detach(), k, v),
    ):
        found = compared(wrong, dtype)
        assert not found.agrees
        assert found.verdict == "DISAGREE: ours computes what was meant, eager does not"


@pytest.mark.parametrize("dtype", HALF)
def test_a_kernel_needs_no_such_excuse(dtype: str) -> None:
    found = compared(torch.nn.functional.scaled_dot_product_attention, dtype)
    assert found.agrees
    assert [side.allowed for side in found.sides] == [(), ()]
