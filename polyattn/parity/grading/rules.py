"""The rules by which a function is graded, in the order in which they are taught.

Each is shown by examples, the smallest first, that other mistakes leave alone: scores of 0 where the scale does not
matter, one key where the softmax does not, two answers of the same function where only their difference counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polyattn.parity.grading.trial import COARSE, Broken, Example, NotTaken, Trial, judged_of, numbers
from polyattn.truth.definition import Judged
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, eta

__all__ = ["CHECKS", "Check"]


class Check(NamedTuple):
    """A rule as it is graded."""

    name: str
    says: str
    rule: str  # the anchor in docs/contract.md
    run: Callable[[Trial], None]
    after: tuple[str, ...] = ()  # what must hold, or this says nothing new
    needs: tuple[str, ...] = ()  # keywords that the function must take
    probe: Mapping[str, Any] | None = None  # the call whose answer is diagnosed
    usual: str = ""  # the usual mistake, where no diagnosis names one
    demanding: bool = False  # graded only if asked for


def _shapes(trial: Trial) -> None:
    for length, keys, width, out in ((2, 2, 2, 2), (1, 2, 1, 1), (2, 3, 1, 1), (2, 3, 4, 1), (3, 2, 2, 5)):
        trial.out(numbers(1, length, width), numbers(2, keys, width), numbers(3, keys, out))


def _repeat(trial: Trial) -> None:
    given = {"query": numbers(1, 3, 4), "key": numbers(2, 5, 4), "value": numbers(3, 5, 2)}
    first = trial.out(**given)
    for _ in range(2):
        again = trial.out(**given)
        if not np.array_equal(first, again, equal_nan=True):
            raise Broken(Example(given, first, again, "its own answer to the same call before"))


def _convex(trial: Trial) -> None:
    trial.is_right([[0]], [[0], [0]], [[1], [1]])  # weights 1/2 and 1/2, whatever the scale
    for query in ([[1]], [[-2]], [[1], [-2]]):
        given = {"query": np.array(query, float), "key": np.array([[0.0], [2.0]]), "value": np.ones((2, 1))}
        out = trial.out(**given)
        if eta(out, Judged(np.ones(out.shape, np.longdouble), judged_of(given).condition), COARSE) > ACCEPTANCE:  # fmt: skip
            raise Broken(Example(given, np.ones(out.shape), out, "the mean of values that are all 1"))
    given = {"query": numbers(1, 3, 4), "key": numbers(2, 5, 4), "value": np.eye(5)}
    weights, room = trial.out(**given), judged_of(given).condition
    total = Judged(np.ones(3, np.longdouble), room.sum(-1))
    if not (weights >= 0).all() or eta(weights.sum(-1), total, COARSE) > ACCEPTANCE:
        note = "rows of weights, since value is the identity: none negative, and each row sums to 1"
        raise Broken(Example(given, None, weights, note))
    given |= {"value": numbers(4, 5, 2)}
    out, slack = trial.out(**given), UNIT_ROUNDOFF[COARSE] * ACCEPTANCE * judged_of(given).condition
    low, high = given["value"].min(0), given["value"].max(0)
    if not ((out >= low - slack) & (out <= high + slack)).all():
        raise Broken(Example(given, None, out, f"every column between {low.tolist()} and {high.tolist()}"))


def _one_key(trial: Trial) -> None:
    trial.is_right([[1]], [[1]], [[5]])
    trial.is_right([[1, 2], [0, -1]], [[1, 1]], [[5, 6, 7]])


def _keys(trial: Trial) -> None:
    for query, key, value in (
        ([[0]], [[0], [0]], [[1], [3]]),
        ([[1, 0]], [[1, 2], [0, 0]], [[0], [1]]),
        ([[1, 2], [3, 1]], [[1, 2], [0, 0]], [[0, 2], [1, 4]]),
        (numbers(1, 3, 4), numbers(2, 5, 4), numbers(3, 5, 2)),
    ):
        before = trial.out(query, key, value)
        note = "its own answer to the same pairs of key and value in reverse order"
        trial.is_same(before, note, query, key[::-1], value[::-1])


def _scale(trial: Trial) -> None:
    trial.is_right([[1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 0, 0]], [[0], [1]])  # scores 0 and 2 / 2
    trial.is_right(np.ones((1, 9)), [[0] * 9, [1, 1, 1] + [0] * 6], [[0], [1]])  # 0 and 3 / 3


def _given_scale(trial: Trial) -> None:
    for scale in (0.25, 1.0):
        trial.is_right([[1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 0, 0]], [[0], [1]], scale=scale)


def _causal(trial: Trial) -> None:
    for n in (2, 3):  # scores of 0: a row is the mean of the values up to it
        trial.is_right(np.zeros((n, 1)), np.zeros((n, 1)), [[1], [3], [5]][:n], is_causal=True)
    q, k, v = numbers(1, 5, 4), numbers(2, 5, 4), numbers(3, 5, 2)
    before = trial.out(q, k, v, is_causal=True)
    other_k, other_v = np.concatenate([k[:4], k[4:] + 2]), np.concatenate([v[:4], v[4:] * 0 + 2**27])
    note = "its own answer for rows 0 to 3 before the last key and value were changed"
    trial.is_same(before, note, q, other_k, other_v, rows=4, is_causal=True)


def _mask(trial: Trial) -> None:
    trial.is_right([[0]], [[0], [0]], [[1], [3]], mask=[[True, False]])
    shown = [[True, False, True], [False, True, True]]
    trial.is_right(np.zeros((2, 1)), np.zeros((3, 1)), [[1], [3], [5]], mask=shown)
    q, k, v = numbers(1, 3, 4), numbers(2, 5, 4), numbers(3, 5, 2)
    mask = np.arange(5) != [[1]] * 3
    before = trial.out(q, k, v, mask=mask)
    other_k, other_v = (np.where(np.arange(5)[:, None] == 1, y, x) for x, y in ((k, 2), (v, 2**27)))
    note = "its own answer before key 1, which every row may not see, and its value were changed"
    trial.is_same(before, note, q, other_k, other_v, mask=mask)


def _both(trial: Trial) -> None:
    zero, mask = np.zeros((2, 1)), [[True, True], [False, True]]
    trial.is_right(zero, zero, [[1], [3]], mask=mask, is_causal=True)


def _leading(trial: Trial) -> None:
    small = (np.zeros((2, 1, 1)), np.zeros((2, 1, 1)), np.array([[[1.0]], [[2.0]]]))
    q, k, v = numbers(1, 2, 3, 4), numbers(2, 2, 5, 4), numbers(3, 2, 5, 2)
    _takes(trial, q, k, v)
    trial.is_right(*small)
    alone = np.stack([trial.out(q[i], k[i], v[i]) for i in range(2)])
    trial.is_same(alone, "its own answers to each of the two alone", q, k, v)


def _heads(trial: Trial) -> None:
    small = (np.zeros((4, 1, 1)), np.zeros((2, 1, 1)), np.array([[[1.0]], [[2.0]]]))
    q, k, v = numbers(1, 4, 3, 4), numbers(2, 2, 5, 4), numbers(3, 2, 5, 2)
    _takes(trial, q, k, v)
    trial.is_right(*small)  # one key gives its value: 1 1 2 2
    alone = np.stack([trial.out(q[h], k[h // 2], v[h // 2]) for h in range(4)])
    trial.is_same(alone, "its own answers to each head alone, with key and value h // 2", q, k, v)


def _takes(trial: Trial, query: Any, key: Any, value: Any) -> None:
    """Whether the function takes such axes at all: one that is written for a matrix is not wrong."""
    try:
        trial.out(query, key, value)
    except Broken as broken:
        shapes = f"query {query.shape} beside key {key.shape}"
        raise NotTaken(f"it does not take {shapes}", broken.trouble) from None


def _empty(trial: Trial) -> None:
    trial.is_right([[0]], [[0], [0]], [[1], [3]], mask=[[False, False]])
    trial.is_right(np.zeros((2, 1)), np.zeros((2, 1)), [[1], [3]], mask=[[False, False], [True, False]])


def _large(trial: Trial) -> None:
    for query, key in (([[1000]], [[1], [0]]), ([[-1000]], [[1], [1]]), ([[1000], [-1000]], [[1], [0]])):
        trial.is_right(query, key, [[1], [3]], dtype="float32")  # weights are 0, 1/2 and 1


def _accuracy(trial: Trial) -> None:
    for size in (1.0, 3.0):
        q, k, v = numbers(1, 4, 8, size=size), numbers(2, 24, 8, size=size), numbers(3, 24, 3)
        trial.is_right(q, k, v, dtype="float32")


def _inputs(trial: Trial) -> None:
    given = {"query": np.array([[1.0, 1.0]]), "key": np.array([[0.0, 0.0], [1.0, 1.0]]), "value": np.array([[0.0], [1.0]])}  # fmt: skip
    if changed := trial.reply(given).changed:
        raise Broken(Example(given), f"it wrote to {' and '.join(changed)}")


def _hidden(trial: Trial) -> None:
    for poison in (np.nan, np.inf):
        trial.is_right([[0]], [[0], [0]], [[1], [poison]], mask=[[True, False]])
        trial.is_right([[0]], [[0], [poison]], [[1], [3]], mask=[[True, False]])


def _dtype(trial: Trial) -> None:
    given = {"query": np.array([[1.0]]), "key": np.array([[0.0], [1.0]]), "value": np.array([[1.0], [3.0]])}
    if (dtype := trial.reply(given).dtype) != "float32":
        raise Broken(Example(given), f"query, key and value are float32, and it returned {dtype}")


def _probe(*leading: int, kv: tuple[int, ...] | None = None, rows: int = 5, **options: Any) -> dict[str, Any]:
    """A call with enough numbers to tell mistakes apart."""
    behind = leading if kv is None else kv
    shapes = ((*leading, rows, 4), (*behind, 6, 4), (*behind, 6, 3))
    rng = np.random.default_rng(13)
    arrays = (rng.normal(size=shape).astype(np.float32).astype(np.float64) for shape in shapes)
    return dict(zip(("query", "key", "value"), arrays, strict=True)) | options


_SOME = np.random.default_rng(13).random((5, 6)) < 0.6
_SOME[:, 0] = True  # no row is empty
_EMPTY = _SOME & (np.arange(5) != 2)[:, None]
_PLAIN, _SQUARE = _probe(), _probe(rows=6)
_FIRST = ("shapes", "repeat")
_SUMS = (*_FIRST, "convex")

CHECKS = (
    Check("shapes", "one row of output for each query, as wide as the values", "rule-27", _shapes),
    Check("repeat", "the same call gives the same numbers", "rule-16", _repeat, ("shapes",), probe=_PLAIN, usual="something random or kept from call to call is inside: dropout that is on, or a global variable"),
    Check("convex", "a row of weights sums to 1, so the output lies among the values", "rule-1", _convex, _FIRST, probe=_PLAIN),
    Check("one key", "one key gives its value", "rule-1", _one_key, _SUMS, probe=_PLAIN, usual="an axis of length 1 is treated as none, by squeeze or the like"),
    Check("keys", "the order of the keys, each with its value, changes nothing", "rule-1", _keys, _FIRST, probe=_SQUARE, usual="a score is not that of its own key: key is reshaped or not transposed, or a key has a place or is left out"),
    Check("scale", "scores are divided by the square root of the width of a query", "rule-1", _scale, (*_SUMS, "keys"), probe=_PLAIN),
    Check("scale=", "scale= replaces that factor", "rule-1", _given_scale, (*_SUMS, "keys"), ("scale",), _PLAIN | {"scale": 0.25}),
    Check("causal", "a row sees its own key and those before it: changing the future changes nothing earlier", "rule-4", _causal, (*_SUMS, "keys"), ("is_causal",), _SQUARE | {"is_causal": True}),
    Check("mask", "a row sees the keys at which the mask is True, and no others", "rule-3", _mask, (*_SUMS, "keys"), ("mask",), _PLAIN | {"mask": _SOME}),
    Check("both", "mask and is_causal together: a row sees what both allow", "rule-2", _both, (*_SUMS, "keys", "causal", "mask"), ("mask", "is_causal"), _SQUARE | {"is_causal": True, "mask": np.eye(6, dtype=bool) | (np.arange(6) > 1)}),
    Check("leading", "leading axes are computed each by itself", "rule-27", _leading, _FIRST, probe=_probe(3)),
    Check("heads", "query head h reads kv head h // (Hq // Hkv)", "rule-8", _heads, (*_FIRST, "leading"), probe=_probe(4, kv=(2,))),
    Check("empty", "a row that sees nothing is 0", "rule-6", _empty, (*_SUMS, "mask"), ("mask",), _PLAIN | {"mask": _EMPTY}),
    Check("large", "large scores do not overflow", "rule-9", _large, (*_SUMS, "one key", "keys"), probe=_PLAIN | {"query": _PLAIN["query"] * 1000}, usual="the exponential overflows, or all of them underflow: subtract the largest score of a row before exp"),
    Check("accuracy", "the error in float32 is what rounding explains, eta at most 4", "rule-9", _accuracy, (*_SUMS, "one key", "keys", "scale"), probe=_probe(rows=16)),
    Check("inputs", "query, key and value are as they were", "rule-17", _inputs, ("shapes",), usual="an operation in place: write x = x * 2, not x *= 2"),
    Check("hidden", "what a hidden key and its value hold, NaN included, reaches nobody", "rule-7", _hidden, (*_SUMS, "mask"), ("mask",), usual="0 times NaN is NaN: set hidden values to 0 before the product", demanding=True),
    Check("dtype", "the output has the dtype of the inputs", "rule-9", _dtype, ("shapes",), usual="numpy.sqrt of an integer is a float64, and widens what it divides: use math.sqrt", demanding=True),
)  # fmt: skip
