"""The exercise of the chapter on linear attention about the delta rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed


def _units(*rows: list[float]) -> Any:
    found = np.array(rows)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def _read(state: Any, key: Any) -> Any:
    return key @ np.asarray(state)


@law
def what_is_written_is_read(delta: Any) -> str:
    """[5 7] under (0.6, 0.8, 0) with beta = 1 are the rows 0.6 * [5 7], 0.8 * [5 7] and zeros."""
    found = delta(np.array([[0.6, 0.8, 0.0]]), np.array([[5.0, 7.0]]), np.ones(1))
    return apart(found, [[3.0, 4.2], [4.0, 5.6], [0.0, 0.0]], "the state with [5 7] under (0.6, 0.8, 0)")


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


@law
def keys_at_an_angle_mix(delta: Any) -> str:
    """10 under (1, 0), then 3 under (0.6, 0.8), where 6 is read: 10 - 3 * 0.6 = 8.2 and -3 * 0.8 = -2.4."""
    found = delta(np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[10.0], [3.0]]), np.ones(2))
    return apart(found, [[8.2], [-2.4]], "the state with 10 under (1, 0), then 3 under (0.6, 0.8)")


@law
def every_token_is_written(delta: Any) -> str:
    """Five tokens of four features and values of three numbers, beside a loop over every number."""
    k, v, beta = _units(*draw(5, 4, seed=1)), draw(5, 3, seed=2), np.array([1.0, 0.5, 0.25, 0.75, 0.125])
    s = np.zeros((4, 3))
    for t, e in np.ndindex(5, 3):
        s[:, e] += beta[t] * k[t] * (v[t, e] - k[t] @ s[:, e])
    return apart(delta(k, v, beta), s, "the state of five tokens of four features, values of three numbers")


@law
def keys_and_values_stay(delta: Any) -> str:
    """What comes in is not the place for differences."""
    return changed(delta, k=np.eye(2)[[0, 0]], v=np.array([[8.0], [2.0]]), beta=np.ones(2))


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


def _delta(k: Any, v: Any, beta: Any, read: Any = lambda s, k_t: k_t @ s) -> Any:
    """Right, unless it is given a way to read that is wrong."""
    s = np.zeros((k.shape[1], v.shape[1]))
    for k_t, v_t, b in zip(k, v, beta, strict=True):
        s = s + b * np.outer(k_t, v_t - read(s, k_t))
    return s


def _subtracted(k: Any, v: Any, beta: Any) -> Any:
    s = np.zeros((k.shape[1], v.shape[1]))
    for k_t, v_t, b in zip(k, v, beta, strict=True):
        v_t -= k_t @ s
        s = s + b * np.outer(k_t, v_t)
    return s


DELTA = Exercise(
    (
        what_is_written_is_read,
        an_old_value_is_replaced,
        a_key_at_right_angles_is_left_alone,
        beta_is_how_much_is_replaced,
        keys_at_an_angle_mix,
        every_token_is_written,
        keys_and_values_stay,
    ),
    {
        "what_is_written_is_read": lambda k, v, beta: (beta[:, None] * v).T @ k,
        "an_old_value_is_replaced": lambda k, v, beta: k.T @ (beta[:, None] * v),
        "a_key_at_right_angles_is_left_alone": _fading,
        "beta_is_how_much_is_replaced": _all_of_it,
        "keys_at_an_angle_mix": lambda k, v, beta: np.abs(_delta(k, v, beta)),
        "every_token_is_written": lambda k, v, beta: _delta(k, v, beta, lambda s, k_t: (k_t @ s).sum()),
        "keys_and_values_stay": _subtracted,
    },
)
