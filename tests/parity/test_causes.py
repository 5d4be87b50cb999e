"""Listed causes, each against a few plain lines of what a program with that mistake computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyattn.conventions.answers import Answers, answer
from polyattn.conventions.call import Call
from polyattn.conventions.causes import CAUSES, ROUNDINGS, Cause, settings_of
from polyattn.conventions.causes.cause import always, say
from polyattn.conventions.settings import CONTRACT
from polyattn.rotary import Rotary
from polyattn.truth import ACCEPTANCE, UNIT_ROUNDOFF, Judged, eta

Floats = np.ndarray[Any, Any]
KNOWN = {(cause.field, cause.choice): cause for cause in CAUSES + ROUNDINGS}


@dataclass
class Plain:
    """A call, with keys and values of the query heads and whatever else a few lines need."""

    call: Call
    q: Floats
    k: Floats
    v: Floats
    scale: float
    hides: Floats  # 0 or -inf, (B|1, H|1, L, S)

    def scores(self, q: Floats | None = None, k: Floats | None = None) -> Floats:
        s: Floats = (self.q if q is None else q) @ (self.k if k is None else k).mT * self.scale
        return s

    def out(self, q: Floats | None = None, k: Floats | None = None, v: Floats | None = None) -> Floats:
        out: Floats = soft(self.scores(q, k) + self.hides) @ (self.v if v is None else v)
        return out


def draw(features: str, seed: int = 0) -> Call:
    """A random call of float32 numbers."""
    rng = np.random.default_rng(seed)
    has = set(features.split())
    batch = 4 if has & {"four", "rows"} else 2
    heads, length, width = 4, 4 if "rows" in has else 12, 8
    keys = 15 if has & {"cross", "rows"} else length
    kv_heads, wide = 2 if "gqa" in has else heads, 6 if "wide" in has else width

    def normal(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32).astype(float)

    given: dict[str, Any] = {"is_causal": "causal" in has, "scale": 0.3 if "scale" in has else width**-0.5}
    q, k, v = (
        normal(batch, heads, length, width),
        normal(batch, kv_heads, keys, width),
        normal(batch, kv_heads, keys, wide),
    )
    if "mask" in has:
        given["mask"] = (rng.random((batch, 1, length, keys)) < 0.6) | np.eye(length, keys, dtype=bool)
    if "heads" in has:
        given["mask"] = (rng.random((batch, heads, length, keys)) < 0.6) | np.eye(length, keys, dtype=bool)
    if "padding" in has or "rows" in has:
        given["mask"] = (np.arange(keys) < rng.integers(3, keys, size=batch)[:, None])[:, None, None]
    if "bias" in has:
        given["bias"] = normal(batch, heads, length, keys)
    if "shift" in has:
        given["shift"] = normal(1, heads, length, keys)
    if "sinks" in has:
        given["sinks"] = normal(heads) + 1.0
    if "rotary" in has:
        given["rotary"] = Rotary()
    return Call(q, k, v, embed_dim=heads * width + 8, **given)


def plain(call: Call) -> Plain:
    group = call.q.shape[1] // call.k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (call.k, call.v))
    allowed = np.ones(call.shape[2:], bool) if call.mask is None else call.mask
    if call.is_causal:
        allowed = allowed & np.tri(*call.shape[2:], dtype=bool)
    return Plain(call, call.q, k, v, call.scale, np.where(allowed, 0.0, -np.inf))


def soft(s: Floats, axis: int | tuple[int, ...] = -1) -> Floats:
    e = np.exp(s - s.max(axis, keepdims=True))
    weights: Floats = e / e.sum(axis, keepdims=True)
    return weights


def hidden(allowed: Floats) -> Floats:
    return np.where(allowed, 0.0, -np.inf)


def with_sinks(p: Plain, sinks: Floats) -> Floats:
    """A sink is one more key, whose value is zero."""
    column = np.broadcast_to(sinks[:, None, None], (*p.q.shape[:3], 1))
    w = soft(np.concatenate((p.scores(), column), -1))[..., :-1]
    return np.asarray(w @ p.v)


def turn(x: Floats, positions: Floats) -> Floats:
    """Pairs (i, i + D/2) as complex numbers, turned."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate((z.real, z.imag), -1)


def turned(p: Plain, q: int | None = 1, k: int | None = 1) -> tuple[Floats, Floats]:
    """Query and key at multiples of their positions."""
    at = np.arange(p.q.shape[2])
    return (p.q if q is None else turn(p.q, q * at)), (p.k if k is None else turn(p.k, k * at))


def tiled(p: Plain, x: Floats) -> Floats:
    return np.concatenate([x] * (p.q.shape[1] // x.shape[1]), axis=1)


def rms(x: Floats, eps: float) -> Floats:
    return F.rms_norm(torch.tensor(x), x.shape[-1:], eps=eps).numpy()


def rms_all(x: Floats, eps: float) -> Floats:
    """The norm of a projection before its heads are taken apart."""
    joined = x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
    return rms(joined, eps).reshape(x.swapaxes(1, 2).shape).swapaxes(1, 2)


def layer(x: Floats, eps: float) -> Floats:
    return F.layer_norm(torch.tensor(x), x.shape[-1:], eps=eps).numpy()


def normed(norm: Callable[[Floats, float], Floats], eps: float) -> Callable[[Plain], Floats]:
    def run(p: Plain) -> Floats:
        k = norm(p.call.k, eps)  # of the kv heads: a norm over all of them is one over each once
        return p.out(norm(p.q, eps), np.repeat(k, p.q.shape[1] // k.shape[1], axis=1))

    return run


def packed(p: Plain, per_head: bool) -> Floats:
    """(B, L, W), heads one after the other or by kv head."""
    c = p.call
    q, k, v = (x.swapaxes(1, 2) for x in (c.q, c.k, c.v))  # (B, L, H, D)
    if per_head:
        b, n, kv_heads, d = k.shape
        parts = (q.reshape(b, n, kv_heads, -1, d), k[:, :, :, None], v[:, :, :, None])
        return np.concatenate(parts, 3).reshape(b, n, -1)
    return np.concatenate([x.reshape(*x.shape[:2], -1) for x in (q, k, v)], -1)


def split(p: Plain, x: Floats, per_head: bool) -> Floats:
    """Attention of a packed projection."""
    c, (b, n, _) = p.call, x.shape
    heads, kv_heads, d = c.q.shape[1], c.k.shape[1], c.q.shape[3]
    if per_head:
        groups = x.reshape(b, n, kv_heads, -1, d)
        q, k, v = groups[:, :, :, :-2].reshape(b, n, heads, d), groups[:, :, :, -2], groups[:, :, :, -1]
    else:
        parts = np.split(x, [heads * d, (heads + kv_heads) * d], -1)
        q, k, v = (y.reshape(b, n, -1, d) for y in parts)
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
    return p.out(q, *(np.repeat(y, heads // kv_heads, axis=1) for y in (k, v)))


def torch_to(dtype: torch.dtype) -> Callable[[Floats], Floats]:
    return lambda x: torch.tensor(x).to(torch.float32).to(dtype).double().numpy()


def int8(x: Floats, *axes: int) -> Floats:
    scale = np.abs(x).max(axes, keepdims=True) / 127
    return np.asarray(np.round(x / scale).astype(np.int8) * scale)


bf16, f16 = torch_to(torch.bfloat16), torch_to(torch.float16)
E4M3, E5M2 = torch_to(torch.float8_e4m3fn), torch_to(torch.float8_e5m2)


def sparsemax(s: Floats) -> Floats:
    """Bisection for the threshold at which the weights sum to one."""
    return by_bisection(s, lambda x: np.maximum(x, 0.0), 1.0)


def entmax(s: Floats) -> Floats:
    return by_bisection(s / 2, lambda x: np.maximum(x, 0.0) ** 2, 1.0)


def by_bisection(s: Floats, f: Callable[[Floats], Floats], width: float) -> Floats:
    high = s.max(-1, keepdims=True)
    low = high - width
    for _ in range(80):
        middle = (low + high) / 2
        above = f(s - middle).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return f(s - low)


def softpick(s: Floats) -> Floats:
    e = np.exp(s) - 1
    return np.asarray(np.maximum(e, 0) / np.abs(e).sum(-1, keepdims=True))


def as_rows(p: Plain) -> Floats:
    """A padding mask (B, S), B = L, added to scores (B, H, L, S)."""
    assert p.call.mask is not None
    return hidden(p.call.mask[:, 0, 0])


Written = tuple[str, str, str, Callable[[Plain], Floats]]

#: field, choice, features of the call, what a program computes
WRITTEN: tuple[Written, ...] = (
    ("scale", "after the softmax", "", lambda p: soft(p.q @ p.k.mT) * p.scale @ p.v),
    ("scale", "1/sqrt(E)", "wide", lambda p: soft(p.q @ p.k.mT / math.sqrt(6)) @ p.v),
    ("mask", "first item's", "mask", lambda p: soft(p.scores() + p.hides[:1]) @ p.v),
    ("mask", "transposed", "mask", lambda p: soft(p.scores() + p.hides.mT) @ p.v),
    ("mask", "or causal", "mask causal", lambda p: soft(p.scores() + hidden(p.call.mask | np.tri(12, dtype=bool))) @ p.v),
    ("mask", "flipped", "padding", lambda p: soft(p.scores() + p.hides[..., ::-1]) @ p.v),
    ("mask", "batch read as heads", "four padding", lambda p: soft(p.scores() + p.hides[:, 0]) @ p.v),
    ("mask", "batch read as rows", "rows", lambda p: soft(p.scores() + as_rows(p)) @ p.v),
    ("mask", "first head's", "heads", lambda p: soft(p.scores() + p.hides[:, :1]) @ p.v),
    ("mask", "only in the first head", "mask", lambda p: np.concatenate((p.out()[:, :1], (soft(p.scores()) @ p.v)[:, 1:]), 1)),
    ("causal", "unasked top-left", "", lambda p: soft(p.scores() + hidden(np.tri(12, dtype=bool))) @ p.v),
    ("causal", "unasked top-left", "cross", lambda p: soft(p.scores() + hidden(np.tri(12, 15, dtype=bool))) @ p.v),
    ("causal", "unasked bottom-right", "cross", lambda p: soft(p.scores() + hidden(np.tri(12, 15, 3, dtype=bool))) @ p.v),
    ("shift", "dropped", "shift", lambda p: p.out()),
    ("shift", "before the scale", "shift", lambda p: soft((p.q @ p.k.mT + p.call.shift) * p.scale) @ p.v),
    ("bias", "twice", "bias", lambda p: soft(p.scores() + 2 * p.call.bias) @ p.v),
    ("bias", "transposed", "bias", lambda p: soft(p.scores() + p.call.bias.swapaxes(2, 3)) @ p.v),
    ("bias", "after the softmax", "bias", lambda p: (soft(p.scores()) + p.call.bias) @ p.v),
    ("bias", "first head's", "bias", lambda p: soft(p.scores() + p.call.bias[:, :1]) @ p.v),
    ("bias", "heads reversed", "bias", lambda p: soft(p.scores() + np.flip(p.call.bias, 1)) @ p.v),
    ("bias", "first item's", "bias", lambda p: soft(p.scores() + p.call.bias[0]) @ p.v),
    ("heads", "values tiled", "gqa", lambda p: p.out(v=tiled(p, p.call.v))),
    ("heads", "keys tiled", "gqa", lambda p: p.out(k=tiled(p, p.call.k))),
    ("heads", "first value only", "gqa", lambda p: p.out(v=p.v[:, :1])),
    ("layout", "attends over batch items", "", lambda p: np.einsum("ijhl,jhle->ihle", soft(np.einsum("ihld,jhld->ijhl", p.q, p.k) * p.scale, 1), p.v)),
    ("layout", "packed in thirds, split per head", "", lambda p: split(p, packed(p, False), True)),
    ("layout", "packed in thirds, split per head", "gqa", lambda p: split(p, packed(p, False), True)),
    ("layout", "packed per head, split in thirds", "causal", lambda p: split(p, packed(p, True), False)),
    ("layout", "packed per head, split in thirds", "gqa", lambda p: split(p, packed(p, True), False)),
    ("operands", "key for value", "mask", lambda p: p.out(v=p.k)),
    ("operands", "value for key", "gqa", lambda p: p.out(k=p.v)),
    ("operands", "query for key and value", "cross", lambda p: soft(p.scores(k=p.q)) @ p.q),
    ("operands", "query for key and value", "causal", lambda p: p.out(k=p.q, v=p.q)),
    ("operands", "query for key", "mask", lambda p: p.out(k=p.q)),
    ("operands", "key for query", "", lambda p: p.out(q=p.k)),
    ("operands", "key reshaped, not transposed", "cross", lambda p: soft(p.q @ p.k.reshape(2, 4, 8, 15) * p.scale) @ p.v),
    ("operands", "query and value swapped", "mask", lambda p: p.out(q=p.v, v=p.q)),
    ("sinks", "not shifted", "sinks", lambda p: np.exp(s := p.scores() - p.scores().max(-1, keepdims=True)) / (np.exp(s).sum(-1, keepdims=True) + np.exp(p.call.sinks)[:, None, None]) @ p.v),
    ("sinks", "scaled", "sinks", lambda p: with_sinks(p, p.scale * p.call.sinks)),
    ("sinks", "exponentiated twice", "sinks", lambda p: with_sinks(p, np.exp(p.call.sinks))),
    ("sinks", "subtracted", "sinks", lambda p: with_sinks(p, -p.call.sinks)),
    ("sinks", "first head's", "sinks", lambda p: with_sinks(p, p.call.sinks[[0, 0, 0, 0]])),
    ("softmax", "twice", "", lambda p: soft(soft(p.scores())) @ p.v),
    ("softmax", "twice", "mask", lambda p: soft(soft(p.scores() + p.hides)) @ p.v),
    ("softmax", "batch items", "four", lambda p: soft(p.scores(), 0) @ p.v),
    ("softmax", "keys and heads", "", lambda p: soft(p.scores(), (1, 3)) @ p.v),
    ("softmax", "plus one, not shifted", "", lambda p: np.exp(s := p.scores() - p.scores().max(-1, keepdims=True)) / (1 + np.exp(s).sum(-1, keepdims=True)) @ p.v),
    ("softmax", "sigmoid less log n", "mask", lambda p: 1 / (1 + np.exp(math.log(12) - p.scores() - p.hides)) @ p.v),
    ("softmax", "relu over n", "mask", lambda p: np.maximum(p.scores() + p.hides, 0) / 12 @ p.v),
    ("softmax", "sparsemax", "causal", lambda p: sparsemax(p.scores() + p.hides) @ p.v),
    ("softmax", "entmax-1.5", "", lambda p: entmax(p.scores()) @ p.v),
    ("softmax", "softpick", "", lambda p: softpick(p.scores()) @ p.v),
    ("output", "query added", "mask", lambda p: p.out() + p.q),
    ("output", "value added", "gqa", lambda p: p.out() + p.v),
    ("output", "divided by sqrt(D)", "", lambda p: p.out() / math.sqrt(8)),
    ("output", "divided by S", "cross", lambda p: p.out() / 15),
    ("output", "mean of heads", "", lambda p: np.stack([p.out().mean(1)] * 4, 1)),
    ("output", "heads reversed", "", lambda p: np.flip(p.out(), 1)),
    ("output", "heads interleaved", "", lambda p: np.stack([np.moveaxis(x, 0, -1).reshape(len(x[0]), -1) for x in p.out()]).reshape(p.out().swapaxes(1, 2).shape).swapaxes(1, 2)),
    ("rotary", "keys alone", "rotary", lambda p: p.out(*turned(p, q=None))),
    ("rotary", "positions are heads", "rotary gqa", lambda p: p.out(turn(p.q.swapaxes(1, 2), np.arange(4)).swapaxes(1, 2), np.repeat(turn(p.call.k.swapaxes(1, 2), np.arange(2)).swapaxes(1, 2), 2, 1))),
    ("rotary", "other direction", "rotary", lambda p: p.out(*turned(p, -1, -1))),
    ("rotary", "twice", "rotary", lambda p: p.out(turn(turned(p)[0], np.arange(12)), turn(turned(p)[1], np.arange(12)))),
    ("rotary", "values too", "rotary", lambda p: p.out(*turned(p), turn(p.v, np.arange(12)))),
    ("norms", "rms 1e-6", "gqa", normed(rms, 1e-6)),
    ("norms", "rms 1.1920929e-07", "", normed(rms, float(np.float32("1.1920929e-07")))),
    ("norms", "rms 1e-5", "", normed(rms, 1e-5)),
    ("norms", "layer 1e-5", "", normed(layer, 1e-5)),
    ("norms", "layer 1e-6", "", normed(layer, 1e-6)),
    ("norms", "rms-all 1e-6", "gqa", normed(rms_all, 1e-6)),
    ("norms", "rms-all 1e-5", "", normed(rms_all, 1e-5)),
    ("norms", "l2", "gqa", normed(lambda x, eps: F.normalize(torch.tensor(x), dim=-1).numpy(), 0.0)),
    ("norms", "values rms 1e-6", "gqa", lambda p: p.out(v=rms(p.v, 1e-6))),
    ("cache", "float8_e4m3", "gqa", lambda p: p.out(k=E4M3(p.k), v=E4M3(p.v))),
    ("cache", "float8_e5m2", "", lambda p: p.out(k=E5M2(p.k), v=E5M2(p.v))),
    ("cache", "int8 per token", "gqa", lambda p: p.out(k=int8(p.k, 3), v=int8(p.v, 3))),
    ("cache", "int8 per channel", "", lambda p: p.out(k=int8(p.k, 2), v=int8(p.v, 2))),
    ("cache", "int8 keys per channel", "", lambda p: p.out(k=int8(p.k, 2), v=int8(p.v, 3))),
    ("cache", "int8 per tensor", "", lambda p: p.out(k=int8(p.k, 0, 1, 2, 3), v=int8(p.v, 0, 1, 2, 3))),
    ("precision", "bfloat16 cache", "rotary", lambda p: p.out(turned(p)[0], bf16(turned(p)[1]), bf16(p.v))),
    ("precision", "float16 cache", "gqa", lambda p: p.out(k=f16(p.k), v=f16(p.v))),
    ("precision", "bfloat16 turned", "rotary", lambda p: p.out(bf16(turned(p)[0]), bf16(turned(p)[1]))),
    ("precision", "float16 turned", "", lambda p: p.out(f16(p.q), f16(p.k))),
    ("precision", "bfloat16 query", "rotary", lambda p: p.out(bf16(turned(p)[0]), turned(p)[1])),
    ("precision", "float16 query", "", lambda p: p.out(f16(p.q))),
    ("precision", "bfloat16 second product", "", lambda p: bf16(soft(p.scores())) @ bf16(p.v)),
    ("precision", "float16 second product", "", lambda p: f16(soft(p.scores())) @ f16(p.v)),
    ("precision", "bfloat16 throughout", "scale", lambda p: bf16(soft(bf16(bf16(bf16(p.q) @ bf16(p.k).mT) * p.scale))) @ bf16(p.v)),
    ("precision", "float16 throughout", "scale", lambda p: f16(soft(f16(f16(f16(p.q) @ f16(p.k).mT) * p.scale))) @ f16(p.v)),
    ("precision", "bfloat16 exponentials", "mask", lambda p: bf16(e := np.exp(p.scores() + p.hides - (p.scores() + p.hides).max(-1, keepdims=True))) / e.sum(-1, keepdims=True) @ p.v),
    ("precision", "float16 exponentials", "", lambda p: f16(e := np.exp(p.scores() - p.scores().max(-1, keepdims=True))) / e.sum(-1, keepdims=True) @ p.v),
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "choice", "features", "program"), WRITTEN, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_cause_is_what_a_program_with_that_mistake_computes(
    field: str, choice: str, features: str, program: Callable[[Plain], Floats]
) -> None:
    call = draw(features)
    cause = KNOWN[field, choice]
    assert cause.applies(call)
    found, right = answer(call, settings_of((cause,))), answer(call)
    seen = np.asarray(program(plain(call)))
    assert explains(found, seen, "float64")
    assert not explains(right, seen, "float64")
    rows = np.array([0, 2, 3])
    some = answer(call, settings_of((cause,)), rows)
    assert explains(some, seen[:, :, rows], "float64")


def explains(found: Any, seen: Floats, dtype: str) -> bool:
    return eta(seen, Judged(found.out, found.condition, 0.0, found.rounded), dtype) <= ACCEPTANCE


# together

FEATURES = (
    "", "scale mask", "scale padding causal", "scale wide cross", "scale gqa rotary sinks", "scale bias heads sinks",
    "scale shift gqa", "scale four padding rotary", "scale rows",
)  # fmt: skip


def applicable(call: Call) -> list[Cause]:
    return [cause for cause in KNOWN.values() if cause.applies(call)]


def as_wide(a: Cause, b: Cause) -> bool:
    """float16 and TF32 have the same fraction, and differ only in how large a number may be."""
    pair = {a.choice.partition(" ")[0], b.choice.partition(" ")[0]}
    return a.choice.partition(" ")[2] == b.choice.partition(" ")[2] and pair == {"float16", "tf32"}


@pytest.mark.parametrize("features", FEATURES)
def test_no_cause_explains_another_or_a_right_output(features: str) -> None:
    call = draw(f"scale {features}")
    answers = Answers(call)
    right = answers(CONTRACT)
    shown = []
    for cause in applicable(call):
        found = answers(settings_of((cause,)))
        if not np.array_equal(found.out, right.out):
            shown.append((cause, found))
    shown.append((Cause("", "", say("right"), always), right))
    assert len(shown) > 60
    outs = np.stack([found.out for _, found in shown])
    confused = []
    for cause, found in shown:
        near = np.abs(outs - found.out) <= ACCEPTANCE * UNIT_ROUNDOFF["float64"] * found.condition
        others = [shown[i][0] for i in np.flatnonzero(near.all((1, 2, 3, 4)))]
        confused += [(cause[:2], x[:2]) for x in others if x is not cause and not as_wide(cause, x)]
    assert confused == []


@pytest.mark.parametrize("features", FEATURES)
def test_causes_are_told_apart_by_their_sentences(features: str) -> None:
    call = draw(features)
    sentences = [cause.sentence(call) for cause in applicable(call)]
    assert len(set(sentences)) == len(sentences)
    assert all(s and "{" not in s and not s.endswith(".") for s in sentences)


def test_the_table_has_every_cause_once_and_rare_ones_last() -> None:
    assert len(KNOWN) == len(CAUSES) + len(ROUNDINGS)
    rare = [cause.rare for cause in CAUSES]
    assert rare == sorted(rare)


@pytest.mark.parametrize("features", FEATURES)
def test_answers_that_share_their_products_are_those_that_do_not(features: str) -> None:
    call, rows = draw(features), np.array([1, 3])
    shared = Answers(call, rows)
    for _ in range(2):  # computed, then kept
        for cause in applicable(call):
            settings = settings_of((cause,))
            one, other = shared(settings), answer(call, settings, rows)
            for name in ("out", "condition", "rounded"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# what is rounded inside, in a program of float32

Inner = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def low(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype).float()


def as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def bytes_of(x: torch.Tensor, *axes: int) -> torch.Tensor:
    scale = x.abs().amax(axes, keepdim=True) / 127
    return torch.round(x / scale) * scale


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    product: Callable[[torch.Tensor], torch.Tensor] = as_is,
    scores: Callable[[torch.Tensor], torch.Tensor] = as_is,
    weights: Callable[[torch.Tensor], torch.Tensor] = as_is,
) -> torch.Tensor:
    return weights(torch.softmax(scores(product(q @ k.mT) * 0.125), -1)) @ v


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    s = q @ k.mT * 0.125
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return low(dtype)(e) @ v / e.sum(-1, keepdim=True)


B, H, FP8 = low(torch.bfloat16), low(torch.float16), low(torch.float8_e4m3fn)
INSIDE: dict[tuple[str, str], Inner] = {
    ("precision", "bfloat16 cache"): lambda q, k, v: naive(q, B(k), B(v)),
    ("precision", "bfloat16 turned"): lambda q, k, v: naive(B(q), B(k), v),
    ("precision", "bfloat16 query"): lambda q, k, v: naive(B(q), k, v),
    ("precision", "bfloat16 product"): lambda q, k, v: naive(q, k, v, product=B),
    ("precision", "bfloat16 scores"): lambda q, k, v: naive(q, k, v, scores=B),
    ("precision", "float16 scores"): lambda q, k, v: naive(q, k, v, scores=H),
    ("precision", "bfloat16 weights"): lambda q, k, v: naive(q, k, v, weights=B),
    ("precision", "float16 weights"): lambda q, k, v: naive(q, k, v, weights=H),
    ("precision", "bfloat16 second product"): lambda q, k, v: naive(q, k, B(v), weights=B),
    ("precision", "bfloat16 operands"): lambda q, k, v: naive(B(q), B(k), B(v), weights=B),
    ("precision", "bfloat16 exponentials"): lambda q, k, v: fused(q, k, v, torch.bfloat16),
    ("precision", "float16 exponentials"): lambda q, k, v: fused(q, k, v, torch.float16),
    ("cache", "float8_e4m3"): lambda q, k, v: naive(q, FP8(k), FP8(v)),
    ("cache", "int8 per token"): lambda q, k, v: naive(q, bytes_of(k, 3), bytes_of(v, 3)),
    ("cache", "int8 keys per channel"): lambda q, k, v: naive(q, bytes_of(k, 2), bytes_of(v, 3)),
    ("cache", "int8 per tensor"): lambda q, k, v: naive(q, bytes_of(k, 0, 1, 2, 3), bytes_of(v, 0, 1, 2, 3)),
}


@pytest.mark.parametrize("rotary", [None, Rotary()])
def test_what_a_program_of_float32_rounds_inside_is_explained_though_ties_fall_otherwise(
    rotary: Rotary | None,
) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 4, n, 64)).astype(np.float32) for n in (24, 400, 400))
    call = Call(*(x.astype(float) for x in (q, k, v)), scale=0.125, rotary=rotary)  # 1/sqrt(64)
    of = [torch.tensor(x) for x in (q, k, v)]
    if rotary is not None:  # with angles in float32, as most do it
        of[:2] = [_turned(x) for x in of[:2]]
    right, contract = naive(*of).double().numpy(), answer(call)
    assert explains(contract, right, "float32")
    for (field, choice), program in INSIDE.items():
        found = answer(call, settings_of((KNOWN[field, choice],)))
        seen = program(*of).double().numpy()
        assert explains(found, seen, "float32"), choice
        assert not explains(contract, seen, "float32"), choice
        assert not explains(found, right, "float32"), choice


def _turned(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b, c, s = x[..., :half], x[..., half:], angle.cos(), angle.sin()
    return torch.cat((a * c - b * s, a * s + b * c), -1)
