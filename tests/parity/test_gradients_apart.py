"""A wrong gradient behind a right output is explained by the mistake in the backward pass that gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from polyattn import attention, mods
from polyattn.conventions.call import call_of
from polyattn.parity import compare
from polyattn.parity.gradients_apart import explain_gradients
from polyattn.parity.meaning import meaning_of
from polyattn.rotary import Rotary
from polyattn.truth import round_to

B, HEADS, KV, N, D = 2, 4, 2, 10, 8
GROUP, SCALE, CAP = HEADS // KV, D**-0.5, 2.0
Floats = np.ndarray[Any, Any]


class Pass:
    """The textbook's backward pass of causal attention with a soft cap, in float64."""

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(3)
        self.q = round_to(2 * rng.normal(size=(B, HEADS, N, D)), dtype)
        self.k, self.v = (round_to(rng.normal(size=(B, KV, N, D)), dtype) for _ in range(2))
        self.do = rng.choice([-1.0, -0.5, 0.5, 1.0], size=self.q.shape)
        self.kr, self.vr = (np.repeat(x, GROUP, 1) for x in (self.k, self.v))
        bent = np.tanh(SCALE * self.q @ self.kr.mT / CAP)
        self.allowed = np.tril(np.ones((N, N), bool))
        e = np.exp(CAP * bent)
        total = (e * self.allowed).sum(-1, keepdims=True)
        self.unmasked, self.w, self.slope = e / total, e * self.allowed / total, 1 - bent**2
        self.dp = self.do @ self.vr.mT
        self.delta = (self.w * self.dp).sum(-1, keepdims=True)
        self.ds = self.w * (self.dp - self.delta)

    def dq(self, ds: Floats) -> Floats:
        return SCALE * ds @ self.kr

    def dk(self, ds: Floats) -> Floats:
        return SCALE * self.summed(ds.mT @ self.q)

    def dv(self, w: Floats) -> Floats:
        return self.summed(w.mT @ self.do)

    @staticmethod
    def summed(x: Floats) -> Floats:
        return x.reshape(B, KV, GROUP, N, D).sum(2)

    def each(self, name: str) -> Floats:
        """dk or dv of every query head."""
        return SCALE * (self.slope * self.ds).mT @ self.q if name == "dk" else self.w.mT @ self.do


def of_ones(p: Pass) -> Floats:
    dp = np.ones_like(p.do) @ p.vr.mT
    return p.w * (dp - (p.w * dp).sum(-1, keepdims=True))


Wrong = Callable[[Pass], Floats]
MISTAKES: dict[str, tuple[str, Wrong]] = {
    "is 0: detached, or never written": ("dk", lambda p: 0 * p.k),
    "lacks the scale, 0.3536": ("dq", lambda p: p.dq(p.slope * p.ds) / SCALE),
    "has the scale, 0.3536, twice": ("dk", lambda p: p.dk(p.slope * p.ds) * SCALE),
    "has the wrong sign": ("dq", lambda p: -p.dq(p.slope * p.ds)),
    "is that of the mean of the output, not of the sum": ("dv", lambda p: p.dv(p.w) / p.do.size),
    "is the mean over the query heads of a group, not the sum": ("dv", lambda p: p.dv(p.w) / GROUP),
    "is dv: the two are swapped": ("dk", lambda p: p.dv(p.w)),
    "is dk: the two are swapped": ("dv", lambda p: p.dk(p.slope * p.ds)),
    "is not summed over the query heads that share it": ("dv", lambda p: p.each("dv")),
    "is that of the first query head of each group alone": ("dk", lambda p: p.each("dk")[:, ::GROUP]),
    "is that of the last query head of each group alone": (
        "dv",
        lambda p: p.each("dv")[:, GROUP - 1 :: GROUP],
    ),
    "is summed over query heads h, h + Hkv, ..., which are of different groups": (
        "dk",
        lambda p: p.each("dk").reshape(B, GROUP, KV, N, D).sum(1),
    ),
    "has the kv heads in reverse order": ("dk", lambda p: p.dk(p.slope * p.ds)[:, ::-1]),
    "is made without delta, the row sum of P dP": ("dq", lambda p: p.dq(p.slope * p.w * p.dp)),
    "adds delta, which is to be subtracted": ("dk", lambda p: p.dk(p.slope * p.w * (p.dp + p.delta))),
    "has the mask not applied in the backward pass": (
        "dq",
        lambda p: p.dq(p.slope * p.unmasked * (p.dp - p.delta)),
    ),
    "lacks the derivative of the softmax: dP in place of dS": ("dk", lambda p: p.dk(p.allowed * p.dp)),
    "lacks the derivative of the soft cap": ("dq", lambda p: p.dq(p.ds)),
    "has dS transposed": ("dk", lambda p: p.dk((p.slope * p.ds).mT)),
    "has P transposed": ("dv", lambda p: p.dv(p.w.mT)),
    "has P in place of dS": ("dq", lambda p: p.dq(p.w)),
    "has dS in place of P": ("dv", lambda p: p.dv(p.slope * p.ds)),
    "leaves out the gradient that comes from above": ("dq", lambda p: p.dq(p.slope * of_ones(p))),
    "is 1.5 times what it should be": ("dv", lambda p: 1.5 * p.dv(p.w)),
    "is made without delta, the row sum of P dP, and is 2.828 times that": (
        "dq",
        lambda p: p.dq(p.slope * p.w * p.dp) / SCALE,
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("words", MISTAKES)
def test_the_mistake_is_named(words: str, dtype: str) -> None:
    quantity, wrong = MISTAKES[words]
    p = Pass(dtype)
    meaning = meaning_of(call_of(p.q, p.k, p.v, {"is_causal": True, "score_mod": mods.softcap(CAP)}), dtype)
    judged = meaning.judged(p.do)
    right = {name: round_to(judged[name].value.astype(np.float64), dtype) for name in ("dq", "dk", "dv")}
    assert explain_gradients(meaning, p.do, right, judged) == {}
    values = {**right, quantity: round_to(wrong(p), dtype)}
    assert explain_gradients(meaning, p.do, values, judged) == {quantity: words}


def test_what_no_mistake_explains_is_left_alone() -> None:
    p = Pass("float32")
    meaning = meaning_of(
        call_of(p.q, p.k, p.v, {"is_causal": True, "score_mod": mods.softcap(CAP)}), "float32"
    )
    judged = meaning.judged(p.do)
    values = {
        "dq": np.random.default_rng(0).normal(size=p.q.shape),
        "dk": np.full(p.k.shape, np.nan),
        "dv": np.zeros((1, 2, 3, 4)) + 1.0,
    }
    assert explain_gradients(meaning, p.do, values, judged) == {}


class WithoutDelta(torch.autograd.Function):
    """A kernel whose backward pass forgets the row sums."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        w = torch.softmax(SCALE * q @ k.mT, -1)
        ctx.save_for_backward(q, k, v, w)
        return w @ v

    @staticmethod
    def backward(ctx: Any, do: Any) -> Any:
        q, k, v, w = ctx.saved_tensors
        ds = w * (do @ v.mT)
        return SCALE * ds @ k, SCALE * ds.mT @ q, w.mT @ do


def test_compare_says_it_for_each_gradient() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 12, D)).astype(np.float32)
    found = compare(
        lambda q, k, v: WithoutDelta.apply(q, k, v),
        lambda q, k, v: attention(q, k, v),
        {"query": q, "key": k, "value": v},
        on=("torch", "torch"),
        names=("kernel", "ours"),
    )
    assert found.verdict == "DISAGREE: ours computes what was meant, kernel does not"
    for name in ("dq", "dk"):
        assert f"kernel: {name} is made without delta, the row sum of P dP" in str(found).splitlines()
    assert set(found.to_json()["sides"][0]["gradient_causes"]) == {"dq", "dk"}


def test_behind_a_rotary_too() -> None:
    p = Pass("float32")
    rotary = Rotary()
    call = call_of(p.q, p.k, p.v, {"rotary": rotary, "is_causal": True})
    meaning = meaning_of(call, "float32")
    judged = meaning.judged(p.do)
    values = {"dq": 2.5 * judged["dq"].value, "dk": judged["dk"].value[:, ::-1]}
    assert explain_gradients(meaning, p.do, values, judged) == {
        "dq": "is 2.5 times what it should be",
        "dk": "has the kv heads in reverse order",
    }
