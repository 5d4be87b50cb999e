"""The definition of attention: reads like the formula, O(L S) memory.

    s = scale (q . k);  s = score_mod(s);  s = s + bias;  s = -inf where hidden
    w = softmax([s, sink]);  out = dropout(w) @ v

Every other implementation is a theorem about this one.
"""

from __future__ import annotations

from typing import NamedTuple

from polyattn.arrays import Array, Namespace, backend_of, is_array
from polyattn.dropout import keep_factors
from polyattn.normalizers.softmax import Partial, finish, grouped_matmul, lift, log_sum, merge
from polyattn.places.positions import Positions
from polyattn.problem.problem import Problem


class Result(NamedTuple):
    """What attention computes, in canonical axes and the compute dtype."""

    out: Array  # (B, Hq, L, E)
    lse: Array  # (B, Hq, L) over the keys alone
    scores: Array  # (B, Hq, L, S), -inf where hidden
    keys: Partial  # the average over the keys
    seen: Partial  # the same, the sink included


def reference(p: Problem) -> Result:
    """Attention by its definition."""
    backend, xp, frame = p.backend, p.backend.xp, p.frame
    at = p.positions()
    q, k, v = (backend.astype(x, p.compute_dtype) for x in (p.q, p.k, p.v))
    bias = None if p.bias is None else backend.astype(p.bias, p.compute_dtype)

    allowed = allowed_at(p, at, bias)
    if allowed is not None:
        # What nobody may see, and who sees nothing, is replaced before it is used: 0 * NaN is NaN, forward
        # and backward.
        visible = visible_keys(allowed, p.k.shape[1], xp)
        k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
        q = xp.where(xp.any(allowed, axis=-1, keepdims=True), q, 0.0)

    scores = scores_at(p, at, grouped_matmul(q, xp.matrix_transpose(k)) * p.scale, bias, allowed)
    scores = xp.broadcast_to(scores, (frame.batch, frame.heads, frame.rows, frame.keys))
    keys = lift(scores, v, dropout_at(p, at))
    seen = keys if p.sinks is None else merge(keys, sink(p.sinks, keys))
    return Result(finish(seen), log_sum(keys), scores, keys, seen)


def allowed_at(p: Problem, at: Positions, bias: Array | None) -> Array | None:
    """Mask and bias together: True where a query may attend; None where every query may attend to every key."""
    allowed = None if p.mask is None else p.mask.allowed(at)
    if bias is not None:
        reachable = bias != -p.backend.xp.inf
        allowed = reachable if allowed is None else allowed & reachable
    return allowed


def scores_at(p: Problem, at: Positions, scores: Array, bias: Array | None, allowed: Array | None) -> Array:
    """From scale (q . k) to the scores of the softmax, on any tile: modified, biased, -inf where hidden."""
    xp = p.backend.xp
    if p.score_mod is not None:
        if allowed is not None:
            scores = xp.where(allowed, scores, 0.0)  # a modification never meets a hidden score
        scores = _modified(p, scores, at)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = xp.where(allowed, scores, -xp.inf)
    return scores


def dropout_at(p: Problem, at: Positions) -> Array | None:
    """The factors on the weights of a tile, None without dropout."""
    if p.dropout_rate == 0.0:
        return None
    return keep_factors(p.dropout_rate, p.dropout_seed, at, p.compute_dtype)


def sink(sinks: Array, like: Partial) -> Partial:
    """A sink (H|1, 1, 1) is one more key, with the sink as its score and nothing as its value."""
    backend = backend_of(sinks)
    width = like.acc.shape[-1]
    return lift(sinks, backend.xp.zeros((1, 1, width), dtype=sinks.dtype, device=backend.device(sinks)))


def visible_keys(allowed: Array, kv_heads: int, xp: Namespace) -> Array:
    """(B|1, Hkv|1, S|1, 1): True for keys that some query of their kv head may attend to."""
    some = xp.any(allowed, axis=-2)  # (B|1, Hq|1, S|1)
    if some.shape[1] > 1 and kv_heads > 0:
        grouped = (some.shape[0], kv_heads, some.shape[1] // kv_heads, some.shape[2])
        some = xp.any(xp.reshape(some, grouped), axis=2)
    return some[..., None]


def _modified(p: Problem, scores: Array, at: Positions) -> Array:
    assert p.score_mod is not None
    modified = p.score_mod(scores, at.b, at.h, at.q, at.kv)
    if not is_array(modified) or p.backend.compute_dtype(modified.dtype) is None:
        raise TypeError(
            "polyattn.attention: expected score_mod(score, b, h, q_idx, kv_idx) to return real floating scores, "
            f"got {getattr(modified, 'dtype', type(modified).__name__)}; return an array made from score"
        )
    full = (p.frame.batch, *scores.shape[1:])
    if tuple(modified.shape) not in (tuple(scores.shape), full):
        raise ValueError(
            "polyattn.attention: expected score_mod(score, b, h, q_idx, kv_idx) to return scores of the shape of "
            f"score, {tuple(scores.shape)}, got {tuple(modified.shape)}; modify every score, or broadcast"
        )
    return p.backend.astype(modified, p.compute_dtype)
