"""The third exercise of the chapter on two sequences: a batch of sources, padded to one length."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed, exactly

LARGE = "of queries 1, 0, -1, keys 0, 2000 + log 2, 2000 and values 9, 6, 3"


def _softmax(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _batch() -> tuple[Any, ...]:
    return draw(3, 2, 3, 4, seed=1), draw(3, 2, 5, 4, seed=2), draw(3, 2, 5, 6, seed=3)


@law
def a_full_source_is_plain_attention(padded: Any) -> str:
    """Without padding it is attention as it was."""
    q, k, v = _batch()
    plain = _softmax(q @ k.swapaxes(-1, -2) / 2) @ v
    return apart(padded(q, k, v, np.array([5, 5, 5])), plain, "with lengths of 5, 5 and 5")


@law
def padding_has_no_weight(padded: Any) -> str:
    """An item with 3 real keys gives what these 3 give alone."""
    q, k, v = _batch()
    found = np.asarray(padded(q, k, v, np.array([5, 3, 1])))
    for item, n in enumerate((5, 3, 1)):
        alone = _softmax(q[item] @ k[item, :, :n].swapaxes(-1, -2) / 2) @ v[item, :, :n]
        if said := apart(found[item], alone, f"item {item}, whose first {n} keys are real"):
            return said
    return ""


@law
def what_stands_in_the_padding_is_nothing(padded: Any) -> str:
    """NaN in the padding changes nothing."""
    q, k, v = _batch()
    lengths = np.array([5, 3, 1])
    beyond = (np.arange(5) >= lengths[:, None])[:, None, :, None]
    dirty = padded(q, np.where(beyond, np.nan, k), np.where(beyond, np.nan, v), lengths)
    return apart(dirty, padded(q, k, v, lengths), "with NaN in the padding")


@law
def no_key_gives_zero(padded: Any) -> str:
    """An item of length 0 gives 0, and no NaN."""
    q, k, v = _batch()
    found = np.asarray(padded(q, k, v, np.array([5, 0, 1])))[1]
    return apart(found, np.zeros_like(found), "in an item of length 0")


@law
def other_items_are_as_they_were(padded: Any) -> str:
    """Beside an item of length 0 the items of lengths 5 and 1 give what they give alone."""
    q, k, v = _batch()
    found = np.asarray(padded(q, k, v, np.array([5, 0, 1])))
    for item, n in ((0, 5), (2, 1)):
        alone = _softmax(q[item] @ k[item, :, :n].swapaxes(-1, -2) / 2) @ v[item, :, :n]
        if said := apart(found[item], alone, f"item {item} of lengths 5, 0, 1"):
            return said
    return ""


def _column(*numbers: float, width: int = 1) -> Any:
    return np.repeat(np.reshape(np.array(numbers, float), (1, 1, -1, 1)), width, -1)


@law
def the_width_may_be_any(padded: Any) -> str:
    """Of width 9, q = 1 and k = log(2) / 3 times 3, 2, 2 have scores log(2) * 3, 2, 2: 8/2 + 4/4 + 0/4 = 5."""
    k, v = np.log(2) / 3 * _column(3, 2, 2, width=9), _column(8, 4, 0)
    return apart(
        padded(_column(1, width=9), k, v, np.array([3])), [[[[5.0]]]], "of width 9 and values 8, 4, 0"
    )


@law
def scores_may_be_large(padded: Any) -> str:
    """Queries 1, 0, -1 with keys 0, 2000 + log 2, 2000 and values 9, 6, 3: 4 + 1 = 5, (9 + 6 + 3) / 3 = 6 and 9."""
    k, v = _column(0, 2000 + np.log(2), 2000, 0), _column(9, 6, 3, 0)
    return apart(padded(_column(1, 0, -1), k, v, np.array([3])), _column(5, 6, 9), LARGE)


@law
def padding_is_below_all_scores(padded: Any) -> str:
    """Two real keys of scores -10^10 are halves, whatever stands behind them: (8 + 4) / 2 = 6."""
    found = padded(_column(1), _column(-1e10, -1e10, 0), _column(8, 4, 100), np.array([2]))
    return apart(found, [[[[6.0]]]], "of two real keys of scores -10^10, values 8 and 4")


@law
def one_key_weighs_exactly_one(padded: Any) -> str:
    """One real key of value 4 gives 4 to the last digit: nothing is added to the sum."""
    found = padded(_column(1), _column(1, 2), _column(4, 8), np.array([1]))
    return exactly(found, 4.0, "of one real key, whose value is 4")


@law
def infinity_in_the_padding_is_nothing(padded: Any) -> str:
    """Infinity in a key and value of the padding changes nothing: 4."""
    found = padded(_column(1), _column(1, np.inf), _column(4, np.inf), np.array([1]))
    return apart(found, [[[[4.0]]]], "of a real value 4 with infinity in the padding")


@law
def what_is_real_comes_through(padded: Any) -> str:
    """NaN in a real value is NaN in the result, so that a mistake before it is found."""
    found = np.asarray(padded(_column(1), _column(0, 0), _column(8, np.nan), np.array([2])))
    return (
        "" if np.isnan(found).all() else f"of real values 8 and NaN the result is {found.item():.3g}, not NaN"
    )


@law
def what_came_in_is_left_as_it_is(padded: Any) -> str:
    """q, k, v and the lengths are the same afterwards, the padding too."""
    return changed(padded, "q k v lengths", *_batch(), np.array([5, 3, 1]))


def _masked(
    q: Any,
    k: Any,
    v: Any,
    lengths: Any,
    *,
    clean: Any = np.zeros_like,
    hidden: float = -np.inf,
    axes: Any = -1,
    added: float = 0.0,
    width: int = 0,
) -> Any:
    """Right, unless it is given what is wrong."""
    real = np.arange(k.shape[-2]) < lengths[:, None]
    k, v = (np.where(real[:, None, :, None], x, clean(x)) for x in (k, v))
    s = q @ k.swapaxes(-1, -2) / (width or q.shape[-1]) ** 0.5
    s = np.where(real[:, None, None, :], s, hidden)
    top = s.max(axes, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0.0))
    total = e.sum(-1, keepdims=True) + added
    return e / np.where(total == 0, 1.0, total) @ v


def _never_zero(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    found = _masked(q, k, v, lengths)
    found[lengths == 0] = np.nan
    return found


def _all_or_nothing(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    return _masked(q, k, v, lengths if lengths.all() else 0 * lengths)


def _wiped(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    v *= (np.arange(k.shape[-2]) < lengths[:, None])[:, None, :, None]
    return _masked(q, k, v, lengths)


PADDED = Exercise(
    (
        a_full_source_is_plain_attention,
        padding_has_no_weight,
        what_stands_in_the_padding_is_nothing,
        no_key_gives_zero,
        other_items_are_as_they_were,
        the_width_may_be_any,
        scores_may_be_large,
        padding_is_below_all_scores,
        one_key_weighs_exactly_one,
        infinity_in_the_padding_is_nothing,
        what_is_real_comes_through,
        what_came_in_is_left_as_it_is,
    ),
    {
        "a_full_source_is_plain_attention": lambda q, k, v, n: _masked(q, k, v, n - 1),
        "padding_has_no_weight": lambda q, k, v, n: _masked(q, k, v, n, hidden=0.0),
        "what_stands_in_the_padding_is_nothing": lambda *given: _masked(*given, clean=np.array),
        "no_key_gives_zero": _never_zero,
        "other_items_are_as_they_were": _all_or_nothing,
        "the_width_may_be_any": lambda *given: _masked(*given, width=4),
        "scores_may_be_large": lambda *given: _masked(*given, axes=(-1, -2)),
        "padding_is_below_all_scores": lambda *given: _masked(*given, hidden=-1e9),
        "one_key_weighs_exactly_one": lambda *given: _masked(*given, added=1e-9),
        "infinity_in_the_padding_is_nothing": lambda *given: _masked(
            *given, clean=lambda x: np.where(np.isnan(x), 0.0, x)
        ),
        "what_is_real_comes_through": lambda q, k, v, n: _masked(q, np.nan_to_num(k), np.nan_to_num(v), n),
        "what_came_in_is_left_as_it_is": _wiped,
    },
)
