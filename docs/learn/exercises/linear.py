"""Exercises of the chapter on linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.delta import DELTA
from exercises.given import changed


def _features(*shape: int, seed: int) -> Any:
    """Positive numbers."""
    return np.exp(draw(*shape, seed=seed) / 2)


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


#: Three tokens, whose products are 2; 3 and 5; 3, 7 and 6.
Q, K, V = (
    np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]]),
    np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 2.0]]),
    np.array([[8.0], [16.0], [0.0]]),
)
TOKENS = "of queries (1, 1), (1, 2), (2, 1), keys (1, 1), (3, 1), (2, 2) and values 8, 16, 0"


@law
def weights_are_products(linear: Any) -> str:
    """Of products 2; 3, 5; 3, 7, 6 and values 8, 16, 0: 8, (24 + 80) / 8 = 13 and (24 + 112 + 0) / 16 = 8.5."""
    return apart(linear(Q.copy(), K.copy(), V.copy()), [[8.0], [13.0], [8.5]], TOKENS)


@law
def a_common_factor_is_nothing(linear: Any) -> str:
    """Queries and keys of a thousandth give the same: above and below the line stands the same factor."""
    found = linear(Q / 1024, K / 1024, V.copy())
    return apart(found, [[8.0], [13.0], [8.5]], f"{TOKENS}, with queries and keys divided by 1024")


@law
def texts_and_states_may_have_any_size(linear: Any) -> str:
    """Six tokens of three features and values of four numbers, beside a loop over rows and keys."""
    q, k, v = _features(6, 3, seed=1), _features(6, 3, seed=2), draw(6, 4, seed=3)
    weights = [[q[t] @ k[j] for j in range(t + 1)] for t in range(6)]
    expected = [sum(w * v[j] for j, w in enumerate(row)) / sum(row) for row in weights]
    return apart(linear(q, k, v), expected, "of six tokens of three features and values of four numbers")


@law
def tokens_stay_as_they_were(linear: Any) -> str:
    """What comes in is not the place for sums."""
    return changed(linear, q=Q.copy(), k=K.copy(), v=V.copy())


def _loop_that_reads_first(q: Any, k: Any, v: Any) -> Any:
    s, z, out = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1]), []
    for q_t, k_t, v_t in zip(q, k, v, strict=True):
        out.append(q_t @ s / (q_t @ z + 1e-12))
        s, z = s + np.outer(k_t, v_t), z + k_t
    return np.stack(out)


def _parallel(q: Any, k: Any, v: Any, epsilon: float = 0.0) -> Any:
    weights = np.tril(q @ k.T)
    return weights @ v / (weights.sum(-1, keepdims=True) + epsilon)


def _summed(q: Any, k: Any, v: Any) -> Any:
    out = _parallel(q, k, v)
    k[:] = np.cumsum(k, axis=0)
    return out


# ---- chunk ----


def _two(chunk: Any, v: tuple[float, float], state: float) -> Any:
    """Queries 1, 2 and keys 3, 4 of one number."""
    q, k = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    return chunk(q, k, np.array(v)[:, None], np.array([[state]]))


@law
def a_first_chunk_is_the_parallel_form(chunk: Any) -> str:
    """Queries 1, 2, keys 3, 4, values 5, 6 and a state of 0: 1 * 3 * 5 = 15 and 2 * (3 * 5 + 4 * 6) = 78."""
    found = _two(chunk, (5.0, 6.0), 0.0)[0]
    return apart(found, [[15.0], [78.0]], "of queries 1, 2, keys 3, 4, values 5, 6 and a state of 0")


@law
def the_state_is_read(chunk: Any) -> str:
    """With values of 0, the queries 1 and 2 read 10 and 20 in a state of 10."""
    return apart(
        _two(chunk, (0.0, 0.0), 10.0)[0], [[10.0], [20.0]], "of queries 1, 2, values of 0 and a state of 10"
    )


@law
def the_state_goes_on(chunk: Any) -> str:
    """Keys 3, 4 and values 5, 6 behind a state of 10: 10 + 15 + 24 = 49."""
    found = _two(chunk, (5.0, 6.0), 10.0)[1]
    return apart(found, [[49.0]], "the state after keys 3, 4 and values 5, 6, which was 10 before")


@law
def the_scale_is_1(chunk: Any) -> str:
    """A query and key of four ones and a value of 5: 4 * 5 = 20."""
    found = chunk(np.ones((1, 4)), np.ones((1, 4)), np.array([[5.0]]), np.zeros((4, 1)))[0]
    return apart(found, [[20.0]], "of a query and a key of four ones, a value of 5 and a state of zeros")


@law
def chunks_may_have_any_size(chunk: Any) -> str:
    """Chunks of 5, 1 and 3 tokens of three features, values of two numbers, beside a loop over tokens."""
    for size in (5, 1, 3):
        q, k, v = draw(size, 3, seed=1), draw(size, 3, seed=2), draw(size, 2, seed=3)
        state, rows = draw(3, 2, seed=4), []
        out, after = chunk(q, k, v, state.copy())
        for q_t, k_t, v_t in zip(q, k, v, strict=True):
            state = state + np.outer(k_t, v_t)
            rows.append(q_t @ state)
        what = f"of {size} tokens of three features, values of two numbers"
        if found := apart(out, rows, what) or apart(after, state, f"the state {what}"):
            return found
    return ""


@law
def the_old_state_stays(chunk: Any) -> str:
    """The state that comes in is left as it was, and a new one returned."""
    q, k, v, state = draw(4, 3, seed=1), draw(4, 3, seed=2), draw(4, 2, seed=3), draw(3, 2, seed=4)
    return changed(chunk, q=q, k=k, v=v, state=state)


def _written_into(q: Any, k: Any, v: Any, state: Any) -> Any:
    out = q @ state + np.tril(q @ k.T) @ v
    state += k.T @ v
    return out, state


EXERCISES = (
    Exercise(
        (
            the_future_is_hidden,
            weights_sum_to_one,
            a_token_sees_itself,
            weights_are_products,
            a_common_factor_is_nothing,
            texts_and_states_may_have_any_size,
            tokens_stay_as_they_were,
        ),
        {
            "the_future_is_hidden": lambda q, k, v: q @ (k.T @ v) / (q @ k.sum(0))[:, None],
            "weights_sum_to_one": lambda q, k, v: np.tril(q @ k.T) @ v,
            "a_token_sees_itself": _loop_that_reads_first,
            "weights_are_products": lambda q, k, v: _parallel(np.exp(q), np.exp(k), v),
            "a_common_factor_is_nothing": lambda q, k, v: _parallel(q, k, v, epsilon=1e-9),
            "texts_and_states_may_have_any_size": lambda q, k, v: _parallel(q[:4], k[:4], v[:4]),
            "tokens_stay_as_they_were": _summed,
        },
    ),
    DELTA,
    Exercise(
        (
            a_first_chunk_is_the_parallel_form,
            the_state_is_read,
            the_state_goes_on,
            the_scale_is_1,
            chunks_may_have_any_size,
            the_old_state_stays,
        ),
        {
            "a_first_chunk_is_the_parallel_form": lambda q, k, v, state: (
                q @ (state + k.T @ v),
                state + k.T @ v,
            ),
            "the_state_is_read": lambda q, k, v, state: (np.tril(q @ k.T) @ v, state + k.T @ v),
            "the_state_goes_on": lambda q, k, v, state: (q @ state + np.tril(q @ k.T) @ v, k.T @ v),
            "the_scale_is_1": lambda q, k, v, state: (
                q @ state + np.tril(q @ k.T) @ v / q.shape[1] ** 0.5,
                state + k.T @ v,
            ),
            "chunks_may_have_any_size": lambda q, k, v, state: (
                q @ state + np.tril(q @ k.T) @ v,
                state + np.outer(k[0], v[0]) + np.outer(k[-1], v[-1]),
            ),
            "the_old_state_stays": _written_into,
        },
    ),
)
