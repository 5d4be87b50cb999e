"""The conformance suite has teeth: each deliberate bug is caught by `check_backend`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn import AttentionAux, attention
from polyattn.implementations.reference import allowed_at, dropout_at
from polyattn.normalizers import SOFTMAX
from polyattn.problem import pose
from polyattn.testing import Disagreement, NumpyBench, check_backend


def naive(**bug: Any) -> Callable[..., Any]:
    """Attention in textbook NumPy; the keyword arguments spoil it in one place."""

    def run(query: Any, key: Any, value: Any, *, return_aux: Any = None, **options: Any) -> Any:
        options = {**options, **bug.get("options", {})}
        p = pose("polyattn.attention", query, key, value, **options)
        at = p.positions()
        q, k, v = (np.broadcast_to(x, (p.frame.batch, *x.shape[1:])).astype(float) for x in (p.q, p.k, p.v))
        if not k.shape[1] or p.normalizer != SOFTMAX:  # which is what the textbook has
            return attention(query, key, value, return_aux=return_aux, **options)
        spread = bug.get("spread", lambda x, group: np.repeat(x, group, axis=1))
        group = q.shape[1] // k.shape[1]
        allowed = np.broadcast_to(
            True if (found := allowed_at(p.mask, at, p.bias)) is None else found, (*q.shape[:3], k.shape[2])
        )
        allowed = bug.get("allowed", lambda allowed: allowed)(allowed)
        if not bug.get("poisoned"):
            seen = allowed.any(2).reshape(q.shape[0], k.shape[1], group, -1).any(2)[..., None]
            k, v = np.where(seen, k, 0), np.where(seen, v, 0)
        k, v = spread(k, group), spread(v, group)
        s = q @ k.mT * bug.get("scale", lambda scale: scale)(p.scale)
        steps = [
            lambda s: s if p.score_mod is None else p.score_mod(s, at.b, at.h, at.q, at.kv),
            lambda s: s if p.bias is None else s + p.bias,
            lambda s: np.where(allowed, s, bug.get("hidden", -np.inf)),
        ]
        for i in bug.get("order", (0, 1, 2)):
            s = steps[i](s)
        top = s.max(-1, keepdims=True, initial=-np.inf) if bug.get("shift", True) else np.zeros((1, 1, 1, 1))
        sinks = -np.inf if p.sinks is None else np.asarray(p.sinks, float)
        if bug.get("sinks_ignored"):
            sinks = -np.inf
        top = np.maximum(top, sinks)
        top = np.where(np.isfinite(top), top, 0)
        w = bug.get("exp", np.exp)(s - top)
        over_keys = w.sum(bug.get("axis", -1), keepdims=True)
        total = over_keys + np.exp(sinks - top) + bug.get("epsilon", 0.0)
        w = w / np.where(total == 0, 1, total)
        keep = dropout_at(p, at)
        if keep is not None:
            w = bug.get("drop", lambda w, keep: w * keep)(w, keep)
        out = w @ v
        counted = total if bug.get("lse_with_sink") else over_keys
        if "axis" in bug:  # no lse to speak of
            return p.axes.leave(out.astype(query.dtype), width=True), AttentionAux(
                lse=p.axes.leave(np.zeros(q.shape[:3]), width=False)
            )
        lse = (bug.get("log", np.log)(np.where(counted == 0, 1, counted)) + top)[..., 0]
        lse = np.where(counted[..., 0] == 0, -np.inf, lse)
        return p.axes.leave(out.astype(query.dtype), width=True), AttentionAux(
            lse=p.axes.leave(lse, width=False)
        )

    return run


def tiled(x: Any, group: int) -> Any:
    return np.tile(x, (1, group, 1, 1))


MUTANTS: dict[str, dict[str, Any]] = {
    "scale forgotten": {"scale": lambda scale: 1.0},
    "scale applied twice": {"scale": lambda scale: scale**2},
    "scale of the wrong width": {"scale": lambda scale: scale * (8 / 9) ** 0.5},
    "mask inverted": {"allowed": lambda allowed: ~allowed},
    "mask ignored": {"allowed": lambda allowed: np.ones_like(allowed)},
    "mask transposed": {"allowed": lambda a: a.mT if a.shape[-1] == a.shape[-2] else a},
    "window off by one": {"allowed": lambda a: a & ~np.roll(~a, 1, axis=-1)},
    "last key dropped": {"allowed": lambda a: a & (np.arange(a.shape[-1]) < a.shape[-1] - 1)},
    "mask only for the first head": {"allowed": lambda a: a | (np.arange(a.shape[1]) > 0)[:, None, None]},
    "softcap after the mask": {"order": (2, 0, 1)},
    "bias before the softcap": {"order": (1, 0, 2)},
    "hidden scores of -10": {"hidden": -10.0},
    "hidden scores of -1e9": {"hidden": -1e9},
    "kv heads tiled": {"spread": tiled},
    "softmax over the queries": {"axis": -2},
    "epsilon in the denominator": {"epsilon": 1e-6},
    "one added to the denominator": {"epsilon": 1.0},
    "base two": {"exp": np.exp2},
    "lse in base two": {"log": np.log2},
    "lse with the sink": {"lse_with_sink": True},
    "sinks ignored": {"sinks_ignored": True},
    "dropout unscaled": {"drop": lambda w, keep: w * (keep > 0)},
    "dropout ignored": {"drop": lambda w, keep: w},
    "dropout renormalised": {"drop": lambda w, keep: w * keep / (w * keep).sum(-1, keepdims=True)},
    "poison multiplied by zero": {"poisoned": True},
    "exp in low precision": {"exp": lambda x: np.exp(x) * (1 + 1e-5 * np.cos(x * 50))},
    "weights in half precision": {"exp": lambda x: np.exp(x).astype(np.float16).astype(float)},
}


def test_the_unspoiled_textbook_passes() -> None:
    assert (
        max(outcome.eta for outcome in check_backend(NumpyBench(), dtypes=["float32"], attention=naive()))
        <= 4
    )


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_mutant_is_caught(bug: str) -> None:
    with pytest.raises(Disagreement) as caught:
        check_backend(NumpyBench(), dtypes=["float32"], attention=naive(**MUTANTS[bug]))
    assert all(outcome.error is None for outcome in caught.value.outcomes), caught.value


def test_a_maximum_that_is_not_subtracted_is_caught() -> None:
    def overflowing(*arrays: Any, **options: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return naive(shift=False, exp=lambda x: np.exp(x.astype(np.float32)))(*arrays, **options)

    with pytest.raises(Disagreement):
        check_backend(NumpyBench(), dtypes=["float32"], attention=overflowing)


def test_a_crash_is_an_outcome_and_not_the_end() -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")

    with pytest.raises(Disagreement, match="RuntimeError: out of order"):
        check_backend(NumpyBench(), dtypes=["float32"], attention=crash)
