"""The ATen operations of a FlexAttention mod are those of torch, and what has no counterpart is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interop.test_flex import numbers
from interop.test_from_flex import (
    X,
    Y,
    Z,
    a_causal,
    a_prefix,
    ends,
    one_document,
    prefixes,
    relative,
    small,
    starts,
    table,
)
from polyattn_torch.aten import OPERATIONS
from polyattn_torch.flex import from_flex
from polyattn_torch.program import Program
from torch.nn.attention.flex_attention import create_block_mask

from polyattn import attention
from polyattn.parity import ACCEPTANCE, Judged, eta
from polyattn.testing import JaxBench, NumpyBench, StrictBench, TorchBench

Floats = np.ndarray[Any, Any]

# Operations

OPS: dict[str, Callable[..., Any]] = {
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s))(getattr(torch, name))
        for name in (
            *("tanh", "exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "atan", "asinh", "sigmoid"),
            *("abs", "sign", "floor", "ceil", "round", "trunc", "erf", "relu", "neg", "square", "reciprocal"),
            *("isnan", "isinf", "isfinite", "clone", "logical_not"),
        )
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s.abs() + 1.25))(getattr(torch, name))
        for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "acosh")
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(torch.tanh(s) / 2))(getattr(torch, name))
        for name in ("asin", "acos", "atanh")
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(s, q - kv))(getattr(torch, name))
        for name in (
            *("atan2", "hypot", "maximum", "minimum", "add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge"),
            *("logical_and", "logical_or", "logical_xor"),
        )
    },
    **{
        name: (lambda f: lambda s, b, h, q, kv: f(q - 2, kv + 1))(getattr(torch, name))
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "fmod", "remainder", "floor_divide")
    },
    "softplus": lambda s, b, h, q, kv: torch.nn.functional.softplus(s),
    "silu": lambda s, b, h, q, kv: torch.nn.functional.silu(s),
    "masked fill": lambda s, b, h, q, kv: s.masked_fill(q < kv, -0.1),
    "beyond the dtype": lambda s, b, h, q, kv: (small[kv] * -1 + (small[q] > -1) + (small[q] < 300)) * (q * 2654435761 >> 3),
    "negative powers": lambda s, b, h, q, kv: s + (q - 2) ** (kv - 3) + 2 ** (-(h + 1)) + (-1) ** (kv - q),
    "shift left": lambda s, b, h, q, kv: (q << kv) + torch.bitwise_left_shift(kv, 2),
    "shift right": lambda s, b, h, q, kv: (q >> 1) + torch.bitwise_right_shift(kv, q),
    "invert": lambda s, b, h, q, kv: s + ~q + ~(q < kv),
    "powers": lambda s, b, h, q, kv: s**2 + 2.0**s + s.abs() ** kv + 2**q,
    "alpha": lambda s, b, h, q, kv: torch.add(s, q, alpha=3) - torch.sub(kv, q, alpha=2),
    "from the left": lambda s, b, h, q, kv: 1 - s + 1 / (1 + s.abs()) + 2 * (3 - kv),
    "whole division": lambda s, b, h, q, kv: torch.div(q - 2, kv + 1, rounding_mode="trunc") + s // 0.75,
    "rest of division": lambda s, b, h, q, kv: torch.fmod(s, 0.75) + s % 0.75 + (q - kv) % 3,
    "true division": lambda s, b, h, q, kv: (q - kv) / 4 + torch.true_divide(q, 1 << kv),
    "clamp": lambda s, b, h, q, kv: s.clamp(max=0.5) + s.clamp(min=q - kv) + torch.clamp(kv, 1, 2),
    "casts": lambda s, b, h, q, kv: s.int() + s.long() + q.float() / 4 + (q - kv).bool() + s.to(torch.int16),
    "bools": lambda s, b, h, q, kv: s + ((q < kv) + (q > 1)) * ((kv < 2) ^ (q == kv)),
    "in place": lambda s, b, h, q, kv: s.mul_(2).add_(q).clamp_(-1, 1),
    "as another": lambda s, b, h, q, kv: s + torch.ones_like(s) + torch.full_like(q, 3) + s.new_zeros(()),
    "as the score": lambda s, b, h, q, kv: s.to(s.dtype) + q.to(s.dtype) + s.detach(),
    "where": lambda s, b, h, q, kv: torch.where(q > kv, torch.where(s > 0, s, 0.1), q),
    "lookups": lambda s, b, h, q, kv: s + relative[0][kv] + relative[1, q + starts[1]] + starts[-1] * table[b, h][q][kv],
    "sum": lambda s, b, h, q, kv: (starts * q).sum() + ((starts < kv) & (ends > q)).sum(),
    "extremes": lambda s, b, h, q, kv: (starts * (q - kv)).amax() + (ends - s).amin(dim=0),
    "all and any": lambda s, b, h, q, kv: (ends > q).all() & (starts > kv).any(dim=-1),
    "axes": lambda s, b, h, q, kv: (relative[:, :3] * s + starts * q).sum(dim=1, keepdim=True).amax(dim=(0, 1)),
    "rows": lambda s, b, h, q, kv: (relative[h] * s).amax(0) + (relative[starts // 5] + q)[starts // 6][h - 1].amax(),
    "a number": lambda s, b, h, q, kv: 2 * starts[1],
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_that_of_torch(name: str) -> None:
    mod = OPS[name]
    scores = numbers(2, 3, 4, 5)
    value = np.zeros(scores.shape, np.longdouble)
    for place in np.ndindex(scores.shape):
        index = [torch.tensor(i, dtype=torch.int32) for i in place]
        value[place] = mod(torch.tensor(scores[place]), *index).item()
    for bench in (NumpyBench(), StrictBench(), JaxBench(jit=False), TorchBench()):
        dtype = "float32" if bench.name == "jax" else "float64"
        index = [
            bench.array(np.arange(n, dtype=np.int32).reshape(-1, *(1,) * (3 - i)))
            for i, n in enumerate(scores.shape)
        ]
        given = [bench.array(scores, dtype), *index]
        ours = bench.numpy(from_flex(mod)(*given))
        assert eta(ours, Judged(value, 1 + np.abs(value)), dtype) <= ACCEPTANCE, bench.name


def test_every_operation_is_on_trial() -> None:
    given = [torch.zeros((), dtype=torch.float64), *(torch.zeros((), dtype=torch.int32) for _ in range(4))]
    programs = [Program(mod, given, "") for mod in OPS.values()]
    assert {step.name for p in programs for step in p.steps if step.varies and step.name} == set(OPERATIONS)


# Refusals

WHO = "polyattn_torch.flex.from_flex: expected "
ONLY = "elementwise operations, reductions and lookups in captured tensors, got "


def of_three(b, h, q_idx, kv_idx=0):  # type: ignore[no-untyped-def]
    return q_idx >= 0


def branching(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score if q_idx >= kv_idx else -score


def sorting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.cumsum(relative[h] * score, 0)[kv_idx]


def drawing(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score * (torch.rand(()) < 0.5)


def overwriting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + prefixes.mul_(1)[b]


def unfinished(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + relative[h]


def inner_slices(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + (relative + score)[:, starts // 6].amax()


@pytest.mark.parametrize(
    ("mod", "error", "sentence"),
    [
        (np.ones(3), TypeError, "a score_mod (score, b, h, q_idx, kv_idx), a mask_mod (b, h, q_idx, kv_idx) or a BlockMask, got ndarray, which cannot be called; an array goes to masks.from_array or bias="),
        (of_three, TypeError, "a score_mod (score, b, h, q_idx, kv_idx), a mask_mod (b, h, q_idx, kv_idx) or a BlockMask, got of_three of 3 arguments; those with defaults do not count"),
        (lambda *given: given[0], TypeError, "a mod with named parameters, score_mod (score, b, h, q_idx, kv_idx) or mask_mod (b, h, q_idx, kv_idx), got <lambda> with *given; name them, as their number tells which of the two it is"),
        (lambda score, b, h, q_idx, kv_idx: 0.5, TypeError, "a score_mod to return an array made from score, got float from <lambda>; write a number as torch.full_like(score, number)"),
        (branching, TypeError, "one computation for all scores, got branching, which asks for the value of a tensor (if, while, int(), item()); write torch.where, and read captured tensors outside of it"),
        (sorting, NotImplementedError, ONLY + "cumsum in sorting: that has no counterpart here; compute it outside, or write it otherwise"),
        (drawing, NotImplementedError, ONLY + "rand in drawing: other libraries draw other numbers; capture a tensor of them"),
        (overwriting, NotImplementedError, ONLY + "mul_ in overwriting: it changes a tensor in place that others may hold; write it without"),
        (unfinished, ValueError, "one value for every score, got an array of shape (31,) from unfinished; look up all of its axes, or reduce them"),
    ],
)  # fmt: skip
def test_what_cannot_come_here_is_refused_with_a_sentence(mod: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        from_flex(mod)
    assert str(caught.value) == WHO + sentence


def test_a_lookup_behind_a_slice_is_refused_with_a_sentence() -> None:
    with pytest.raises(NotImplementedError) as caught:
        attention(X, Y, Z, score_mod=from_flex(inner_slices))
    assert str(caught.value) == (
        WHO
        + "a lookup whose index tensors stand in front, got slices before an index of 1 axes; write the axes in "
        "another order"
    )


def test_a_part_of_a_block_mask_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        from_flex(create_block_mask(one_document, 2, None, 16, 16, device="cpu")[0])
    assert str(caught.value).startswith(
        WHO + "a BlockMask whose mask_mod can be called, got one where it says: "
    )
    assert str(caught.value).endswith("; give the whole BlockMask, not a part of it")


def test_a_block_mask_of_another_size_than_the_scores_is_refused() -> None:
    mask = from_flex(create_block_mask(a_prefix, 2, None, 16, 16, device="cpu"))
    with pytest.raises(ValueError) as caught:
        attention(*(np.zeros((3, 1, 20, 4)),) * 3, mask=mask)
    assert str(caught.value) == (
        "polyattn.attention: expected a BlockMask for scores (B, Hq, L, S) = (3, 1, 20, 20), got one of shape "
        "(2, 1, 16, 16); make it with create_block_mask for these lengths"
    )


def test_attention_says_where_a_block_mask_goes() -> None:
    with pytest.raises(TypeError) as caught:
        attention(X, Y, Z, mask=create_block_mask(a_causal, None, None, 16, 16, device="cpu"))
    assert str(caught.value) == (
        "polyattn.attention: expected mask to be a bool array, a polyattn.masks mask or a function (b, h, q_idx, "
        "kv_idx) -> bool, got BlockMask; polyattn_torch.flex.from_flex makes a mask of it"
    )
