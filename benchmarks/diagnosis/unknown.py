"""Outputs with an error that is no convention: nothing may be accused of them.

Each is a program that goes wrong in a way of its own: what is drawn by chance, what touches some rows, one head, one item.
Where an error is a number that a tool may well find (every output times 0.9), saying so is right, and `true` holds how.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .naming import Named, Said
from .perturbing import (
    Unknown,
    allowed,
    curve,
    flipped,
    in_one,
    inputs,
    like,
    noisy,
    normal,
    one_head,
    one_weight,
    output,
    random_frequencies,
    random_rotary,
    renormed,
    scores,
    some_rows,
    stages,
    swapped,
    taylor,
    top,
    turned,
    waves,
    weights,
)

FACTOR = "(output|values?|weights|result)"


GATED = "output gated by each head"


def gates(rng: np.random.Generator, heads: int) -> torch.Tensor:
    return torch.sigmoid(normal(rng, heads))


def ever(number: float) -> Named:
    return (Said(FACTOR, lambda p: (number, 1 / number)),)


def _list() -> tuple[Unknown, ...]:
    U: Any = Unknown
    return (
        *(U(f"noise {size:g}", output(noisy(size))) for size in (1e-1, 1e-2, 1e-3, 1e-4)),
        U("all noise", output(lambda x, rng: like(rng, x))),
        U("output times 1.001", output(lambda x, rng: x * 1.001), true=ever(1.001)),
        U("output times 0.9", output(lambda x, rng: x * 0.9), true=ever(0.9)),
        U("output plus 0.01", output(lambda x, rng: x + 0.01), true=(Said("added to the output", lambda p: (0.01,)),)),
        U("tanh of the output", output(lambda x, rng: x.tanh())),
        U("output clipped", output(lambda x, rng: x.clamp(-0.5, 0.5))),
        U("relu of the output", output(lambda x, rng: x.relu())),
        U("output of length 1", output(lambda x, rng: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6))),
        U("output gated by chance", output(lambda x, rng: x * torch.sigmoid(like(rng, x)))),
        U(GATED, output(lambda x, rng: x * gates(rng, x.shape[1])[:, None, None]), true=(Said("output of every head", each=lambda p: gates(p.rng(GATED), p.q.shape[1]).tolist()),)),
        U("output mixed over heads", output(lambda x, rng: torch.einsum("gh,bhle->bgle", torch.eye(x.shape[1]) + 0.1 * normal(rng, x.shape[1], x.shape[1]), x))),
        U("output smoothed along rows", output(lambda x, rng: 0.9 * x + 0.1 * x.roll(1, 2))),
        U("output turned at random", output(turned)),
        U("wavy output", output(lambda x, rng: x * waves(x))),
        U("errors in 13 rows", output(lambda x, rng: some_rows(x, rng, 13, lambda y: y + 0.1 * like(rng, y)))),
        U("one row doubled", output(lambda x, rng: some_rows(x, rng, 1, lambda y: 2 * y))),
        U("three rows zero", output(lambda x, rng: some_rows(x, rng, 3, torch.zeros_like))),
        U("noise in one head", output(lambda x, rng: one_head(x, rng, lambda y: y + 0.05 * like(rng, y)))),
        U("one head zero", output(lambda x, rng: one_head(x, rng, torch.zeros_like)), true=(Said("output of every head", lambda p: (0.0,)),)),
        U("one head of one item zero", output(lambda x, rng: in_one(x, rng, torch.zeros_like))),
        U("one head of one item noisy", output(lambda x, rng: in_one(x, rng, lambda y: y * (1 + 0.01 * like(rng, y))))),
        U("one item noisy", output(lambda x, rng: in_one(x, rng, lambda y: y + 0.03 * like(rng, y), 1))),
        U("one column negated", output(lambda x, rng: torch.cat((-x[..., :1], x[..., 1:]), -1))),
        U("columns in a random order", output(lambda x, rng: x[..., torch.tensor(rng.permutation(x.shape[-1]))])),
        U("rows in a random order", output(lambda x, rng: x[:, :, torch.tensor(rng.permutation(x.shape[2]))])),
        U("two rows swapped", output(lambda x, rng: swapped(x, 1, 9, 17, 0))),
        U("two heads swapped in an item", output(lambda x, rng: swapped(x, 0, 0, 3, 1))),
        U("one weight changed", weights(one_weight)),
        U("weights to the power 1.1, not normed", weights(lambda w, rng: w**1.1)),
        U("1e-2 in the denominator", weights(lambda w, rng: w / 1.01), true=ever(1.01)),
        U("weights with a smooth factor", weights(lambda w, rng: renormed(w * waves(w)))),
        U("weights with a smooth factor, not normed", weights(lambda w, rng: w * waves(w))),
        U("weights noisy", weights(lambda w, rng: renormed(w * (1 + 0.05 * like(rng, w).clamp(-3, 3))))),
        U("weights mixed with even ones", weights(lambda w, rng: 0.97 * w + 0.03 / w.shape[-1])),
        U("weights gated by keys", weights(lambda w, rng: w * torch.sigmoid(normal(rng, w.shape[-1]) + 2))),
        U("weights below 0.02 dropped, not normed", weights(lambda w, rng: torch.where(w > 0.02, w, 0.0))),
        U("weights squared, not normed", weights(lambda w, rng: w**2)),
        U("weights smoothed along keys", weights(lambda w, rng: 0.8 * w + 0.2 * w.roll(1, -1))),
        U("eight largest weights", weights(top(8)), true=(Said("top", lambda p: (8,)),)),
        U("weights of a head seen by the next, in part", weights(lambda w, rng: 0.9 * w + 0.1 * w.roll(1, 1))),
        U("exp as a polynomial of order 2", curve(taylor(2))),
        U("exp as a polynomial of order 4", curve(taylor(4))),
        U("1 / (1 - x) for exp", curve(lambda x: 1 / (1 - x.clamp(max=0)))),
        U("1 / (1 + x^2) for exp", curve(lambda x: 1 / (1 + x**2))),
        U("softplus for exp", curve(torch.nn.functional.softplus)),
        U("exp in steps of 1/8", curve(lambda x: torch.exp((8 * x).floor() / 8))),
        U("temperature of each head at random", scores(lambda s, rng: s * torch.tensor(rng.uniform(0.8, 1.2, (s.shape[1], 1, 1))).to(s.dtype)), true=(Said("(scale|temperature).*head"),)),
        U("temperature of each row at random", scores(lambda s, rng: s * torch.tensor(rng.uniform(0.8, 1.2, (s.shape[2], 1))).to(s.dtype))),
        U("scores noisy", scores(lambda s, rng: s + 0.1 * like(rng, s))),
        U("scores rounded to 0.1", scores(lambda s, rng: (10 * s).round() / 10)),
        U("scores clipped at 1", scores(lambda s, rng: s.clamp(-1.0, 1.0))),
        U("scores with a wave along keys", scores(lambda s, rng: s + waves(s))),
        U("scores of absolute value", scores(lambda s, rng: s.abs())),
        U("scores squared", scores(lambda s, rng: s**2)),
        U("scores with their square", scores(lambda s, rng: s + 0.1 * s**2)),
        U("leaky relu of the scores", scores(lambda s, rng: torch.nn.functional.leaky_relu(s, 0.2))),
        U("a random bias for each key", scores(lambda s, rng: s + 0.5 * normal(rng, s.shape[-1]))),
        U("scores smoothed along queries", scores(lambda s, rng: 0.8 * s + 0.2 * s.roll(1, -2))),
        U("a random mask, one bit in 200 wrong", allowed(flipped(0.005))),
        U("a random mask, one bit in 10 wrong", allowed(flipped(0.1))),
        U("every fourth row sees one token ahead", stages(lambda p, rng: {"causal": lambda p, i, j: j <= i + (i % 4 == 3)}), "causal"),
        U("a hole in the mask", allowed(lambda p, x, rng: x & ~((p.places[0] - p.start > 5) & (p.places[0] - p.start < 15) & (p.places[1] > 3) & (p.places[1] < 9)))),
        U("every third key hidden", allowed(lambda p, x, rng: x & (p.places[1] % 3 != 1))),
        U("blocks of 7 alone", allowed(lambda p, x, rng: x & (p.places[0] // 7 == p.places[1] // 7)), true=(Said("block|chunk|document"),)),
        U("a random mask of its own in one head", allowed(lambda p, x, rng: one_head(x.expand(p.shape), rng, lambda y: y & torch.tensor(rng.random(y.shape) < 0.8)))),
        U("six keys hidden at random", allowed(lambda p, x, rng: x & torch.tensor(rng.permutation(p.shape[3]) >= 6)), true=(Said("key"),)),
        U("a random orthogonal turn of q", inputs(q=turned)),
        U("a random orthogonal turn of v", inputs(v=turned)),
        U("q mapped by a random matrix", inputs(q=lambda x, rng: x + 0.1 * x @ normal(rng, x.shape[-1], x.shape[-1]))),
        U("keys in a random order", inputs(k=lambda x, rng: x[:, :, torch.tensor(rng.permutation(x.shape[2]))])),
        U("values in a random order", inputs(v=lambda x, rng: x[:, :, torch.tensor(rng.permutation(x.shape[2]))])),
        U("columns of k in a random order", inputs(k=lambda x, rng: x[..., torch.tensor(rng.permutation(x.shape[-1]))])),
        U("values of some rows noisy", inputs(v=lambda x, rng: some_rows(x, rng, 4, lambda y: y + 0.5 * like(rng, y)))),
        U("keys of some rows noisy", inputs(k=lambda x, rng: some_rows(x, rng, 4, lambda y: y + 0.5 * like(rng, y)))),
        U("queries noisy", inputs(q=noisy(0.05))),
        U("keys clipped", inputs(k=lambda x, rng: x.clamp(-1.0, 1.0))),
        U("values clipped", inputs(v=lambda x, rng: x.clamp(-1.0, 1.0))),
        U("tanh of the queries", inputs(q=lambda x, rng: x.tanh())),
        U("a vector added to every key and channel", inputs(k=lambda x, rng: x + 0.3 * normal(rng, x.shape[1], x.shape[2], x.shape[3]))),
        U("a vector added to one key", inputs(k=lambda x, rng: some_rows(x, rng, 1, lambda y: y + normal(rng, y.shape[-1])))),
        U("a vector added to all queries", inputs(q=lambda x, rng: x + 0.3 * normal(rng, x.shape[-1]))),
        U("a vector added to all values", inputs(v=lambda x, rng: x + 0.3 * normal(rng, x.shape[-1])), true=(Said("vector added to the output"),)),
        U("values of other numbers", inputs(v=lambda x, rng: like(rng, x))),
        U("keys of other numbers", inputs(k=lambda x, rng: like(rng, x))),
        U("queries of other numbers", inputs(q=lambda x, rng: like(rng, x))),
        U("keys of one head of other numbers", inputs(k=lambda x, rng: one_head(x, rng, lambda y: like(rng, y)))),
        U("channels of q with factors of their own", inputs(q=lambda x, rng: x * (1 + 0.2 * normal(rng, x.shape[-1])))),
        U("channels of k with learned-looking gains", inputs(k=lambda x, rng: x * torch.tensor(rng.uniform(0.5, 1.5, x.shape[-1])).float())),
        U("rotary positions of keys at random", stages(random_rotary), "rotary"),
        U("rotary of a mean of frequencies", stages(random_frequencies), "rotary"),
        U("another number for every sink", inputs(sinks=lambda x, rng: x + normal(rng, len(x))), "sinks", true=(Said("sink"),)),
        U("bias noisy", inputs(bias=lambda x, rng: x + 0.2 * like(rng, x)), "bias"),
        U("bias of other numbers", inputs(bias=lambda x, rng: like(rng, x)), "bias"),
        U("bias multiplied, not added", stages(lambda p, rng: {"biased": lambda p, s, allowed: s * p.bias}), "bias"),
        U("alibi slopes at random", inputs(alibi=lambda x, rng: torch.tensor(rng.uniform(0.01, 0.5, len(x))).float()), "alibi", true=(Said("slope"),)),
        U("erf for tanh in the soft cap", stages(lambda p, rng: {"capped": lambda p, s, allowed: p.cap * torch.erf(s / p.cap)}), "softcap"),
        U("clip for tanh in the soft cap", stages(lambda p, rng: {"capped": lambda p, s, allowed: s.clamp(-p.cap, p.cap)}), "softcap"),
    )  # fmt: skip


UNKNOWN = _list()
