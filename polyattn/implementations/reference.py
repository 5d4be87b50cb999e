"""The definition of attention: reads like the formula, O(L S) memory.

    s = scale (q . k);  s = score_mod(s);  s = s + bias;  s = -inf where hidden
    w = normalizer([s, sink]);  out = dropout(w) @ v

Every other implementation is a theorem about this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyattn import mods
from polyattn.arrays import Array, Namespace, backend_of, is_array
from polyattn.calls import ambiguous, answers, shown
from polyattn.dropout import keep_factors
from polyattn.implementations.implementation import TRANSFORMS, Implementation, Output
from polyattn.normalizers import SOFTMAX, softmax
from polyattn.normalizers.softmax import beside, finish, grouped_matmul, lift, log_sum, merge
from polyattn.places import Positions
from polyattn.problem import Problem

See = Callable[[str, Any, Array], None]  # name of a stage, what made it, value


NOWHERE: Any = None  # positions that nobody asks for


def unseen(name: str, by: Any, value: Array) -> None:
    """Nobody looks on."""


def define(p: Problem, see: See = unseen) -> Output:
    """Attention by its definition; `see` is shown every stage."""
    backend, xp = p.backend, p.backend.xp
    stands = p.mask is not None or p.score_mod is not None or p.dropout_rate > 0.0
    at = p.positions() if stands else NOWHERE
    q, k, v = (backend.astype(x, p.compute_dtype) for x in (p.q, p.k, p.v))
    bias = None if p.bias is None else backend.astype(p.bias, p.compute_dtype)

    allowed = allowed_at(p.mask, at, bias)
    if allowed is not None:
        # What nobody may see, and who sees nothing, is replaced before it is used: 0 * NaN is NaN, forward
        # and backward.
        visible = visible_keys(allowed, p.k.shape[1], xp)
        k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
        sees = xp.any(allowed, axis=-1, keepdims=True)
        q = xp.where(sees, q, 0.0)

    s = grouped_matmul(q, xp.matrix_transpose(k)) * p.scale  # (B, Hq, L, S)
    see("scores", p.scale, s)
    s = scores_at(p, at, s, bias, allowed, see)
    s = xp.broadcast_to(s, p.scores_shape)
    keep = dropout_at(p, at)
    wanted = p.wanted if see is unseen else ("lse", "weights")
    out, lse, weights = weigh(p, s, v, keep, wanted)  # (B, Hq, L, E), and what is wanted
    if allowed is not None and (p.sinks is not None or p.normalizer != SOFTMAX):
        out = xp.where(
            sees, out, 0.0
        )  # a sink alone is a sum too, and what is sent back to it is not for the keys

    if see is not unseen:
        top = softmax.largest(s)
        see("row maximum", None, (top if p.sinks is None else xp.maximum(top, p.sinks))[..., 0])
        see("weights", None, weights)
        if keep is not None:
            see("dropped weights", None, weights * keep)
        see("output", None, out)
        if lse is not None:
            see("lse", None, lse)
    return Output(
        out,
        lse,
        weights,
        s if "scores" in wanted else None,
        _largest(s) if "max_scores" in wanted else None,
    )


def weigh(
    p: Problem, s: Array, v: Array, keep: Array | None, wanted: tuple[str, ...]
) -> tuple[Array, Array | None, Array | None]:
    """The values weighed as the normaliser says; lse and weights."""
    if p.normalizer == SOFTMAX:  # whose sums are divided at the end
        keys = lift(s, v, keep)
        seen = keys if p.sinks is None else merge(keys, beside(p.sinks, v.shape[-1]))
        lse = log_sum(keys) if "lse" in wanted else None
        return finish(seen), lse, softmax.weights(s, seen) if "weights" in wanted else None
    weights = p.normalizer.weights(s, p.sinks)
    return grouped_matmul(weights if keep is None else weights * keep, v), None, weights


def _largest(s: Array) -> Array:
    """The largest score of every row, with its gradient, which a `top` has not."""
    return backend_of(s).xp.max(s, axis=-1) if s.shape[-1] else softmax.largest(s)[..., 0]


def allowed_at(mask: Any, at: Positions, bias: Array | None) -> Array | None:
    """Mask and bias together: True where a query may attend; None where every query may attend to every key."""
    allowed: Array | None = None if mask is None else mask.allowed(at)
    if bias is not None:
        reachable = bias != -backend_of(bias).xp.inf
        allowed = reachable if allowed is None else allowed & reachable
    return allowed


def scores_at(
    p: Problem, at: Positions, s: Array, bias: Array | None, allowed: Array | None, see: See = unseen
) -> Array:
    """From scale (q . k) to the scores of the softmax, on any tile: modified, biased, -inf where hidden."""
    xp = p.backend.xp
    if p.score_mod is not None:
        if allowed is not None:
            s = xp.where(allowed, s, 0.0)  # a modification never meets a hidden score
        for mod in mods.parts(p.score_mod):
            s = modified(p, mod, s, at)
            see("modified", mod, s)
    if bias is not None:
        s = s + bias
        see("biased", bias, s)
    if allowed is not None:
        s = xp.where(allowed, s, -xp.inf)
        see("masked", allowed, s)
    return s


def dropout_at(p: Problem, at: Positions) -> Array | None:
    """The factors on the weights of a tile, None without dropout."""
    if p.dropout_rate == 0.0:
        return None
    if p.packed:
        at = at._replace(q=at.row, kv=at.column)
    return keep_factors(p.dropout_rate, p.dropout_seed, at, p.compute_dtype)


def visible_keys(allowed: Array, kv_heads: int, xp: Namespace) -> Array:
    """(B|1, Hkv|1, S|1, 1): True for keys that some query of their kv head may attend to."""
    some = xp.any(allowed, axis=-2)  # (B|1, Hq|1, S|1)
    if some.shape[1] > 1 and kv_heads > 0:
        grouped = (some.shape[0], kv_heads, some.shape[1] // kv_heads, some.shape[2])
        some = xp.any(xp.reshape(some, grouped), axis=2)  # (B|1, Hkv, S|1)
    return some[..., None]


def modified(p: Problem, mod: mods.ScoreMod, s: Array, at: Positions) -> Array:
    """What a modification makes of the scores of a tile, checked."""
    try:
        found = mod(s, at.b, at.h, at.q, at.kv)
    except Exception as error:
        if isinstance(mod, mods.Mod) or not ambiguous(error):
            raise  # his own error
        raise TypeError(
            f"{p.who}: expected score_mod(score, b, h, q_idx, kv_idx) to compute with whole arrays, got if, and, or, "
            "min, max or float(), which want single numbers; write the where, minimum and maximum of the array library"
        ) from error
    if not is_array(found) or p.backend.compute_dtype(found.dtype) is None:
        raise TypeError(
            f"{p.who}: expected score_mod(score, b, h, q_idx, kv_idx) to return real floating scores, "
            f"got {getattr(found, 'dtype', type(found).__name__)}; return an array made from score"
        )
    full = (p.frame.batch, *s.shape[1:])
    if tuple(found.shape) not in (tuple(s.shape), full):
        raise ValueError(
            f"{p.who}: expected score_mod(score, b, h, q_idx, kv_idx) to return scores of the shape of "
            f"score, {tuple(s.shape)}, got {tuple(found.shape)}; modify every score, or broadcast"
        )
    return p.backend.astype(found, p.compute_dtype)


@answers("polyattn.Reference", "settings")
@dataclass(frozen=True)
class Reference:
    """The definition, which holds whole score matrices, with a limit on their bytes (default 4 GiB).

    >>> import numpy as np
    >>> from polyattn import Reference, attention
    >>> x = np.zeros((100, 1))
    >>> attention(x, x, x, implementation=Reference(max_bytes=1000))
    Traceback (most recent call last):
    ValueError: polyattn.attention: expected at most 1000 bytes of scores for the reference implementation, ...
    """

    max_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 0:
            raise ValueError(
                f"polyattn.Reference: expected max_bytes to be an integer >= 0, got {shown(self.max_bytes)}; "
                "it limits the memory of the score matrices"
            )


def _run(p: Problem, limit: Reference | None) -> Output:
    most = (limit or Reference()).max_bytes
    needed = 2 * p.scores_bytes
    if isinstance(needed, int) and needed > most:  # exporters have sizes that are symbols
        raise ValueError(
            f"{p.who}: expected at most {most} bytes of scores for the reference "
            f"implementation, got {needed} for two score matrices {p.scores_shape}; use "
            "implementation='blockwise', which needs memory O(L + S), or Reference(max_bytes=...)"
        )
    return define(p)


# Written out: what is new to the table is refused until the definition has it.
ACCEPTS = (
    "causal mask query_offset traced_offset positions bias score_mod scale sinks "
    "sigmoid softpick sparsemax entmax15 top_k normalizer dropout origin lse weights scores max_scores"
)

REFERENCE = Implementation(
    name="reference",
    title="the definition",
    accepts=frozenset(ACCEPTS.split()),
    run=_run,
    why="nothing else applies",
    settings=Reference,
    transforms=frozenset(TRANSFORMS),
)
