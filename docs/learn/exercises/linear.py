"""Exercises of the chapter on linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law


def _features(*shape: int, seed: int) -> Any:
    """Positive numbers."""
    return np.exp(draw(*shape, seed=seed) / 2)


def _units(*rows: list[float]) -> Any:
    found = np.array(rows)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


# ---- linear ----


@law
def the_future_is_hidden(linear: Any) -> str:
    """Another last token changes no earlier row."""
    q, k, v = _features(4, 3, seed=1), _features(4, 3, seed=2), draw(4, 2, seed=3)
    last = np.array([[0.0], [0.0], [0.0], [1.0]])
    other = linear(q + last, k + last, v + last)
    return apart(other[:3], np.asarray(linear(q, k, v))[:3], "with another token 3, before it")


@law
def weights_sum_to_one(linear: Any) -> str:
    """Values of one give one in the last row."""
    q, k = _features(4, 3, seed=1), _features(4, 3, seed=2)
    return apart(linear(q, k, np.ones((4, 2)))[3], np.ones(2), "with values of one, in row 3")


@law
def a_token_sees_itself(linear: Any) -> str:
    """The first token, which sees itself alone, gets its own value."""
    q, k, v = _features(4, 3, seed=1), _features(4, 3, seed=2), draw(4, 2, seed=3)
    return apart(np.asarray(linear(q, k, v))[0], v[0], "in row 0, whose one key is its own")


def _loop_that_reads_first(q: Any, k: Any, v: Any) -> Any:
    s, z, out = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1]), []
    for q_t, k_t, v_t in zip(q, k, v, strict=True):
        out.append(q_t @ s / (q_t @ z + 1e-12))
        s, z = s + np.outer(k_t, v_t), z + k_t
    return np.stack(out)


# ---- delta ----


def _read(state: Any, key: Any) -> Any:
    return key @ np.asarray(state)


@law
def what_is_written_is_read(delta: Any) -> str:
    """One token with beta = 1: under its key lies its value."""
    k, v = _units([3.0, 4.0, 0.0]), np.array([[5.0, 7.0]])
    return apart(_read(delta(k, v, np.ones(1)), k[0]), v[0], "under a key with which [5 7] was written")


@law
def an_old_value_is_replaced(delta: Any) -> str:
    """The same key with beta = 1: the last value, not the sum."""
    k, v = _units([3.0, 4.0], [3.0, 4.0]), np.array([[8.0], [2.0]])
    return apart(_read(delta(k, v, np.ones(2)), k[0]), [2.0], "under a key with which 8 was written, then 2")


@law
def a_key_at_right_angles_is_left_alone(delta: Any) -> str:
    """What lies under a key stays if others are written at right angles to it."""
    k, v = _units([1.0, 0.0], [0.0, 1.0]), np.array([[8.0], [2.0]])
    found = _read(delta(k, v, np.ones(2)), np.eye(2))
    return apart(found, [[8.0], [2.0]], "8 under (1, 0), then 2 under (0, 1)")


@law
def beta_is_how_much_is_replaced(delta: Any) -> str:
    """8 with beta = 1, then 2 with beta = 1/2: half the way, 5."""
    k, v = _units([1.0, 0.0], [1.0, 0.0]), np.array([[8.0], [2.0]])
    found = _read(delta(k, v, np.array([1.0, 0.5])), k[0])
    return apart(found, [5.0], "8 with beta = 1, then 2 with beta = 1/2 under the same key")


def _fading(k: Any, v: Any, beta: Any) -> Any:
    s = np.zeros((k.shape[1], v.shape[1]))
    for k_t, v_t, b in zip(k, v, beta, strict=True):
        s = (1 - b) * s + b * np.outer(k_t, v_t)
    return s


def _all_of_it(k: Any, v: Any, beta: Any) -> Any:
    s = np.zeros((k.shape[1], v.shape[1]))
    for k_t, v_t in zip(k, v, strict=True):
        s = s + np.outer(k_t, v_t - k_t @ s)
    return s


# ---- chunk ----


def _tokens() -> tuple[Any, Any, Any, Any]:
    q, k, v = (draw(4, 2, seed=seed) for seed in (1, 2, 3))
    return q, k, v, draw(2, 2, seed=4)


@law
def a_first_chunk_is_the_parallel_form(chunk: Any) -> str:
    """With a state of zeros, row t is the sum of (q_t . k_j) v_j over j <= t."""
    q, k, v, _ = _tokens()
    expected = np.stack([sum((q[t] @ k[j]) * v[j] for j in range(t + 1)) for t in range(4)])
    return apart(chunk(q, k, v, np.zeros((2, 2)))[0], expected, "with a state of zeros")


@law
def the_state_is_read(chunk: Any) -> str:
    """With values of zero, row t is what q_t reads in the state that came in."""
    q, k, v, state = _tokens()
    return apart(chunk(q, k, 0 * v, state)[0], q @ state, "with values of zero and a state")


@law
def the_state_goes_on(chunk: Any) -> str:
    """The state that goes out is the one that came in, and what was written."""
    q, k, v, state = _tokens()
    expected = state + sum(np.outer(k[j], v[j]) for j in range(4))
    return apart(chunk(q, k, v, state)[1], expected, "the state after the chunk")


EXERCISES = (
    Exercise(
        (the_future_is_hidden, weights_sum_to_one, a_token_sees_itself),
        {
            "the_future_is_hidden": lambda q, k, v: q @ (k.T @ v) / (q @ k.sum(0))[:, None],
            "weights_sum_to_one": lambda q, k, v: np.tril(q @ k.T) @ v,
            "a_token_sees_itself": _loop_that_reads_first,
        },
    ),
    Exercise(
        (
            what_is_written_is_read,
            an_old_value_is_replaced,
            a_key_at_right_angles_is_left_alone,
            beta_is_how_much_is_replaced,
        ),
        {
            "what_is_written_is_read": lambda k, v, beta: (beta[:, None] * v).T @ k,
            "an_old_value_is_replaced": lambda k, v, beta: k.T @ (beta[:, None] * v),
            "a_key_at_right_angles_is_left_alone": _fading,
            "beta_is_how_much_is_replaced": _all_of_it,
        },
    ),
    Exercise(
        (a_first_chunk_is_the_parallel_form, the_state_is_read, the_state_goes_on),
        {
            "a_first_chunk_is_the_parallel_form": lambda q, k, v, state: (
                q @ (state + k.T @ v),
                state + k.T @ v,
            ),
            "the_state_is_read": lambda q, k, v, state: (np.tril(q @ k.T) @ v, state + k.T @ v),
            "the_state_goes_on": lambda q, k, v, state: (q @ state + np.tril(q @ k.T) @ v, k.T @ v),
        },
    ),
)
