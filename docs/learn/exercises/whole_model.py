"""Exercises of the chapter on a whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

from polyattn.rotary import Rotary


@law
def said_twice_is_expected(model: Any) -> str:
    """Tokens drawn at random, said a second time, surprise less than half as much: the model looks back.

    model: numbers of tokens -> logits (L, vocabulary). The first token of the second time, which nothing announces,
    is not counted.
    """
    once = np.random.default_rng(0).integers(1000, 20000, 10).tolist()
    tokens = once + once
    logits = np.asarray(model(tokens), np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    surprise = -log_p[np.arange(19), tokens[1:]]
    first, second = surprise[:9].mean(), surprise[10:].mean()
    if second < first / 2:
        return ""
    return f"ten tokens surprise by {first:.1f} each the first time, and still by {second:.1f} the second"


# ---- rms_norm ----


@law
def the_mean_stays(rms_norm: Any) -> str:
    """(2, 4, 4, 8) over the root of (4 + 16 + 16 + 64) / 4 = 25; no mean is taken off."""
    found = rms_norm(np.array([2.0, 4.0, 4.0, 8.0]), np.ones(4), 0.0)
    return apart(found, [0.4, 0.8, 0.8, 1.6], "of (2, 4, 4, 8)")


@law
def tokens_are_apart(rms_norm: Any) -> str:
    """Each token by its own mean: ten times the second token changes nothing."""
    x = draw(3, 4, seed=1)
    other = x * np.array([[1.0], [10.0], [1.0]])
    return apart(
        rms_norm(other, np.ones(4), 0.0), rms_norm(x, np.ones(4), 0.0), "with token 1 ten times as large"
    )


@law
def epsilon_is_under_the_root(rms_norm: Any) -> str:
    """(4, 4, 4, 4) with epsilon = 9: 4 over the root of 16 + 9 is 4/5."""
    return apart(
        rms_norm(np.full(4, 4.0), np.ones(4), 9.0), np.full(4, 0.8), "of (4, 4, 4, 4) with epsilon = 9"
    )


@law
def the_scale_multiplies(rms_norm: Any) -> str:
    """A scale of (1, 2, 3, 4) multiplies entry by entry."""
    found = rms_norm(np.full(4, 4.0), np.arange(1.0, 5.0), 9.0)
    return apart(found, 0.8 * np.arange(1.0, 5.0), "with a scale of (1, 2, 3, 4)")


# ---- block ----


def _zero(x: Any) -> Any:
    return 0 * x


def _same(x: Any) -> Any:
    return x


def _centred(x: Any) -> Any:
    return x - x.mean()


@law
def what_nobody_changes_goes_through(block: Any) -> str:
    """Parts that give zeros leave the stream as it is, whatever the norms do."""
    x = draw(3, 4, seed=1)
    return apart(
        block(x, _zero, _zero, _centred, _centred), x, "with an attention and an MLP that give zeros"
    )


@law
def the_mlp_hears_what_attention_said(block: Any) -> str:
    """1, and twice it, is 3; 3, and three times it, is 12."""
    x = np.ones((1, 4))
    found = block(x, lambda x: 2 * x, lambda x: 3 * x, _same, _same)
    return apart(found, 12 * x, "of 1, with an attention that doubles and an MLP that triples")


@law
def each_part_has_its_norm(block: Any) -> str:
    """With norms that give 1 and 10, 5 becomes 5 + 2 * 1 + 3 * 10 = 37."""
    x = np.full((1, 4), 5.0)
    given = (lambda x: 2 * x, lambda x: 3 * x, lambda x: 0 * x + 1, lambda x: 0 * x + 10)
    return apart(block(x, *given), np.full((1, 4), 37.0), "of 5, with norms that give 1 and 10")


# ---- halves ----


def _scores(w_q: Any, w_k: Any, *, interleaved: bool) -> Any:
    """The scores (H, L, L) of drawn tokens."""
    x, rotary = draw(5, 3, seed=1), Rotary(interleaved=interleaved)
    q, k = (np.moveaxis(np.tensordot(x, w, 1), 0, 1) for w in (w_q, w_k))
    q, k = rotary.both(q, k, np.arange(5))
    return q @ np.swapaxes(k, -1, -2)


@law
def the_pairs_are_where_they_are_said_to_be(halves: Any) -> str:
    """Entries 0 to 5 are pairs (0, 1), (2, 3), (4, 5): the first of each come first, 0 2 4 1 3 5; scores stay."""
    w = np.broadcast_to(np.arange(6.0), (3, 2, 6))
    if found := apart(np.asarray(halves(w))[0, 0], [0.0, 2, 4, 1, 3, 5], "of entries 0 1 2 3 4 5"):
        return found
    w_q, w_k = draw(3, 2, 8, seed=2), draw(3, 2, 8, seed=3)
    expected = _scores(w_q, w_k, interleaved=True)
    return apart(_scores(halves(w_q), halves(w_k), interleaved=False), expected, "the scores of five tokens")


@law
def heads_stay_apart(halves: Any) -> str:
    """What was in head h is in head h."""
    w = np.broadcast_to(np.arange(2.0)[:, None], (3, 2, 4))
    return apart(halves(w), w, "of a head of zeros and a head of ones")


def _layer_norm(x: Any, scale: Any, epsilon: float) -> Any:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale


def _root(x: Any) -> Any:
    return np.sqrt((x * x).mean(-1, keepdims=True))


def _back(w: Any) -> Any:
    """From halves to side by side: the other way."""
    return np.stack(np.split(w, 2, axis=-1), axis=-1).reshape(w.shape)


def _all_heads_together(w: Any) -> Any:
    flat = w.reshape(w.shape[0], -1)
    return np.concatenate([flat[:, 0::2], flat[:, 1::2]], axis=-1).reshape(w.shape)


EXERCISES = (
    Exercise(
        (the_mean_stays, tokens_are_apart, epsilon_is_under_the_root, the_scale_multiplies),
        {
            "the_mean_stays": _layer_norm,
            "tokens_are_apart": lambda x, scale, epsilon: x / np.sqrt((x * x).mean() + epsilon) * scale,
            "epsilon_is_under_the_root": lambda x, scale, epsilon: x / (_root(x) + epsilon) * scale,
            "the_scale_multiplies": lambda x, scale, epsilon: x / np.sqrt(_root(x) ** 2 + epsilon),
        },
    ),
    Exercise(
        (what_nobody_changes_goes_through, the_mlp_hears_what_attention_said, each_part_has_its_norm),
        {
            "what_nobody_changes_goes_through": lambda x, attention, mlp, norm_1, norm_2: mlp(
                norm_2(attention(norm_1(x)))
            ),
            "the_mlp_hears_what_attention_said": lambda x, attention, mlp, norm_1, norm_2: (
                x + attention(norm_1(x)) + mlp(norm_2(x))
            ),
            "each_part_has_its_norm": lambda x, attention, mlp, norm_1, norm_2: (
                x + attention(norm_1(x)) + mlp(norm_1(x + attention(norm_1(x))))
            ),
        },
    ),
    Exercise(
        (heads_stay_apart, the_pairs_are_where_they_are_said_to_be),
        {
            "heads_stay_apart": _all_heads_together,
            "the_pairs_are_where_they_are_said_to_be": _back,
        },
    ),
)
