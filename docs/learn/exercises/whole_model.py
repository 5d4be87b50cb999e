"""Exercises of the chapter on a whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed

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
    found = rms_norm(np.array([[2.0, 4.0, 4.0, 8.0]]), np.ones(4), 0.0)
    return apart(found, [[0.4, 0.8, 0.8, 1.6]], "of (2, 4, 4, 8)")


@law
def epsilon_is_under_the_root(rms_norm: Any) -> str:
    """(4, 4, 4, 4) with epsilon = 9: 4 over the root of 16 + 9 is 4/5."""
    found = rms_norm(np.full((1, 4), 4.0), np.ones(4), 9.0)
    return apart(found, [[0.8] * 4], "of (4, 4, 4, 4) with epsilon = 9")


@law
def tokens_are_apart(rms_norm: Any) -> str:
    """Each token by its own mean: of (2, 4, 4, 8) and (3, 3, 3, 3) the second has ones."""
    found = rms_norm(np.array([[2.0, 4.0, 4.0, 8.0], [3.0, 3.0, 3.0, 3.0]]), np.ones(4), 0.0)
    return apart(found, [[0.4, 0.8, 0.8, 1.6], [1.0] * 4], "of tokens (2, 4, 4, 8) and (3, 3, 3, 3)")


@law
def the_scale_multiplies(rms_norm: Any) -> str:
    """A scale of (1, -2, 3, 4) multiplies entry by entry."""
    scale = np.array([1.0, -2.0, 3.0, 4.0])
    expected = 0.8 * scale[None]
    what = "of (4, 4, 4, 4) with epsilon = 9 and a scale of (1, -2, 3, 4)"
    return apart(rms_norm(np.full((1, 4), 4.0), scale, 9.0), expected, what)


@law
def a_token_may_have_any_width(rms_norm: Any) -> str:
    """(1, 7) over the root of (1 + 49) / 2 = 25."""
    return apart(rms_norm(np.array([[1.0, 7.0]]), np.ones(2), 0.0), [[0.2, 1.4]], "of (1, 7)")


@law
def many_axes_may_lie_before(rms_norm: Any) -> str:
    """Two items of three tokens of width 5, token by token, and one token alone."""
    x, scale = draw(2, 3, 5, seed=1), draw(5, seed=2)
    expected = np.zeros(x.shape)
    for at in np.ndindex(2, 3):
        expected[at] = x[at] / np.sqrt(x[at] @ x[at] / 5 + 0.25) * scale
    return apart(
        rms_norm(x.copy(), scale.copy(), 0.25), expected, "of an array (2, 3, 5) with epsilon = 1/4"
    ) or apart(
        rms_norm(x[1, 2].copy(), scale.copy(), 0.25), expected[1, 2], "of an array (5,) with epsilon = 1/4"
    )


@law
def the_stream_stays(rms_norm: Any) -> str:
    """What comes in is needed once more: it is left as it was."""
    return changed(lambda x, scale: rms_norm(x, scale, 0.0), x=draw(3, 4, seed=1), scale=draw(4, seed=2))


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
    x = np.arange(1.0, 13.0).reshape(3, 4)
    what = "of tokens 1 2 3 4, 5 6 7 8 and 9 10 11 12, with an attention and an MLP that give zeros"
    return apart(block(x.copy(), _zero, _zero, _centred, _centred), x, what)


@law
def the_mlp_hears_what_attention_said(block: Any) -> str:
    """1, and twice it, is 3; 3, and its square, is 12."""
    found = block(np.ones((1, 4)), lambda x: 2 * x, lambda x: x * x, _same, _same)
    return apart(found, np.full((1, 4), 12.0), "of 1, with an attention that doubles and an MLP that squares")


@law
def attention_gets_all_tokens(block: Any) -> str:
    """Tokens 1 and 3, with an attention that gives each their mean, 2, become 3 and 5."""
    found = block(np.array([[1.0], [3.0]]), lambda x: 0 * x + x.mean(0), _zero, _same, _same)
    return apart(found, [[3.0], [5.0]], "of tokens 1 and 3, with an attention that gives their mean")


@law
def each_part_has_its_norm(block: Any) -> str:
    """With norms that give 1 and 10, 5 becomes 5 + 2 * 1 + 3 * 10 = 37."""
    x = np.full((1, 4), 5.0)
    given = (lambda x: 2 * x, lambda x: 3 * x, lambda x: 0 * x + 1, lambda x: 0 * x + 10)
    return apart(block(x, *given), np.full((1, 4), 37.0), "of 5, with norms that give 1 and 10")


@law
def what_came_in_stays(block: Any) -> str:
    """The stream that comes in is not the place for what parts give."""
    return changed(lambda x: block(x, _same, _same, _centred, _centred), x=draw(3, 4, seed=1))


# ---- halves ----


def _scores(w_q: Any, w_k: Any, *, interleaved: bool) -> Any:
    """The scores (H, L, L) of drawn tokens."""
    x, rotary = draw(5, 3, seed=1), Rotary(interleaved=interleaved)
    q, k = (np.moveaxis(np.tensordot(x, w, 1), 0, 1) for w in (w_q, w_k))
    q, k = rotary.both(q, k, np.arange(5))
    return q @ np.swapaxes(k, -1, -2)


@law
def the_pairs_are_where_they_are_said_to_be(halves: Any) -> str:
    """Entries 0 to 5 are pairs (0, 1), (2, 3), (4, 5): the first of each come first, 0 2 4 1 3 5."""
    found = halves(np.tile(np.arange(6.0), (3, 1, 1)))
    return apart(found, np.tile([0.0, 2, 4, 1, 3, 5], (3, 1, 1)), "of entries 0 1 2 3 4 5 in one head")


@law
def heads_stay_apart(halves: Any) -> str:
    """What was in head h is in head h: 20 to 25 in head 2."""
    w = np.tile(10 * np.arange(3.0)[:, None] + np.arange(6), (2, 1, 1))
    expected = w[..., [0, 2, 4, 1, 3, 5]]
    return apart(halves(w), expected, "of heads 0 1 2 3 4 5, 10 11 12 13 14 15 and 20 21 22 23 24 25")


@law
def scores_stay(halves: Any) -> str:
    """Entries 0 to 7 are 0 2 4 6 1 3 5 7, and turned half a head apart they give the scores that they gave side by side."""
    if found := apart(
        halves(np.arange(8.0).reshape(1, 1, 8)), [[[0.0, 2, 4, 6, 1, 3, 5, 7]]], "of entries 0 1 2 3 4 5 6 7"
    ):
        return found
    w_q, w_k = draw(3, 2, 8, seed=2), draw(3, 2, 8, seed=3)
    expected = _scores(w_q, w_k, interleaved=True)
    both = np.asarray(halves(w_q)), np.asarray(halves(w_k))
    return apart(_scores(*both, interleaved=False), expected, "the scores of five tokens")


@law
def weights_stay(halves: Any) -> str:
    """The map that comes in is left as it was, and a new one returned."""
    return changed(halves, w=draw(3, 2, 8, seed=2))


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


def _moved(w: Any) -> Any:
    w[:] = np.concatenate([w[..., 0::2], w[..., 1::2]], axis=-1)
    return w


def _normed(x: Any, scale: Any, epsilon: float) -> Any:
    x /= np.sqrt(_root(x) ** 2 + epsilon)
    return x * scale


def _block(x: Any, attention: Any, mlp: Any, norm_1: Any, norm_2: Any) -> Any:
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))


def _added(x: Any, attention: Any, mlp: Any, norm_1: Any, norm_2: Any) -> Any:
    x += attention(norm_1(x))
    x += mlp(norm_2(x))
    return x


EXERCISES = (
    Exercise(
        (
            the_mean_stays,
            epsilon_is_under_the_root,
            tokens_are_apart,
            the_scale_multiplies,
            a_token_may_have_any_width,
            many_axes_may_lie_before,
            the_stream_stays,
        ),
        {
            "the_mean_stays": _layer_norm,
            "epsilon_is_under_the_root": lambda x, scale, epsilon: x / (_root(x) + epsilon) * scale,
            "tokens_are_apart": lambda x, scale, epsilon: x / np.sqrt((x * x).mean() + epsilon) * scale,
            "the_scale_multiplies": lambda x, scale, epsilon: x / np.sqrt(_root(x) ** 2 + epsilon),
            "a_token_may_have_any_width": lambda x, scale, epsilon: (
                x / np.sqrt((x * x).sum(-1, keepdims=True) / 4 + epsilon) * scale
            ),
            "many_axes_may_lie_before": lambda x, scale, epsilon: (
                x / np.sqrt((x * x).mean(min(x.ndim - 1, 1), keepdims=True) + epsilon) * scale
            ),
            "the_stream_stays": _normed,
        },
    ),
    Exercise(
        (
            what_nobody_changes_goes_through,
            the_mlp_hears_what_attention_said,
            attention_gets_all_tokens,
            each_part_has_its_norm,
            what_came_in_stays,
        ),
        {
            "what_nobody_changes_goes_through": lambda x, attention, mlp, norm_1, norm_2: mlp(
                norm_2(attention(norm_1(x)))
            ),
            "the_mlp_hears_what_attention_said": lambda x, attention, mlp, norm_1, norm_2: (
                x + attention(norm_1(x)) + mlp(norm_2(x))
            ),
            "attention_gets_all_tokens": lambda x, *parts: np.concatenate(
                [_block(row[None], *parts) for row in x]
            ),
            "each_part_has_its_norm": lambda x, attention, mlp, norm_1, norm_2: _block(
                x, attention, mlp, norm_1, norm_1
            ),
            "what_came_in_stays": _added,
        },
    ),
    Exercise(
        (the_pairs_are_where_they_are_said_to_be, heads_stay_apart, scores_stay, weights_stay),
        {
            "the_pairs_are_where_they_are_said_to_be": _back,
            "heads_stay_apart": _all_heads_together,
            "scores_stay": lambda w: w[..., [0, 2, 4, 1, 3, 5]],
            "weights_stay": _moved,
        },
    ),
)
