"""`diagnose` in half precision: right programs agree, causes are named beside their roundings, and nobody is accused falsely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyattn import mods
from polyattn.parity import Diagnosis, diagnose
from polyattn.rotary import Rotary

DTYPES = (torch.bfloat16, torch.float16)
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(dtype: torch.dtype, amplitude: float, width: int = 64, seed: int = 1) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 4, 40, width, generator=generator) for _ in range(3))
    return (amplitude * q).to(dtype), k.to(dtype), v.to(dtype)


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """Attention as eager programs write it: every step of the scores is stored."""
    s = (q @ k.mT) * how.get("scale", q.shape[-1] ** -0.5)
    if (cap := how.get("cap")) is not None:
        s = torch.tanh(s / cap) * cap
    if (bias := how.get("bias")) is not None:
        s = s + bias
    if how.get("causal", True):
        s = s.masked_fill(~torch.ones(s.shape[2:], dtype=torch.bool).tril(), -torch.inf)
    return torch.softmax(s, -1, dtype=torch.float32).to(q.dtype) @ v


def sentences(d: Diagnosis) -> tuple[str, ...]:
    assert d.rounded is not None, d
    return d.rounded.sentences


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 80])
def test_scores_that_are_rounded_are_right(dtype: torch.dtype, width: int) -> None:
    q, k, v = drawn(dtype, 4.0, width)
    bias = torch.randn(4, 40, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    rounded = (f"scores rounded to {NAMES[dtype]}",)
    d = diagnose(eager(q, k, v), q, k, v, is_causal=True)
    assert d.agrees
    assert sentences(d) == rounded
    assert d.stated > 4 > d.rounded.eta  # type: ignore[union-attr]
    assert str(d).startswith(f"agrees; scores rounded to {NAMES[dtype]} (eta ")
    assert "; as stated: eta " in str(d)
    assert "This is what was meant." in d._repr_html_()
    capped = diagnose(eager(q, k, v, cap=5.0), q, k, v, is_causal=True, score_mod=mods.softcap(5.0))
    assert sentences(capped) == rounded
    assert sentences(diagnose(eager(q, k, v, bias=bias), q, k, v, is_causal=True, bias=bias)) == rounded
    # The scale may be taken into the query, or half of it into each.
    early = eager(q * width**-0.5, k, v, scale=1.0)
    assert diagnose(early, q, k, v, is_causal=True).agrees
    halves = eager(q * width**-0.25, k * width**-0.25, v, scale=1.0)
    assert diagnose(halves, q, k, v, is_causal=True).agrees


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_turned_may_be_rounded(dtype: torch.dtype) -> None:
    q, k, v = drawn(dtype, 4.0)
    rotary, at, name = Rotary(), torch.arange(40), NAMES[dtype]
    turned = rotary(q, at), rotary(k, at)
    meant: dict[str, Any] = {"is_causal": True, "rotary": rotary}
    fused = torch.nn.functional.scaled_dot_product_attention(*turned, v, is_causal=True)
    stored = f"query and key rounded to {name} after rotary"
    assert sentences(diagnose(fused, q, k, v, **meant)) == (stored,)
    assert sentences(diagnose(eager(*turned, v), q, k, v, **meant)) == (stored, f"scores rounded to {name}")
    late = eager(rotary(q, at + 1), turned[1], v)
    d = diagnose(late, q, k, v, **meant)
    assert not d.agrees
    assert d.findings[0].sentences[0] == "rotary positions of the queries off by one"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cause_is_named_beside_the_roundings_of_a_right_program(dtype: torch.dtype) -> None:
    q, k, v = drawn(dtype, 4.0)
    d = diagnose(eager(q, k, v, causal=False), q, k, v, is_causal=True)
    assert not d.agrees
    assert d.findings[0].sentences == ("causal mask ignored", f"scores rounded to {NAMES[dtype]}")
    assert d.findings[0].eta < 4


UNKNOWN = {
    "a smooth change": lambda out, rng: out * (1 + 0.05 * torch.sin(torch.arange(out.shape[2]) / 7.0))[:, None],
    "a smooth addition": lambda out, rng: out + 0.02 * torch.cos(torch.arange(out.shape[3]) / 3.0),
    "noise": lambda out, rng: out * (1 + 0.05 * torch.tensor(rng.normal(size=out.shape))),
    "another output": lambda out, rng: torch.tensor(rng.normal(size=out.shape)) * out.std(),
    "entries permuted": lambda out, rng: out[..., torch.tensor(rng.permutation(out.shape[3]))],
    "two rows exchanged": lambda out, rng: torch.cat((out[:, :, 10:11], out[:, :, 1:10], out[:, :, :1], out[:, :, 11:]), 2),
}  # fmt: skip


def wrong_weights(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    w = torch.softmax((q @ k.mT) / 8, -1)
    w = w * torch.exp(0.2 * torch.tensor(rng.normal(size=w.shape)))
    return (w / w.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*UNKNOWN, "random weights"])
def test_what_nobody_knows_has_no_name(
    dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Numbers that are fitted may explain a smooth change rightly; here listed causes are judged.
    monkeypatch.setattr("polyattn.parity.diagnosis.fitted.fits", lambda call, seen, settings: iter(()))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        q, k, v = (x.double() for x in drawn(dtype, 1.5, 16, seed))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        wrong = wrong_weights(q, k, v, rng) if name == "random weights" else UNKNOWN[name](out, rng)
        d = diagnose(wrong.to(dtype), *(x.to(dtype) for x in (q, k, v)))
        assert not d.agrees
        assert d.findings == (), d
        assert d.profile is not None
