"""Exercises of the chapter on caches, and the law that its mistakes break."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed

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


@law
def every_number_is_a_factor(cache_bytes: Any) -> str:
    """3 layers, 2 kv heads of width 5, 7 tokens, one byte a number: 2 * 3 * 2 * 5 * 7 = 420."""
    what = "bytes of 3 layers, 2 kv heads of width 5 and 7 tokens, one byte a number"
    return apart(float(cache_bytes(3, 2, 5, 7, 1)), 420.0, what)


# ---- exercise 2: the ring ----


@law
def slots_without_a_token_say_so(positions: Any) -> str:
    """After one token of four slots 0 has it, and the others -1."""
    return apart(positions(1, 4), [0, -1, -1, -1], "after 1 token in 4 slots")


@law
def the_oldest_is_overwritten(positions: Any) -> str:
    """After six tokens tokens 4 and 5 stand where 0 and 1 stood."""
    return apart(positions(6, 4), [4, 5, 2, 3], "after 6 tokens in 4 slots")


@law
def it_goes_round_and_round(positions: Any) -> str:
    """Position p stands in slot p mod capacity, after any number of tokens."""
    for length in (4, 11, 12, 1003):
        held = np.full(4, -1.0)
        for p in range(length):
            held[p % 4] = p
        if found := apart(positions(length, 4), held, f"after {length} tokens in 4 slots"):
            return found
    return ""


@law
def there_may_be_any_number_of_slots(positions: Any) -> str:
    """After five tokens three slots hold 3, 4 and 2, one slot holds 4; after none there is none."""
    for length, capacity, held in (
        (5, 3, [3, 4, 2]),
        (5, 1, [4]),
        (5, 7, [0, 1, 2, 3, 4, -1, -1]),
        (0, 2, [-1, -1]),
    ):
        if found := apart(positions(length, capacity), held, f"after {length} tokens in {capacity} slots"):
            return found
    return ""


def _once_round(length: int, capacity: int) -> Any:
    slot = np.arange(capacity)
    return np.where(slot + capacity < length, slot + capacity, np.where(slot < length, slot, -1))


# ---- exercise 3: a step ----

ROTARY = Rotary()


def _turned(x: Any, positions: Any) -> Any:
    return ROTARY(x, np.asarray(positions))


def _unturned(x: Any, positions: Any) -> Any:
    return x


def _moved(x: Any, positions: Any) -> Any:
    return x + np.reshape(positions, (-1, 1))


def _columns(*them: tuple[float, ...]) -> list[Any]:
    return [np.array(numbers, float)[:, None] for numbers in them]


def _averages(step: Any, sizes: tuple[int, ...], what: str) -> str:
    cache, rows = tuple(_columns((), ())), []
    for new in np.split(np.array([[8.0], [4.0], [0.0]]), np.cumsum(sizes)[:-1]):
        out, cache = step(np.zeros_like(new), np.zeros_like(new), new, cache, _unturned)
        rows.append(out)
    return apart(np.concatenate(rows), [[8.0], [6.0], [4.0]], what)


def _pieces(step: Any, sizes: tuple[int, ...], turn: Any) -> str:
    q, k, v = (draw(7, 8, seed=seed) for seed in (1, 2, 3))
    whole = _causal(turn(q, np.arange(7)), turn(k, np.arange(7)), v)
    cache, start = (np.zeros((0, 8)), np.zeros((0, 8))), 0
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
    """Token by token, with scores of 0: 8, then (8 + 4) / 2 = 6, then (8 + 4 + 0) / 3 = 4."""
    return _averages(step, (1, 1, 1), "of values 8, 4, 0 and scores of 0, token by token, in three rows")


@law
def tokens_that_come_together_are_causal(step: Any) -> str:
    """Behind a value 8 come 4 and 0 at once, with scores of 0: (8 + 4) / 2 = 6 and (8 + 4 + 0) / 3 = 4."""
    return _averages(step, (1, 2), "of values 8, then 4 and 0 at once, and scores of 0, in three rows")


@law
def scores_are_divided(step: Any) -> str:
    """Of width 4, q = 1 and k = log(2) / 2 * 3, 2, 2 have the scores log(2) * 3, 2, 2: 8/2 + 4/4 + 0/4 = 5."""
    q, k, v, old_k, old_v = (np.repeat(x, 4, 1) for x in _columns((1,), (2,), (0,), (3, 2), (8, 4)))
    half = np.log(2) / 2
    out, _ = step(q, half * k, v, (half * old_k, old_v), _unturned)
    what = "of width 4, a query 1, keys log(2) / 2 * 3, 2, 2 and values 8, 4, 0, two of them in the cache"
    return apart(out, np.full((1, 4), 5.0), what) or _pieces(step, (1, 1, 4), _unturned)


@law
def scores_may_be_large(step: Any) -> str:
    """Of keys 2000, 0, 0, 0 and values 8, 4, 0, 2 the third query, 1, reads 8, the last, -1, reads (4 + 0 + 2) / 3 = 2."""
    k, v, old_k, old_v, q = _columns((0, 0), (0, 2), (2000, 0), (8, 4), (1, -1))
    out, _ = step(q, k, v, (old_k, old_v), _unturned)
    what = "of keys 2000, 0 and values 8, 4 in the cache, 0, 0 and 0, 2 behind them, and queries 1 and -1"
    return apart(out, [[8.0], [2.0]], what)


@law
def what_comes_later_is_below_all_scores(step: Any) -> str:
    """Behind a key -2000 come -2000 and 0: the first of both sees halves, (8 + 4) / 2 = 6, and nothing of what comes later."""
    k, v, old_k, old_v, q = _columns((-2000, 0), (4, 2), (-2000,), (8,), (1, 1))
    out, _ = step(q, k, v, (old_k, old_v), _unturned)
    what = "of a key -2000 and a value 8 in the cache, -2000, 0 and 4, 2 behind them, and queries of 1"
    return apart(out, [[6.0], [2.0]], what)


@law
def keys_are_turned_when_they_come(step: Any) -> str:
    """If to turn is to add the position, keys 5 and 7 behind one in the cache are kept as 5 + 1 = 6 and 7 + 2 = 9."""
    q, k, v, old_k, old_v = _columns((0, 0), (5, 7), (4, 0), (3,), (8,))
    _, (keys, values) = step(q, k, v, (old_k, old_v), _moved)
    behind = "behind a key 3 and a value 8 in the cache"
    return apart(
        keys, [[3.0], [6.0], [9.0]], f"keys of the cache, where turn adds the position, of 5 and 7 {behind}"
    ) or apart(values, [[8.0], [4.0], [0.0]], f"values of the cache, of 4 and 0 {behind}")


@law
def positions_go_on(step: Any) -> str:
    """The token behind four others stands at position 4, for its query and for its key."""
    return _pieces(step, (4, 1, 2), _turned)


@law
def the_old_cache_stays(step: Any) -> str:
    """Who goes on from one cache in two ways has two: step changes none of what it is given."""
    q, k, v, keys, values = (draw(n, 8, seed=n) for n in (1, 1, 1, 4, 4))
    return changed(lambda *given: step(*given, _unturned), q=q, k=k, v=v, cache=(keys, values))


def _step(*given: Any, starts: Any = None, seen: Any = None, hidden: float = -np.inf, axis: Any = -1) -> Any:
    """Right, unless it is given what is wrong."""
    q, k, v, cache, turn = given
    n, before = len(q), len(cache[0])
    q, k = (
        turn(x, np.arange(n) + start) for x, start in zip((q, k), starts or (before, before), strict=True)
    )
    keys, values = np.concatenate([cache[0], k]), np.concatenate([cache[1], v])
    s = q @ keys.T / np.sqrt(q.shape[-1])
    s = np.where(np.tri(n, before + n, before) if seen is None else seen(n, before + n), s, hidden)
    w = np.exp(s - s.max(axis, keepdims=True))
    return w / w.sum(-1, keepdims=True) @ values, (keys, values)


def _emptied(*given: Any) -> Any:
    result = _step(*given)
    for old in given[3]:
        old[:] = 0
    return result


EXERCISES = (
    Exercise(
        (keys_and_values_are_kept, every_layer_keeps_its_own, every_number_is_a_factor),
        {
            "keys_and_values_are_kept": lambda layers, kv_heads, width, tokens, item: (
                layers * kv_heads * width * tokens * item
            ),
            "every_layer_keeps_its_own": lambda layers, kv_heads, width, tokens, item: (
                2 * kv_heads * width * tokens * item
            ),
            "every_number_is_a_factor": lambda layers, kv_heads, width, tokens, item: (
                2 * layers * kv_heads * 64 * tokens * item
            ),
        },
    ),
    Exercise(
        (
            slots_without_a_token_say_so,
            the_oldest_is_overwritten,
            it_goes_round_and_round,
            there_may_be_any_number_of_slots,
        ),
        {
            "slots_without_a_token_say_so": lambda length, capacity: (
                length - 1 - (length - 1 - np.arange(capacity)) % capacity
            ),
            "the_oldest_is_overwritten": lambda length, capacity: np.where(
                np.arange(capacity) < length, np.arange(capacity), -1
            ),
            "it_goes_round_and_round": _once_round,
            "there_may_be_any_number_of_slots": lambda length, capacity: [
                max([p for p in range(length) if p % 4 == slot], default=-1) for slot in range(capacity)
            ],
        },
    ),
    Exercise(
        (
            each_token_sees_itself_and_all_before,
            tokens_that_come_together_are_causal,
            scores_are_divided,
            scores_may_be_large,
            what_comes_later_is_below_all_scores,
            keys_are_turned_when_they_come,
            positions_go_on,
            the_old_cache_stays,
        ),
        {
            "each_token_sees_itself_and_all_before": lambda *given: _step(*given, seen=np.tri),
            "tokens_that_come_together_are_causal": lambda *given: _step(*given, seen=lambda n, count: True),
            "scores_are_divided": lambda q, *given: _step(q * q.shape[-1] ** 0.5, *given),
            "scores_may_be_large": lambda *given: _step(*given, axis=None),
            "what_comes_later_is_below_all_scores": lambda *given: _step(*given, hidden=-100.0),
            "keys_are_turned_when_they_come": lambda *given: _step(*given, starts=(0, 0)),
            "positions_go_on": lambda *given: _step(*given, starts=(0, len(given[3][0]))),
            "the_old_cache_stays": _emptied,
        },
    ),
)
