"""Softmax averages as a monoid: the one place where they are formed.

A softmax average over some keys is kept as a value, `Partial`. Averages over disjoint keys `merge`
into the average over all of them, in any order and any grouping; an average over no keys is the neutral element:

    finish(merge(lift(s1, v1), lift(s2, v2))) == softmax([s1 s2]) @ [v1; v2]

Tiles of a blockwise kernel, splits of a long cache, attention sinks and devices of a ring are the
same fold over different partitions of the keys (Milakov and Gimelshein 2018, arXiv:1805.02867,
section 3.1; Rabe and Staats 2021, arXiv:2112.05682).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.normalizers.normalizer import Foldable, Pull


class Partial(NamedTuple):
    """A softmax average over the keys seen so far: acc / sum, with weights exp(score - top).

    All fields are in the compute dtype. A row that has seen no visible key has top -inf, sum 0.
    """

    top: Array  # (..., L, 1) largest score, -inf if none; a constant for autodiff
    sum: Array  # (..., L, 1) sum of weights
    acc: Array  # (..., L, E) weighted sum of values


def lift(scores: Array, values: Array, keep: Array | None = None, *, consume: bool = False) -> Partial:
    """The average over the keys of one tile.

        top = max_j s_ij,  w_ij = exp(s_ij - top_i),  sum_i = sum_j w_ij,  acc_i = sum_j w_ij keep_ij v_j

    scores (..., H, L, S), -inf where a key is hidden; values (..., Hkv, S, E) with Hkv dividing H,
    H // Hkv consecutive heads sharing one kv head; keep: factors on the weights in the numerator
    alone (dropout), broadcasting like scores; consume: scores may be overwritten. Everything in the compute
    dtype.

    >>> import numpy as np
    >>> seen = lift(np.array([[0.0, -np.inf]]), np.array([[2.0], [7.0]]))
    >>> finish(seen), log_sum(seen)
    (array([[2.]]), array([0.]))
    """
    backend = backend_of(scores)
    xp = backend.xp
    top = largest(scores)  # of which the average does not depend
    base = _finite(top)
    w = backend.exp_of_difference(scores, base) if consume else xp.exp(scores - base)
    total = xp.sum(w, axis=-1, keepdims=True)
    return Partial(top, total, grouped_matmul(w if keep is None else w * keep, values))


def beside(score: Array, width: int) -> Partial:
    """The average over one key of that score (..., L|1, 1) whose value is 0, as an attention sink is."""
    backend = backend_of(score)
    xp = backend.xp
    top = backend.stop_gradient(score)
    nothing = xp.zeros((*score.shape[:-1], width), dtype=score.dtype, device=backend.device(score))
    return Partial(top, xp.exp(score - _finite(top)), nothing)


def merge(a: Partial, b: Partial) -> Partial:
    """The average over the keys of both: associative and commutative, an average over no keys is its identity.

    top = max(top_a, top_b),  sum = sum_a exp(top_a - top) + sum_b exp(top_b - top),  acc alike
    """
    xp = backend_of(a.top).xp
    top = xp.maximum(a.top, b.top)
    safe = _finite(top)
    from_a, from_b = xp.exp(a.top - safe), xp.exp(b.top - safe)
    return Partial(top, a.sum * from_a + b.sum * from_b, a.acc * from_a + b.acc * from_b)


def finish(seen: Partial) -> Array:
    """The average itself, acc / sum (..., L, E); 0 for rows that have seen no key."""
    xp = backend_of(seen.sum).xp
    # Chosen, not multiplied: whatever a caller sends back to such a row, no key hears of it.
    return xp.where(seen.sum == 0, 0.0, seen.acc / _nonzero(seen.sum))


def log_sum(seen: Partial) -> Array:
    """The natural logarithm of the sum of exp(score), (..., L); -inf for rows that have seen no key."""
    xp = backend_of(seen.sum).xp
    lse = _finite(seen.top) + xp.log(_nonzero(seen.sum))
    return xp.where(seen.sum == 0, -xp.inf, lse)[..., 0]


def weights(scores: Array, seen: Partial) -> Array:
    """The weights of keys with those scores in an average, exp(score - top) / sum; rows sum to 1, or to
    what is left beside a sink that the average has seen."""
    xp = backend_of(scores).xp
    return xp.exp(scores - _finite(seen.top)) / _nonzero(seen.sum)


def largest(scores: Array) -> Array:
    """The largest score of a row, (..., L, 1), -inf if it sees none: what is subtracted before exp.

    What does not depend on it may take it as a constant, and so it is one for autodiff.
    """
    backend = backend_of(scores)
    xp = backend.xp
    if scores.shape[-1] == 0:
        return xp.full((*scores.shape[:-1], 1), -xp.inf, dtype=scores.dtype, device=backend.device(scores))
    return xp.max(backend.stop_gradient(scores), axis=-1, keepdims=True)


def grouped_matmul(a: Array, b: Array) -> Array:
    """a (..., H, L, N) @ b (..., Hkv, N, M), H // Hkv consecutive heads sharing one matrix of b.

    The group is folded into the rows, so b is read once per group and never repeated.
    """
    backend = backend_of(a)
    if a.ndim < 3 or b.ndim < 3 or a.shape[-3] == b.shape[-3] or b.shape[-3] == 0:
        return backend.matmul(a, b)
    *lead, heads, rows, inner = a.shape
    group = heads // b.shape[-3]
    folded = backend.xp.reshape(a, (*lead, b.shape[-3], group * rows, inner))
    product = backend.matmul(folded, b)
    return backend.xp.reshape(product, (*product.shape[:-3], heads, rows, b.shape[-1]))


def _finite(top: Array) -> Array:
    """-inf (no key seen) replaced by 0, so that exp(-inf - top) is 0 and never NaN."""
    xp = backend_of(top).xp
    return xp.where(top == -xp.inf, 0.0, top)


def _nonzero(total: Array) -> Array:
    xp = backend_of(total).xp
    return xp.where(total == 0, 1.0, total)


@dataclass(frozen=True)
class Softmax(Foldable):
    """w = exp(s) / sum exp(s), or with a sink exp(s) / (exp(sink) + sum exp(s)): the default.

    >>> import numpy as np
    >>> Softmax().weights(np.array([0.0, np.log(3.0), -np.inf]))
    array([0.25, 0.75, 0.  ])
    """

    name = "softmax"
    formula = "w = exp(s - m) / sum"
    takes_sinks = True

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        xp = backend_of(scores).xp
        top = largest(scores)
        if sinks is not None:
            top = xp.maximum(top, backend_of(sinks).stop_gradient(sinks))
        w = xp.exp(scores - _finite(top))
        total = xp.sum(w, axis=-1, keepdims=True)
        return w / _nonzero(total if sinks is None else total + xp.exp(sinks - _finite(top)))

    def nothing(self, rows: Array, width: int) -> Partial:
        backend, shape = backend_of(rows), rows.shape[:-1]
        xp, where = backend.xp, {"dtype": rows.dtype, "device": backend.device(rows)}
        return Partial(
            xp.full((*shape, 1), -xp.inf, **where),
            xp.zeros((*shape, 1), **where),
            xp.zeros((*shape, width), **where),
        )

    lift = staticmethod(lift)
    merge = staticmethod(merge)
    finish = staticmethod(finish)
    log_sum = staticmethod(log_sum)

    def again(self, scores: Array, log_sum: Array, *, consume: bool = False) -> Pull:
        backend = backend_of(scores)
        w = backend.exp_of_difference(scores, log_sum) if consume else backend.xp.exp(scores - log_sum)
        return Pull(w, w)

    def pull(self, slope: Array, d_weights: Array, mean: Array) -> Array:
        d_weights -= mean
        d_weights *= slope
        return d_weights


#: What is meant where a call says nothing.
SOFTMAX = Softmax()
