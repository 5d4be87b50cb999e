"""What implementations of attention differ in: one function with a switch for every convention and defect.

`Settings()` is the contract. Each field names another choice that some library makes or some program made
by mistake; dialects are settings, and `diagnose` searches among them. Everything is NumPy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from polyattn.backend import backend_of, is_array
from polyattn.masks.algebra import Mask
from polyattn.masks.builtin import Function, Window
from polyattn.masks.combine import And
from polyattn.mods import Compose, Softcap
from polyattn.parity.measure import round_to
from polyattn.parity.spec import Floats
from polyattn.positions import Rotary


@dataclass(frozen=True)
class Call:
    """What was asked of an implementation, in NumPy: the parts of a problem that conventions treat differently."""

    q: Floats  # (B, Hq, L, D) float64
    k: Floats  # (B, Hkv, S, D)
    v: Floats  # (B, Hkv, S, E)
    mask: Floats | None = None  # bool, broadcasting to (B, Hq, L, S): all but causality and the window
    is_causal: bool = False
    window: tuple[int | None, int | None] | None = None  # neighbours on each side
    offset: int = 0  # position of query row 0
    scale: float = 1.0
    softcap: float | None = None
    shift: Floats | None = None  # what other mods add, broadcasting to the scores
    bias: Floats | None = None
    sinks: Floats | None = None  # (Hq,)
    rotary: Rotary | None = None  # still to be applied to q and k
    embed_dim: int = 0  # width of the model

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return (*self.q.shape[:3], self.k.shape[2])


@dataclass(frozen=True)
class Settings:
    """A choice in every question that implementations answer differently; the defaults are the contract."""

    scale: str = "as stated"
    polarity: str = "attend"
    mask: str = "hides"
    hidden: str = "-inf"
    empty_rows: str = "zero"
    bias_rows: str = "as empty rows"  # those that -inf in the bias alone leaves with nothing
    poison: str = "cannot leak"  # what is not finite in keys and values that no query sees
    causal: str = "as stated"
    window: str = "as stated"
    softcap: str = "as stated"
    bias: str = "as stated"
    sinks: str = "as stated"
    heads: str = "grouped"
    layout: str = "as stated"
    merge: str = "as stated"
    softmax: str = "keys"
    rotary: str = "as stated"
    keys: str = "all"
    operands: str = "as stated"
    precision: str = "as stated"

    def changes(self) -> dict[str, str]:
        """The fields that differ from the contract."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


CONTRACT = Settings()


@dataclass(frozen=True)
class Answer:
    """What an implementation with some settings returns on some rows, and how much rounding may move it."""

    out: Floats  # (B, Hq, rows, E)
    condition: Floats  # likewise: |error| <= eta * u * condition
    weights: Floats  # (B, Hq, rows, S)
    values: Floats  # (B, Hq, S, E)


def pose(query: Any, key: Any, value: Any, context: Mapping[str, Any]) -> Call:
    """The call that arguments of `polyattn.attention` describe, of any library, plus rotary= and embed_dim=."""
    given = dict(context)
    layout = given.pop("layout", "BHLD")
    if layout not in ("BHLD", "BLHD"):
        raise ValueError(f"polyattn.parity: expected layout 'BHLD' or 'BLHD', got {layout!r}")
    q, k, v = (
        _four(_floats(name, x), layout) for name, x in (("query", query), ("key", key), ("value", value))
    )
    batch = max(x.shape[0] for x in (q, k, v))
    if (
        any(x.shape[0] not in (1, batch) for x in (q, k, v))
        or k.shape[1:3] != v.shape[1:3]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(
            "polyattn.parity: expected query (B, Hq, L, D), key (B, Hkv, S, D) and value (B, Hkv, S, E), got "
            f"{q.shape}, {k.shape} and {v.shape} (in layout BHLD); do they belong together?"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"polyattn.parity: expected Hkv to divide Hq, got {k.shape[1]} and {q.shape[1]}")
    q, k, v = (np.broadcast_to(x, (batch, *x.shape[1:])) for x in (q, k, v))
    shape = (*q.shape[:3], k.shape[2])
    rows, keys = shape[2:]
    offset = given.pop("query_offset", None)
    offset = keys - rows if isinstance(offset, str) and offset == "end" else 0 if offset is None else offset
    if is_array(offset):
        if np.ndim(_plain(offset)):
            raise ValueError(
                "polyattn.parity: expected one query_offset, got one per batch item; ask item by item"
            )
        offset = int(_plain(offset))
    call: dict[str, Any] = {"q": q, "k": k, "v": v, "offset": offset}
    call["is_causal"] = bool(given.pop("is_causal", False))
    mask = given.pop("mask", None)
    if mask is not None:
        call |= _mask(mask, shape, offset, call["is_causal"])
    scale = given.pop("scale", None)
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[3]) if q.shape[3] else 1.0
    if is_array(scale):
        scale = _plain(scale)
        if scale.ndim:
            raise ValueError("polyattn.parity: expected scale to be a number, got one per head")
    call["scale"] = float(scale)
    if (mod := given.pop("score_mod", None)) is not None:
        call |= _mods(mod, shape, offset)
    if (bias := given.pop("bias", None)) is not None:
        call["bias"] = _four(_floats("bias", bias), "BHLD")
    if (sinks := given.pop("sinks", None)) is not None:
        call["sinks"] = np.broadcast_to(_floats("sinks", np.asarray(_plain(sinks))), (shape[1],))
    call["rotary"] = given.pop("rotary", None)
    call["embed_dim"] = given.pop("embed_dim", None) or shape[1] * q.shape[3]
    if given:
        raise TypeError(
            f"polyattn.parity: expected arguments of polyattn.attention that have conventions, rotary or embed_dim, "
            f"got {', '.join(sorted(given))}; leave them out"
        )
    return Call(**call)


def _plain(x: Any) -> Floats:
    return np.asarray(backend_of(x).to_numpy(x) if is_array(x) else x)


def _floats(name: str, x: Any) -> Floats:
    x = _plain(x)
    if x.dtype.kind not in "fV" and x.dtype.name != "bfloat16":
        raise TypeError(
            f"polyattn.parity: expected {name} to be a real floating array, got {x.dtype}; convert it"
        )
    wide: Floats = x.astype(np.float64)
    return wide


def _four(x: Floats, layout: str) -> Floats:
    """(B, H, L, D), whatever leading axes and layout it had."""
    if x.ndim < 2:
        raise ValueError(f"polyattn.parity: expected arrays of rank 2 to 4, got shape {x.shape}")
    if x.ndim > 4:
        raise ValueError(
            f"polyattn.parity: expected arrays of rank 2 to 4, got shape {x.shape}; join the leading axes"
        )
    if layout == "BLHD" and x.ndim > 2:
        x = x.swapaxes(-2, -3)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _mask(mask: Any, shape: tuple[int, int, int, int], offset: int, causal: bool) -> dict[str, Any]:
    """Causality, the window and the rest of a mask, apart."""
    if callable(mask) and not isinstance(mask, Mask) and not is_array(mask):
        mask = Function(mask)
    if not isinstance(mask, Mask):
        array = _plain(mask)
        if array.dtype != bool:
            raise TypeError(
                f"polyattn.parity: expected a bool mask, True = may attend, got {array.dtype}; additive values are bias="
            )
        return {"mask": array.reshape((1,) * (4 - array.ndim) + array.shape)}
    found: dict[str, Any] = {}
    rest = []
    for part in _conjuncts(mask):
        bounded = isinstance(part, Window) and (part.left is not None or part.right != 0)
        if isinstance(part, Window) and not (bounded and "window" in found):
            causal = causal or part.right == 0  # the one thing that both names say
            if bounded:
                found["window"] = (part.left, None if part.right == 0 else part.right)
        else:
            rest.append(part)
    for part in rest:
        dense = np.asarray(
            part.dense(shape[2], shape[3], batch=shape[0], heads=shape[1], query_offset=offset)
        )
        found["mask"] = dense & found.get("mask", True)
    return found | {"is_causal": causal}


def _conjuncts(mask: Mask) -> list[Mask]:
    return [*_conjuncts(mask.left), *_conjuncts(mask.right)] if isinstance(mask, And) else [mask]


def _mods(mod: Any, shape: tuple[int, int, int, int], offset: int) -> dict[str, Any]:
    """A soft cap, and what the other mods add."""
    parts = list(mod.parts) if isinstance(mod, Compose) else [mod]
    found: dict[str, Any] = {}
    for i, part in enumerate(parts):
        if isinstance(part, Softcap) and i == 0:
            found["softcap"] = float(_plain(part.cap))
            continue
        b, h, q, kv = np.ix_(*(np.arange(n) for n in shape))
        zero, one, low = (np.asarray(part(np.full(shape, x), b, h, q + offset, kv)) for x in (0.0, 1.0, -2.0))
        if not (np.allclose(one - zero, 1.0) and np.allclose(low - zero, -2.0)):
            raise ValueError(
                "polyattn.parity: expected a score_mod that is softcap first and adds to the scores after that, got "
                f"{part!r}; its conventions are not known"
            )
        found["shift"] = found.get("shift", 0.0) + zero
    return found


# the one function


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
            part = replace(part, out=part.out.swapaxes(1, 2), condition=part.condition.swapaxes(1, 2))
        return _rows(part, rows)
    if settings.merge != "as stated":
        whole = answer(call, replace(settings, merge="as stated"))
        return _rows(replace(whole, out=unmerge(whole.out), condition=unmerge(whole.condition)), rows)
    if settings.softmax == "queries" and rows is not None:
        return _rows(answer(call, settings), rows)
    here = np.arange(length) if rows is None else rows

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
        seen = _seen(call, settings)
        k, v = np.where(seen, k, 0.0), v if settings.poison == "leaks from values" else np.where(seen, v, 0.0)

    scale = _scale(call, settings.scale)
    product = q @ k.swapaxes(-1, -2)
    if low and stage == "product":
        product = _rounded(product, low)
    size = np.abs(q) @ np.abs(k).swapaxes(-1, -2)
    if settings.bias == "before the scale" and call.bias is not None:
        product = product + _at(call.bias, here)
    s = scale * product
    sabs = abs(scale) * size
    allowed = allowed_keys(call, settings, here)
    cap = call.softcap
    if cap is not None and settings.softcap in ("as stated", "rational", "before the scale", "tanh alone"):
        s, sabs = _capped(s, sabs, cap, settings.softcap, scale)
    for term, on in ((call.shift, True), (call.bias, settings.bias in ("as stated", "subtracted"))):
        if term is not None and on:
            sign = -1.0 if term is call.bias and settings.bias == "subtracted" else 1.0
            s = s + sign * np.where(np.isfinite(_at(term, here)), _at(term, here), 0.0)
            sabs = sabs + np.abs(s) + np.where(np.isfinite(_at(term, here)), np.abs(_at(term, here)), 0.0)
    if cap is not None and settings.softcap == "after the bias":
        s, sabs = _capped(s, sabs, cap, "as stated", scale)
    if settings.mask == "added as 0/1" and call.mask is not None:
        s = s + np.where(_at(call.mask, here), 1.0, 0.0)
    if low and stage == "scores":
        s = _rounded(s, low)
    fill = {"-inf": -np.inf, "0": 0.0, "-1e4": -1e4}.get(settings.hidden, -np.inf)
    unhidden = s
    if settings.mask != "after the softmax":
        s = np.where(allowed, s, fill if not poisoned else np.where(np.isfinite(s), fill, np.nan))
    if cap is not None and settings.softcap == "after the mask":
        s = np.where(
            allowed, cap * np.tanh(s / cap), -cap if settings.hidden == "-inf" else cap * np.tanh(fill / cap)
        )

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
        return Answer(w @ v, spread @ np.abs(v), w, v)


def _rows(whole: Answer, rows: Floats | None) -> Answer:
    if rows is None or whole.out.shape[2] == len(rows):
        return whole
    weights = whole.weights[:, :, rows] if whole.weights.shape[2] == whole.out.shape[2] else whole.weights
    return Answer(whole.out[:, :, rows], whole.condition[:, :, rows], weights, whole.values)


def _at(x: Floats, rows: Floats) -> Floats:
    """The rows of something that broadcasts to the scores."""
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    return x if x.shape[2] == 1 else x[:, :, rows]


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
    index = np.arange(heads)
    which = {
        "grouped": index // (heads // kv_heads),
        "tiled": index % kv_heads,
        "first only": index * 0,
        "reversed": kv_heads - 1 - index // (heads // kv_heads),
    }[choice]
    return x if kv_heads == heads and choice == "grouped" else x[:, which]


def allowed_keys(call: Call, settings: Settings, rows: Floats) -> Floats:
    """Which keys those query rows may attend to, broadcasting to (B, Hq, rows, S)."""
    length, keys = call.shape[2:]
    allowed = np.ones((1, 1, len(rows), keys), bool)
    row, key = rows[:, None], np.arange(keys)[None, :]
    at = row + call.offset
    both_sides = call.window is not None and settings.window == "symmetric" and settings.causal == "as stated"
    if call.is_causal and not both_sides:  # a window on both sides is what stands for causality
        end = row + keys - length
        allowed = (
            allowed
            & {
                "as stated": key <= at,
                "top-left": key <= row,
                "bottom-right": key <= end,
                "dropped": key == key,
                "diagonal hidden": key < at,
                "one ahead": key <= at + 1,
                "transposed": key >= at,
            }[settings.causal]
        )
    if call.window is not None:
        left, right = call.window
        more = {"one key more": 1, "one key less": -1}.get(settings.window, 0)
        if settings.window == "symmetric":
            right = left
        if settings.window == "from the first row":
            at = row
        elif settings.window == "from the last row":
            at = row + keys - length
        if settings.window != "dropped":
            if left is not None:
                allowed = allowed & (key >= at - left - more)
            if right is not None:
                allowed = allowed & (key <= at + right + (more if right else 0))
    if call.mask is not None and settings.mask in ("hides", "after the softmax", "hides queries"):
        mask = call.mask
        if settings.mask == "hides queries":
            mask = mask[..., :1, :].swapaxes(-1, -2) if mask.shape[3] == length else mask
        if settings.polarity == "ignore":
            mask = ~mask
        allowed = allowed & _at(mask, rows)
    if call.bias is not None and settings.bias != "dropped":
        allowed = allowed & (_at(call.bias, rows) != -np.inf)
    return allowed


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


def _seen(call: Call, settings: Settings) -> Floats:
    """The keys that some query of the kv head may attend to, (B|1, Hq|1, S, 1)."""
    heads, kv_heads, length = call.shape[1], call.k.shape[1], call.shape[2]
    seen: Floats = np.any(allowed_keys(call, settings, np.arange(length)), axis=-2)
    if seen.shape[1] > 1:
        groups = seen.reshape(seen.shape[0], kv_heads, heads // kv_heads, -1)
        seen = np.repeat(groups.any(2), heads // kv_heads, axis=1)
    return seen[..., None]


def _turned(call: Call, choice: str, q: Floats, k: Floats) -> tuple[Floats, Floats]:
    if choice == "dropped":
        return q, k
    rotary = Rotary() if call.rotary is None else call.rotary
    if choice in ("other pairing", "applied interleaved"):
        rotary = replace(rotary, interleaved=not rotary.interleaved)
    shift = {"queries one late": 1, "queries from 0": -call.offset}.get(choice, 0)
    at_q, at_k = np.arange(q.shape[2]) + call.offset + shift, np.arange(k.shape[2])
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


def unmerge(x: Floats) -> Floats:
    """(B, H, L, E) written side by side without a transpose, and read as it should have been."""
    b, h, n, d = x.shape
    return x.reshape(b, n, h, d).swapaxes(1, 2)


def merge(x: Floats) -> Floats:
    """The inverse of `unmerge`."""
    return x.swapaxes(1, 2).reshape(x.shape)


def _rounded(x: Floats, low: str) -> Floats:
    if low == "tf32":
        bits = x.astype(np.float32).view(np.uint32)
        bits = (bits + (0xFFF + ((bits >> 13) & 1))) & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        # By way of float32, as in a program: a number halfway after that is halfway for it too.
        return round_to(x.astype(np.float32).astype(np.float64), low)
