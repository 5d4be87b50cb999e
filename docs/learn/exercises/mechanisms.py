"""Exercises of the chapter on the mechanisms of today."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.blocks import BLOCKS
from exercises.given import changed, memory


def _attention(q: Any, k: Any, v: Any, width: int, top: Any = None) -> Any:
    scores = q @ k.T / width**0.5
    weights = np.exp(scores - (scores.max(-1, keepdims=True) if top is None else top(scores)))
    return weights / weights.sum(-1, keepdims=True) @ v


# ---- absorbed ----


@law
def queries_go_back_through_the_map(absorbed: Any) -> str:
    """q of four ones, w_uk of four log(2) / 2, latents 3, 2, 2: scores log(2) * 3, 2, 2, average 2.5, through w_uv 5 and 10."""
    c, w_uk, w_uv = np.array([[3.0], [2.0], [2.0]]), np.full((1, 4), np.log(2) / 2), np.array([[2.0, 4.0]])
    what = "of q = 1, 1, 1, 1, w_uk of four log(2) / 2, latents 3, 2, 2 and w_uv = 2, 4"
    return apart(absorbed(np.ones((1, 4)), c, w_uk, w_uv), [[5.0, 10.0]], what)


@law
def maps_of_the_identity_are_plain_attention(absorbed: Any) -> str:
    """If both maps are the identity, it is attention to the latents."""
    q, c = draw(3, 4, seed=1), draw(5, 4, seed=2)
    expected = _attention(q, c, c, 4)
    return apart(absorbed(q, c, np.eye(4), np.eye(4)), expected, "with the identity for both maps")


@law
def absorbed_is_expanded(absorbed: Any) -> str:
    """Queries that go back through the map give what keys and values made of the latents give."""
    q, c, w_uk, w_uv = draw(3, 9, seed=1), draw(5, 2, seed=2), draw(2, 9, seed=3), draw(2, 3, seed=4)
    expected = _attention(q, c @ w_uk, c @ w_uv, 9)
    return apart(absorbed(q, c, w_uk, w_uv), expected, "beside heads of width 9 made of latents of width 2")


@law
def scores_may_be_large(absorbed: Any) -> str:
    """Of latents 2000, 4, 0 and maps of 1 the query 1 reads 2000, the query -1 reads 0."""
    one = np.ones((1, 1))
    out = absorbed(np.array([[1.0], [-1.0]]), np.array([[2000.0], [4.0], [-100.0]]), one, one.copy())
    return apart(out, [[2000.0], [-100.0]], "of queries 1 and -1, latents 2000, 4, -100 and maps of 1")


@law
def no_keys_and_no_values_are_made(absorbed: Any) -> str:
    """4096 latents of one number and heads 256 wide: keys would take 8 MiB, scores and latents take 32 KiB."""
    given = draw(1, 256, seed=1), draw(4096, 1, seed=2), draw(1, 256, seed=3), draw(1, 256, seed=4)
    taken = memory(absorbed, *given) / 2**20
    what = (
        f"of 4096 latents of one number with heads 256 wide {taken:.0f} MiB were taken at a time, as much as"
    )
    return (
        f"{what} their keys or values take; the query can go through the map, and the average"
        if taken > 4
        else ""
    )


@law
def latents_stay(absorbed: Any) -> str:
    """What comes in is left as it was."""
    q, c, w_uk, w_uv = draw(3, 4, seed=1), draw(5, 2, seed=2), draw(2, 4, seed=3), draw(2, 3, seed=4)
    return changed(absorbed, q=q, c=c, w_uk=w_uk, w_uv=w_uv)


def _absorbed(q: Any, c: Any, w_uk: Any, w_uv: Any, scale: float | None = None, top: Any = None) -> Any:
    """Right, unless it is given what is wrong."""
    scores = q @ w_uk.T @ c.T * (q.shape[1] ** -0.5 if scale is None else scale)
    powers = np.exp(scores - (scores.max(-1, keepdims=True) if top is None else top(scores)))
    return powers / powers.sum(-1, keepdims=True) @ c @ w_uv


def _scaled_first(q: Any, c: Any, w_uk: Any, w_uv: Any) -> Any:
    q *= q.shape[1] ** -0.5
    return _absorbed(q, c, w_uk, w_uv, scale=1.0)


# ---- differential ----


def _halves() -> tuple[Any, Any, Any]:
    return draw(3, 8, seed=1), draw(5, 8, seed=2), draw(5, 2, seed=3)


@law
def nothing_taken_out_is_attention(differential: Any) -> str:
    """With lam = 0 it is the attention of the first halves."""
    q, k, v = _halves()
    expected = _attention(q[:, :4], k[:, :4], v, 4)
    return apart(differential(q, k, v, 0.0), expected, "with lam = 0")


@law
def weights_sum_to_what_is_left(differential: Any) -> str:
    """Two rows that each sum to 1, with lam = 1/4: values of one give 3/4."""
    q, k, _ = _halves()
    return apart(
        differential(q, k, np.ones((5, 2)), 0.25), np.full((3, 2), 0.75), "with lam = 1/4 and values of one"
    )


@law
def the_second_half_is_taken_from_the_first(differential: Any) -> str:
    """It is the first attention less lam times the second."""
    q, k, v = _halves()
    first, second = (_attention(q[:, half], k[:, half], v, 4) for half in (slice(4), slice(4, 8)))
    expected = first - 0.25 * second
    return apart(differential(q, k, v, 0.25), expected, "with lam = 1/4")


@law
def noise_is_taken_out(differential: Any) -> str:
    """Width 4 a half, shares 4, 1, 1, 2 over 8 and 1/4 each, lam = 1/2 and values of 8: 4 - 1, 1 - 1, 1 - 1, 2 - 1."""
    k = np.zeros((4, 8))
    k[:, :4] = np.log(2) / 2 * np.array([[2.0], [0.0], [0.0], [1.0]])
    what = "of q of ones, k = log(2) / 2 * 2, 0, 0, 1 in the first four numbers, 0 in the others, v = 8 * eye(4), lam = 1/2"
    return apart(differential(np.ones((1, 8)), k, 8 * np.eye(4), 0.5), [[3.0, 0.0, 0.0, 1.0]], what)


@law
def halves_may_be_large(differential: Any) -> str:
    """k = 2000, 0, 0 in one half and 0 in the other, values 8, 4, 0, lam = 1/2, queries 1 and -1: 8 - 2 and 2 - 2, or 4 - 4 and 4 - 1."""
    for half, expected in ((0, [[6.0], [0.0]]), (1, [[0.0], [3.0]])):
        q, k = np.zeros((2, 2)), np.zeros((3, 2))
        q[:, half], k[0, half] = (1, -1), 2000
        what = f"of queries 1 and -1, k = 2000, 0, 0 in half {half}, 0 in the other, values 8, 4, 0 and lam = 1/2"
        if found := apart(differential(q, k, np.array([[8.0], [4.0], [0.0]]), 0.5), expected, what):
            return found
    return ""


@law
def halves_may_have_any_width(differential: Any) -> str:
    """Halves of width 3 and lam = 2, beside two attentions."""
    q, k, v = draw(3, 6, seed=1), draw(5, 6, seed=2), draw(5, 4, seed=3)
    first, second = (_attention(q[:, half], k[:, half], v, 3) for half in (slice(3), slice(3, 6)))
    expected = first - 2 * second
    return apart(differential(q, k, v, 2.0), expected, "of halves of width 3 with lam = 2")


@law
def queries_and_keys_stay(differential: Any) -> str:
    """What comes in is left as it was."""
    q, k, v = _halves()
    return changed(lambda *given: differential(*given, 0.25), q=q, k=k, v=v)


def _differential(q: Any, k: Any, v: Any, lam: float, width: int = 0, top: Any = None) -> Any:
    """Right, unless it is given what is wrong."""
    width = width or q.shape[1] // 2
    first, second = (
        _attention(q[:, half], k[:, half], v, width, top) for half in (slice(width), slice(width, None))
    )
    return first - lam * second


def _taken_out(q: Any, k: Any, v: Any, lam: float) -> Any:
    out = _differential(q, k, v, lam)
    v *= lam
    return out


EXERCISES = (
    Exercise(
        (
            queries_go_back_through_the_map,
            maps_of_the_identity_are_plain_attention,
            absorbed_is_expanded,
            scores_may_be_large,
            no_keys_and_no_values_are_made,
            latents_stay,
        ),
        {
            "queries_go_back_through_the_map": lambda q, c, w_uk, w_uv: _absorbed(
                q, c, w_uk, w_uv, scale=1.0
            ),
            "maps_of_the_identity_are_plain_attention": lambda q, *maps: _absorbed(0 * q + q[:1], *maps),
            "absorbed_is_expanded": lambda q, c, w_uk, w_uv: _absorbed(q, c, w_uk, w_uv, scale=0.5),
            "scores_may_be_large": lambda q, c, w_uk, w_uv: _absorbed(q, c, w_uk, w_uv, top=np.max),
            "no_keys_and_no_values_are_made": lambda q, c, w_uk, w_uv: _attention(
                q, c @ w_uk, c @ w_uv, q.shape[1]
            ),
            "latents_stay": _scaled_first,
        },
    ),
    Exercise(
        (
            noise_is_taken_out,
            nothing_taken_out_is_attention,
            weights_sum_to_what_is_left,
            the_second_half_is_taken_from_the_first,
            halves_may_be_large,
            halves_may_have_any_width,
            queries_and_keys_stay,
        ),
        {
            "noise_is_taken_out": lambda q, k, v, lam: _attention(q[:, :4], k[:, :4], v, 4),
            "nothing_taken_out_is_attention": lambda q, k, v, lam: _differential(0 * q + q[:1], k, v, lam),
            "weights_sum_to_what_is_left": lambda q, k, v, lam: _differential(
                q, k, v, max(lam, 0.5) * (lam > 0)
            ),
            "the_second_half_is_taken_from_the_first": lambda q, k, v, lam: (
                _attention(q[:, :4], k[:, :4], v, 4) - lam * v.mean(0)
            ),
            "halves_may_be_large": lambda q, k, v, lam: _differential(q, k, v, lam, top=np.max),
            "halves_may_have_any_width": lambda q, k, v, lam: _differential(q, k, v, min(lam, 1)),
            "queries_and_keys_stay": _taken_out,
        },
    ),
    BLOCKS,
)
