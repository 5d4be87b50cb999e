"""What attention with other conventions answers: one function with a switch for every convention and defect.

`Settings()` is the contract; dialects are settings, and `diagnose` searches among them. All is NumPy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.conventions.visible import allowed_keys, at_rows, seen_keys
from polyattn.rotary import Rotary
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["Answer", "answer", "merged_rightly", "merged_wrongly"]


@dataclass(frozen=True)
class Answer:
    """What an implementation with some settings returns on some rows, and how much rounding may move it."""

    out: Floats  # (B, Hq, rows, E)
    condition: Floats  # likewise: |error| <= eta * u * condition
    rounded: Floats  # likewise, what half precision rounds: `polyattn.truth.definition.Judged`
    weights: Floats  # (B, Hq, rows, S)
    values: Floats  # (B, Hq, S, E)


def answer(call: Call, settings: Settings = CONTRACT, rows: Floats | None = None) -> Answer:
    """What an implementation with these settings returns, on some query rows or on all."""
    _, heads, length, _ = call.shape
    if settings.layout != "as stated":
        over_heads = settings.layout == "attends over heads"
        part = answer(
            _relaid(call, settings.layout),
            replace(settings, layout="as stated"),
            None if over_heads else rows,
        )
        if over_heads:
            part = _over(part, lambda x: x.swapaxes(1, 2))
        return _rows(part, rows)
    if settings.merge != "as stated":
        whole = answer(call, replace(settings, merge="as stated"))
        return _rows(_over(whole, merged_wrongly), rows)
    if settings.softmax == "queries" and rows is not None:
        return _rows(answer(call, settings), rows)
    here = np.arange(length) if rows is None else rows
    if call.order is not None:
        return answer(replace(call, order=None), settings, call.order[here])

    q, k, v = call.q, call.k, call.v
    low = settings.precision.partition(" ")[0] if settings.precision != "as stated" else None
    stage = settings.precision.partition(" ")[2]
    if low and stage == "inputs":
        q, k, v = (_rounded(x, low) for x in (q, k, v))
    if settings.operands == "query and key swapped":
        q, k = k, q
    elif settings.operands == "key and value swapped":
        k, v = v, k
    if call.rotary is not None or settings.rotary != "as stated":
        q, k = _turned(call, settings.rotary, q, k)
    q = q[:, :, here]
    if low and stage == "operands":
        q, k, v = (_rounded(x, low) for x in (q, k, v))
    k, v = (_to_heads(x, heads, settings.heads) for x in (k, v))
    poisoned = not (np.isfinite(k).all() and np.isfinite(v).all())
    if poisoned and settings.poison != "leaks":
        seen = seen_keys(call, settings)
        k, v = np.where(seen, k, 0.0), v if settings.poison == "leaks from values" else np.where(seen, v, 0.0)

    scale = _scale(call, settings.scale)
    product = q @ k.swapaxes(-1, -2)
    if low and stage == "product":
        product = _rounded(product, low)
    size = np.abs(q) @ np.abs(k).swapaxes(-1, -2)
    if settings.bias == "before the scale" and call.bias is not None:
        product = product + at_rows(call.bias, here)
    warmth = 1.0 if call.temperature is None else at_rows(call.temperature, here)
    s = scale * warmth * product
    sabs = np.abs(scale * warmth) * size
    allowed = allowed_keys(call, settings, here)
    cap = call.softcap
    if cap is not None and settings.softcap in ("as stated", "rational", "before the scale", "tanh alone"):
        s, sabs = _capped(s, sabs, cap, settings.softcap, scale)
    for term, on in ((call.shift, True), (call.bias, settings.bias in ("as stated", "subtracted"))):
        if term is not None and on:
            sign = -1.0 if term is call.bias and settings.bias == "subtracted" else 1.0
            s = s + sign * np.where(np.isfinite(at_rows(term, here)), at_rows(term, here), 0.0)
            sabs = (
                sabs
                + np.abs(s)
                + np.where(np.isfinite(at_rows(term, here)), np.abs(at_rows(term, here)), 0.0)
            )
    if cap is not None and settings.softcap == "after the bias":
        s, sabs = _capped(s, sabs, cap, "as stated", scale)
    if settings.mask == "added as 0/1" and call.mask is not None:
        s = s + np.where(at_rows(call.mask, here), 1.0, 0.0)
    if settings.mask == "all added as 0/1":
        hiding = replace(settings, mask="hides")
        s = s + np.where(allowed_keys(replace(call, bias=None), hiding, here), 1.0, 0.0)
    if low and stage == "scores":
        s = _rounded(s, low)
    fill = {"-inf": -np.inf, "0": 0.0, "-1e4": -1e4}.get(settings.hidden, -np.inf)
    fill = fill if call.fill is None else call.fill
    unhidden = s
    if settings.mask != "after the softmax":
        s = np.where(allowed, s, fill if not poisoned else np.where(np.isfinite(s), fill, np.nan))
    if cap is not None and settings.softcap == "after the mask":
        s = np.where(allowed, cap * np.tanh(s / cap), -cap if fill == -np.inf else cap * np.tanh(fill / cap))

    kept = {"last dropped": slice(None, -1), "first dropped": slice(1, None)}.get(settings.keys, slice(None))
    s, sabs, unhidden, allowed, v = (*(x[..., kept] for x in (s, sabs, unhidden, allowed)), v[:, :, kept])
    w = _weights(call, settings, s)
    normalised = w  # what errors of the scores spread through
    if settings.mask == "after the softmax":
        w = w * allowed
    if low and stage in ("weights", "operands"):
        w = _rounded(w, low)
    empty = ~allowed.any(-1)
    if settings.mask != "after the softmax" and empty.any():
        hidden = ~allowed_keys(replace(call, bias=None), settings, here)[..., kept]
        w = _empty_rows(w, np.broadcast_to(empty, w.shape[:-1])[..., None], hidden, settings, unhidden)
        normalised = w
    sabs = np.where(np.isfinite(s) | (w != 0), sabs, 0.0)
    spread = np.abs(w) * (1.0 + sabs + (np.abs(normalised) * sabs).sum(-1, keepdims=True))
    if settings.softmax == "missing":
        spread = np.abs(w) + sabs
    with np.errstate(invalid="ignore", over="ignore"):
        out, condition = w @ v, spread @ np.abs(v)
        if call.added is not None:
            added = at_rows(call.added, here)
            out, condition = out + added, condition + np.abs(added)
        return Answer(out, condition, (np.abs(out) + np.abs(w) @ np.abs(v)) / 2, w, v)


def _over(part: Answer, move: Callable[[Floats], Floats]) -> Answer:
    """The answer with its elements moved."""
    return replace(part, **{name: move(getattr(part, name)) for name in ("out", "condition", "rounded")})


def _rows(whole: Answer, rows: Floats | None) -> Answer:
    if rows is None or whole.out.shape[2] == len(rows):
        return whole
    weights = whole.weights[:, :, rows] if whole.weights.shape[2] == whole.out.shape[2] else whole.weights
    return replace(_over(whole, lambda x: x[:, :, rows]), weights=weights)


def _scale(call: Call, choice: str) -> float:
    width = max(call.q.shape[3], 1)
    choices: dict[str, float] = {
        "as stated": call.scale,
        "twice": call.scale**2,
        "1": 1.0,
        "1/D": 1.0 / width,
        "1/sqrt(D)": 1.0 / math.sqrt(width),
        "sqrt(D)": math.sqrt(width),
        "1/sqrt(embed_dim)": 1.0 / math.sqrt(max(call.embed_dim, 1)),
        "1/sqrt(S)": 1.0 / math.sqrt(max(call.k.shape[2], 1)),
        "1/sqrt(kv_heads D)": 1.0 / math.sqrt(width * call.k.shape[1]),
    }
    return choices[choice]


def _to_heads(x: Floats, heads: int, choice: str) -> Floats:
    kv_heads = x.shape[1]
    if not kv_heads:
        raise ValueError("polyattn.conventions.answer: expected kv heads, got none; are the axes in order?")
    index = np.arange(heads)
    which = {
        "grouped": index // (heads // kv_heads),
        "tiled": index % kv_heads,
        "first only": index * 0,
        "reversed": kv_heads - 1 - index // (heads // kv_heads),
    }[choice]
    return x if kv_heads == heads and choice == "grouped" else x[:, which]


def _capped(s: Floats, sabs: Floats, cap: float, how: str, scale: float) -> tuple[Floats, Floats]:
    if how == "rational":
        return s / (1.0 + np.abs(s) / cap), sabs + np.abs(s)
    if how == "before the scale":
        bent = np.tanh(s / (scale * cap))
        return scale * cap * bent, sabs * (1 - bent**2) + 2 * abs(scale) * cap * np.abs(bent)
    bent = np.tanh(s / cap)
    factor = 1.0 if how == "tanh alone" else cap
    return factor * bent, (sabs * (1 - bent**2) + 2 * cap * np.abs(bent)) * factor / cap


def _weights(call: Call, settings: Settings, s: Floats) -> Floats:
    if settings.softmax == "missing":
        return np.where(np.isfinite(s), s, 0.0)
    if settings.softmax == "sigmoid":
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-s))
    axis = {"queries": -2, "heads": 1}.get(settings.softmax, -1)
    base = math.log(2.0) if settings.softmax == "base 2" else 1.0
    s = s * base
    top = s.max(axis=axis, keepdims=True, initial=-np.inf)
    sink = None
    if call.sinks is not None and settings.sinks == "as stated":
        sink = call.sinks[None, :, None, None] * base
    if settings.softmax == "plus one":
        sink = np.zeros((1, 1, 1, 1)) if sink is None else np.logaddexp(sink, 0.0)
    if sink is not None:
        top = np.maximum(top, sink)
    top = np.where(np.isfinite(top), top, 0.0)
    e = np.exp(s - top)
    total = e.sum(axis=axis, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return e / np.where(total == 0, 1.0, total)


def _empty_rows(w: Floats, empty: Floats, hidden: Floats, settings: Settings, unhidden: Floats) -> Floats:
    """The weights of rows that see nothing; `hidden` is what masks hide, without -inf in the bias."""
    by_bias = empty & ~hidden.any(-1, keepdims=True)
    # A finite mask constant is above the -inf of a bias: what the mask hides shares the weight.
    share = np.where(
        by_bias, 1.0 / max(w.shape[-1], 1), hidden / np.maximum(hidden.sum(-1, keepdims=True), 1)
    )
    for rows, fate in ((empty, settings.empty_rows), (by_bias, settings.bias_rows)):
        if fate == "mean of all values":
            w = np.where(rows, share, w)
        elif fate == "as if unmasked":
            e = np.exp(unhidden - unhidden.max(-1, keepdims=True))
            w = np.where(rows, e / e.sum(-1, keepdims=True), w)
        elif fate == "NaN":
            w = np.where(rows, np.nan, w)
    return np.where(by_bias, 0.0, w) if settings.bias_rows == "zero" else w


def _turned(call: Call, choice: str, q: Floats, k: Floats) -> tuple[Floats, Floats]:
    if choice == "dropped":
        return q, k
    rotary = Rotary() if call.rotary is None else call.rotary
    if choice in ("other pairing", "applied interleaved"):
        rotary = replace(rotary, interleaved=not rotary.interleaved)
    shift = {"queries one late": 1, "queries from 0": -call.offset}.get(choice, 0)
    at_q, at_k = np.arange(q.shape[2]) + call.offset, np.arange(k.shape[2])
    if call.positions is not None:
        at_q, at_k = call.positions
    at_q = at_q + shift
    return rotary(q, at_q), (k if choice == "queries alone" else rotary(k, at_k))


def _relaid(call: Call, layout: str) -> Call:
    def split(x: Floats) -> Floats:
        b, h, n, d = x.shape
        flat = x.swapaxes(1, 2).reshape(b, n, h * d)
        if layout == "split without transpose":
            return flat.reshape(b, h, n, d)
        if layout == "heads interleaved":
            return flat.reshape(b, n, d, h).transpose(0, 3, 1, 2)
        return x.swapaxes(1, 2)  # attends over heads

    return replace(call, q=split(call.q), k=split(call.k), v=split(call.v))


def merged_wrongly(x: Floats) -> Floats:
    """(B, H, L, E) written side by side without a transpose, and read as it should have been."""
    b, h, n, d = x.shape
    return x.reshape(b, n, h, d).swapaxes(1, 2)


def merged_rightly(x: Floats) -> Floats:
    """The inverse of `merged_wrongly`."""
    return x.swapaxes(1, 2).reshape(x.shape)


def _rounded(x: Floats, low: str) -> Floats:
    if low == "tf32":
        bits = x.astype(np.float32).view(np.uint32)
        bits = (bits + (0xFFF + ((bits >> 13) & 1))) & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        # By way of float32, as in a program: a number halfway after that is halfway for it too.
        return round_to(x.astype(np.float32).astype(np.float64), low)
