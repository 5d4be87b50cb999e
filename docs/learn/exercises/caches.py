"""Exercises of the chapter on caches, and the law that its mistakes break."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

from polyattn.rotary import Rotary


def _causal(q: Any, k: Any, v: Any) -> Any:
    """The last rows of causal attention, of any number of queries."""
    n, count = q.shape[-2], k.shape[-2]
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    s = np.where(np.tri(n, count, count - n, dtype=bool), s, -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True) @ v


@law
def a_step_is_a_row_of_the_whole(step: Any) -> str:
    """The query of token t beside the keys 0 to t gets row t of the whole.

    `step(q, k, v)` has one query (B, H, 1, D), and t + 1 keys and values.
    """
    q, k, v = (draw(1, 2, 6, 8, seed=seed) for seed in (1, 2, 3))
    whole = _causal(q, k, v)
    for t in range(6):
        row = step(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1])
        if found := apart(row, whole[:, :, t : t + 1], f"token {t} beside {t + 1} keys"):
            return found
    return ""


# ---- exercise 1: bytes ----


@law
def keys_and_values_are_kept(cache_bytes: Any) -> str:
    """One token, one layer, one head of width 64, two bytes a number: 64 keys and 64 values are 256 bytes."""
    return apart(float(cache_bytes(1, 1, 64, 1, 2)), 256.0, "bytes of one token in one layer and head")


@law
def every_layer_keeps_its_own(cache_bytes: Any) -> str:
    """Thirty layers, three kv heads, 8192 tokens: 180 MiB."""
    what = "MiB of 30 layers, 3 kv heads and 8192 tokens"
    return apart(cache_bytes(30, 3, 64, 8192, 2) / 2**20, 180.0, what) or apart(
        cache_bytes(30, 3, 64, 8192, 4) / 2**20, 360.0, f"{what}, four bytes a number"
    )


# ---- exercise 2: the ring ----


def _floats(x: Any) -> Any:
    return np.asarray(x, np.float64)


@law
def slots_without_a_token_say_so(positions: Any) -> str:
    """After one token of four slots 0 has it, and the others -1."""
    return apart(_floats(positions(1, 4)), [0, -1, -1, -1], "after 1 token in 4 slots")


@law
def the_oldest_is_overwritten(positions: Any) -> str:
    """After six tokens tokens 4 and 5 stand where 0 and 1 stood."""
    return apart(_floats(positions(6, 4)), [4, 5, 2, 3], "after 6 tokens in 4 slots")


@law
def it_goes_round_and_round(positions: Any) -> str:
    """Position p stands in slot p mod capacity, after any number of tokens."""
    for length in (4, 11, 12, 1003):
        held = np.full(4, -1.0)
        for p in range(length):
            held[p % 4] = p
        if found := apart(_floats(positions(length, 4)), held, f"after {length} tokens in 4 slots"):
            return found
    return ""


def _once_round(length: int, capacity: int) -> Any:
    slot = np.arange(capacity)
    return np.where(slot + capacity < length, slot + capacity, np.where(slot < length, slot, -1))


# ---- exercise 3: a step ----

TURN = Rotary()


def _unturned(x: Any, positions: Any) -> Any:
    return x


def _pieces(step: Any, sizes: tuple[int, ...], turn: Any) -> str:
    q, k, v = (draw(7, 4, seed=seed) for seed in (1, 2, 3))
    whole = _causal(turn(q, np.arange(7)), turn(k, np.arange(7)), v)
    cache, start = (np.zeros((0, 4)), np.zeros((0, 4))), 0
    for n in sizes:
        new = slice(start, start + n)
        out, cache = step(q[new], k[new], v[new], cache, turn)
        where = f"token {start}" if n == 1 else f"tokens {start} to {start + n - 1} at once"
        if found := apart(out, whole[new], where):
            return found
        start += n
    return ""


@law
def each_token_sees_itself_and_all_before(step: Any) -> str:
    """Token by token, without positions: row t of causal attention."""
    return _pieces(step, (1, 1, 1, 1), _unturned)


@law
def tokens_that_come_together_are_causal(step: Any) -> str:
    """Three tokens at once behind four see the four, themselves, and none that is later."""
    return _pieces(step, (4, 3), _unturned)


@law
def positions_go_on(step: Any) -> str:
    """The token behind four others stands at position 4, for its query and for its key."""
    return _pieces(step, (4, 1, 2), TURN)


def _step(
    q: Any,
    k: Any,
    v: Any,
    cache: Any,
    turn: Any,
    *,
    anew: bool = False,
    full: bool = False,
    corner: bool = False,
) -> Any:
    n, before = len(q), len(cache[0])
    at = np.arange(n) + (0 if anew else before)
    keys, values = np.concatenate([cache[0], turn(k, at)]), np.concatenate([cache[1], v])
    s = turn(q, at) @ keys.T / np.sqrt(q.shape[-1])
    seen = np.tri(n, before + n, 0 if corner else before, dtype=bool) | full
    w = np.where(seen, np.exp(s), 0.0)
    return w / w.sum(-1, keepdims=True) @ values, (keys, values)


EXERCISES = (
    Exercise(
        (keys_and_values_are_kept, every_layer_keeps_its_own),
        {
            "keys_and_values_are_kept": lambda layers, kv_heads, width, tokens, item: (
                layers * kv_heads * width * tokens * item
            ),
            "every_layer_keeps_its_own": lambda layers, kv_heads, width, tokens, item: (
                2 * kv_heads * width * tokens * item
            ),
        },
    ),
    Exercise(
        (slots_without_a_token_say_so, the_oldest_is_overwritten, it_goes_round_and_round),
        {
            "slots_without_a_token_say_so": lambda length, capacity: (
                length - 1 - (length - 1 - np.arange(capacity)) % capacity
            ),
            "the_oldest_is_overwritten": lambda length, capacity: np.where(
                np.arange(capacity) < length, np.arange(capacity), -1
            ),
            "it_goes_round_and_round": _once_round,
        },
    ),
    Exercise(
        (each_token_sees_itself_and_all_before, tokens_that_come_together_are_causal, positions_go_on),
        {
            "each_token_sees_itself_and_all_before": lambda *given: _step(*given, corner=True),
            "tokens_that_come_together_are_causal": lambda *given: _step(*given, full=True),
            "positions_go_on": lambda *given: _step(*given, anew=True),
        },
    ),
)
