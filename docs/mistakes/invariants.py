"""Laws that attention keeps, each a function: `if law(mine)` asks, `print(law(mine))` says what broke, with numbers.

It needs NumPy alone, so that it may lie beside your own tests. `attend` is a function (query, key, value) -> result on
arrays (B, H, L, D), or of fewer axes if it is given such a shape. Numbers agree if half of their digits do: rounding spoils the
last few of sixteen, a mistake the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SHAPE = (2, 4, 6, 8)  # items, heads, tokens, width


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether a law holds, and the sentence that says so."""

    holds: bool
    sentence: str

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        return f"{'holds' if self.holds else 'broken'}: {self.sentence}"


def law(check: Callable[..., str]) -> Callable[..., Verdict]:
    """A check says what is broken, or nothing; its first line is the law."""
    said = (check.__doc__ or "").partition("\n")[0].rstrip(".")

    @wraps(check)
    def judged(*given: Any, **named: Any) -> Verdict:
        try:
            with np.errstate(all="ignore"):
                found = check(*given, **named)
        except Exception as error:
            kind, message = type(error).__name__, str(error).partition("\n")[0]
            found = f"it ends in {kind}: {message}" if message else f"it ends in {kind} and says nothing"
        return Verdict(not found, found or said)

    return judged


def draw(*shape: int, seed: int = 0) -> Array:
    """Numbers that are the same every time."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def apart(found: Any, expected: Any, what: str) -> str:
    """Where two arrays differ most, or nothing if half of the digits agree."""
    found, expected = np.asarray(found), np.asarray(expected)
    if not np.issubdtype(found.dtype, np.inexact):
        found = found.astype(np.float64)  # 0 and True are answers too
    if found.shape != expected.shape:
        return f"{what}: a result of shape {expected.shape} was expected, {found.shape} came"
    error = np.abs(found - expected) / (1 + np.abs(expected))
    error = np.where(np.isfinite(error), error, np.inf)
    if error.max(initial=0) <= np.sqrt(np.finfo(np.result_type(found, np.float32)).eps):
        return ""
    at = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
    both = [f"{found[at]:.{digits}g}, not {expected[at]:.{digits}g}" for digits in range(3, 18)]
    said = next((words for words in both if len({*words.split(", not ")}) == 2), both[-1])
    return f"{what}: the result{f' at {at}' if at else ''} is {said}"


# ---- weights ----


@law
def rows_sum_to_one(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Values of one give one: the weights of every row sum to 1."""
    ones = np.ones(shape)
    return apart(attend(draw(*shape, seed=1), draw(*shape, seed=2), ones), ones, "with values of one")


@law
def one_key_gives_its_value(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """A token that sees one key gets its value, whatever the score."""
    *front, _, width = shape
    q, k, v = (draw(*front, 1, width, seed=seed) for seed in (1, 2, 3))
    return apart(attend(q, k, v), v, "with one key")


@law
def order_of_keys_is_nothing(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Keys and values in another order give the same result."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    back = np.arange(shape[-2])[::-1]
    return apart(
        attend(q, k[..., back, :], v[..., back, :]), attend(q, k, v), "with the keys in reverse order"
    )


@law
def all_keys_may_move(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """The same vector added to all keys changes nothing: the scores are dot products under a softmax."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    return apart(attend(q, k + draw(shape[-1], seed=4), v), attend(q, k, v), "with all keys moved alike")


@law
def scores_are_divided_by_the_root_of_the_width(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Every feature four times does what twice the queries do: 4 / sqrt(4) = 2."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    wide = attend(np.repeat(q, 4, axis=-1), np.repeat(k, 4, axis=-1), v)
    return apart(wide, attend(2 * q, k, v), "with every feature four times")


@law
def doubling_is_not_a_factor(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Doubling all that comes in does not multiply what goes out by one number."""
    arrays = [draw(*shape, seed=seed) for seed in (1, 2, 3)]
    ratio = attend(*(2 * x for x in arrays)) / attend(*arrays)
    factor = float(np.median(ratio))
    if apart(ratio, np.full_like(ratio, factor), "ratio"):
        return ""
    return f"doubling what comes in multiplies every result by {factor:g} exactly, as a product does"


# ---- who sees whom ----


@law
def future_is_hidden(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """What comes later changes no earlier row."""
    arrays = [draw(*shape, seed=seed) for seed in (1, 2, 3)]
    before = attend(*arrays)
    for j in range(1, shape[-2]):
        later = np.arange(shape[-2])[:, None] >= j
        after = attend(*(np.where(later, x + 1, x) for x in arrays))
        if found := apart(
            after[..., :j, :], before[..., :j, :], f"with other tokens from {j} on, before {j}"
        ):
            return found
    return ""


@law
def hidden_keys_weigh_nothing(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """What a mask hides changes nothing."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    seen = np.broadcast_to(np.arange(shape[-2]) < shape[-2] - 2, (shape[-2], shape[-2]))
    other = np.where(seen[0][:, None], v, v + 100)
    return apart(attend(q, k, other, seen), attend(q, k, v, seen), "with 100 added to hidden values")


@law
def padding_does_not_matter(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """What stands in the padding of an item changes nothing in its tokens.

    `attend` gets a fourth argument: which tokens are real, bool of shape (B, S).
    """
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    lengths = shape[-2] - 1 - np.arange(shape[0]) % (shape[-2] - 1)
    real = np.arange(shape[-2]) < lengths[:, None]
    before = attend(q, k, v, real)
    for item, length in enumerate(lengths):
        other = v.copy()
        other[item, ..., length:, :] += 100
        after = attend(q, k, other, real)[item]
        what = f"with 100 added to the padding of item {item}"
        if found := apart(after[..., :length, :], before[item][..., :length, :], what):
            return found
    return ""


@law
def nothing_seen_gives_zero(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """A row that sees no key gives 0, and no NaN."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    seen = np.tri(shape[-2], shape[-2], -1, dtype=bool)  # row 0 sees nothing
    row = attend(q, k, v, seen)[..., 0, :]
    return apart(row, np.zeros_like(row), "in a row that sees nothing")


@law
def says_true_or_false(mask: Any) -> str:
    """A mask is of type bool."""
    kind = np.asarray(mask).dtype
    return "" if kind.kind == "b" else f"the mask is of type {kind}: whoever adds it hides nothing with it"


@law
def items_are_apart(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Another item in the batch changes nothing in the first."""
    arrays = [draw(*shape, seed=seed) for seed in (1, 2, 3)]
    others = [np.concatenate([x[:1], x[1:] + 1]) for x in arrays]
    return apart(attend(*others)[:1], attend(*arrays)[:1], "with other items behind the first")


# ---- heads ----


@law
def heads_are_apart(attend: Any, heads: int = 4, kv_heads: int = 2) -> str:
    """Another query of head 0 changes head 0 alone."""
    q, k, v = draw(2, heads, 6, 8), draw(2, kv_heads, 6, 8, seed=2), draw(2, kv_heads, 6, 8, seed=3)
    before = attend(q, k, v)
    if before.shape != q.shape:
        return f"{q.shape[1]} query heads were expected in the result, {before.shape[1]} came"
    other = q.copy()
    other[:, 0] += 1
    return apart(attend(other, k, v)[:, 1:], before[:, 1:], "with another query in head 0")


@law
def heads_read_their_group(attend: Any, heads: int = 4, kv_heads: int = 2) -> str:
    """Query head h reads kv head h // (heads / kv_heads): neighbours share."""
    v = np.zeros((2, kv_heads, 6, 8)) + np.arange(kv_heads)[:, None, None]
    out = attend(draw(2, heads, 6, 8), draw(2, kv_heads, 6, 8, seed=2), v)
    expected = np.arange(heads) // (heads // kv_heads)
    if not apart(out[0, :, 0, 0], expected, "kv head"):
        return ""
    read, meant = (", ".join(f"{x:g}" for x in found) for found in (out[0, :, 0, 0], expected))
    return f"the query heads read the kv heads {read}, not {meant}"


@law
def heads_meet(joined: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """Every column of the result can hear every head.

    `joined` is what a layer does behind attention, from (B, H, L, D) to (B, L, width).
    """
    x = draw(*shape)
    other = x.copy()
    other[:, 0] += 1
    moved = (joined(other) != joined(x)).any((0, 1))
    return "" if moved.all() else f"head 0 reaches {moved.sum()} of {moved.size} columns"


@law
def more_heads_are_no_more_steps(attend: Any) -> str:
    """Heads are computed side by side: eight take no more steps of Python than two."""
    steps = []
    for heads in (2, 8):
        names: list[str] = []
        x = _Watched(names).of(draw(2, heads, 6, 8))
        attend(x, x, x)
        steps.append(len(names))
    return "" if steps[0] == steps[1] else f"two heads take {steps[0]} operations on arrays, eight {steps[1]}"


class _Watched:
    """Arrays that write down which operations they go through."""

    def __init__(self, names: list[str]) -> None:
        class Watched(np.ndarray):  # type: ignore[type-arg]
            def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
                names.append(ufunc.__name__)
                plain = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
                return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Watched)

        self.kind = Watched

    def of(self, x: Array) -> Array:
        return x.view(self.kind)
