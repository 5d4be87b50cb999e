"""Arguments of `polyattn.attention` as a call in a foreign dialect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from polyattn import masks
from polyattn.arrays import Array, Backend, backend_of
from polyattn.dialects.layout import pack
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Dialect
from polyattn.dialects.to_polyattn import who
from polyattn.masks.algebra import And, Mask
from polyattn.masks.relative import Window
from polyattn.mods import Compose, ScoreMod, Softcap
from polyattn.problem import NAMES, Problem, pose

_OPTIONS = NAMES


@dataclass
class Words:
    """What a foreign call can say, part by part, in the axes of (B, H, L, S); `spell` writes it down."""

    q: Array
    k: Array
    v: Array
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    mask: Array | None = None  # bool, True = may attend; or numbers that are added
    bias: Array | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    score_mod: ScoreMod | None = None
    lse: bool = False


def say(d: Dialect, query: Array, key: Array, value: Array, repair: bool, options: Any) -> dict[str, Any]:
    """The keyword arguments of a foreign call."""
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise TypeError(
            f"{who(d)}.from_polyattn: expected arguments of polyattn.attention that say what is computed "
            f"({', '.join(_OPTIONS)}), got {', '.join(unknown)}; leave them out"
        )
    return spell(d, _Saying(d, pose("polyattn.attention", query, key, value, **options)).words(repair))


def spell(d: Dialect, words: Words) -> dict[str, Any]:
    """What is to be said, in the parameters of a dialect; nothing is adapted but the layout."""
    layout = d.answers["layout"].choice
    batch, heads, length, _ = words.q.shape
    kv_heads, keys = words.k.shape[1:3]
    operands = {"query": words.q, "key": words.k, "value": words.v}
    said: dict[str, Any] = {role: pack(layout, x) for role, x in operands.items()}
    if layout in ("LB(HD)", "B(L HD)"):
        said["heads"] = heads
    if words.mask is not None:
        said["mask"] = _shaped(d, words.mask, (batch, heads, length, keys))
    if words.bias is not None:
        said["score_mod" if d.of("bias") is None else "bias"] = words.bias
    if d.of("block_mask") is not None and words.mask is not None:
        said["block_mask"] = _block_mask(said.pop("mask"), length, keys)
    if words.score_mod is not None:
        said["score_mod"] = words.score_mod
    elif "score_mod" in said:
        said["score_mod"] = _adding(words.bias)
    if words.window is not None:
        left, right = words.window
        if d.of("left") is not None:
            said |= {"left": -1 if left is None else left, "right": -1 if right is None else right}
        else:
            said["window"] = _sides(d, left, right, length + keys)
    for role in ("scale", "softcap", "sinks"):
        if getattr(words, role) is not None:
            said[role] = getattr(words, role)
    if words.softcap is not None and d.of("clamps") is not None:
        said["clamps"] = True
    flag = d.of("causal")
    if words.causal or (flag is not None and flag.default is None):  # None: the module decides
        said["causal"] = words.causal
    if heads != kv_heads and d.of("gqa") is not None:
        said["gqa"] = True
    if d.of("module") is not None:
        said["module"] = SimpleNamespace(
            num_key_value_groups=heads // max(kv_heads, 1), is_causal=words.causal, training=False
        )
        said.setdefault("mask", None)
    if words.lse:
        said["lse"] = True
    names = {p.role: p.name for p in d.parameters}
    if missing := [role for role in said if role not in names]:
        raise ValueError(
            f"{who(d)}: expected a call without {', '.join(missing)}, which {d.what} does not take"
        )
    return {names[role]: value for role, value in said.items()}


def _shaped(d: Dialect, mask: Array, scores: tuple[int, int, int, int]) -> Array:
    """A mask in the shape that the library wants."""
    xp = backend_of(mask).xp
    if d.answers["layout"].choice == "LB(HD)":
        full = xp.broadcast_to(mask, scores)
        return xp.reshape(full, (scores[0] * scores[1], *scores[2:]))
    if d.answers["layout"].choice == "B(L HD)":
        return xp.broadcast_to(mask, scores)
    return mask


def _sides(d: Dialect, left: int | None, right: int | None, most: int) -> tuple[int | None, int | None]:
    parameter = d.of("window")
    assert parameter is not None
    default = parameter.default if isinstance(parameter.default, tuple) else (most, most)
    return (default[0] if left is None else left, default[1] if right is None else right)


def _block_mask(allowed: Array, length: int, keys: int) -> Any:
    batch, heads = allowed.shape[:2]
    return masks.from_array(allowed).to_block_mask(
        B=batch if batch > 1 else None,
        H=heads if heads > 1 else None,
        Q_LEN=length,
        KV_LEN=keys,
        device=str(allowed.device),
    )


def _adding(
    bias: Array | None, mod: ScoreMod | None = None, offset: Any = 0, keys: int | None = None
) -> ScoreMod:
    """A score_mod on row indices: a mod on positions for the first `keys` keys, then an array added."""

    def score_mod(score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        if mod is not None:
            xp = backend_of(score).xp
            own = kv_idx if keys is None else xp.where(kv_idx < keys, kv_idx, 0)
            modified = mod(score, b, h, q_idx + (offset[b] if hasattr(offset, "ndim") else offset), own)
            score = modified if keys is None else xp.where(kv_idx < keys, modified, score)
        if bias is not None:
            index = (i if n > 1 else i * 0 for i, n in zip((b, h, q_idx, kv_idx), bias.shape, strict=True))
            score = score + bias[tuple(index)]
        return score

    return score_mod


class _Saying:
    """One call of polyattn, adapted to what a dialect can say."""

    def __init__(self, d: Dialect, p: Problem) -> None:
        self.d, self.p = d, p
        self.backend: Backend = p.backend
        self.xp = p.backend.xp
        f = p.frame
        self.batch, self.heads, self.rows, self.keys = f.batch, f.heads, f.rows, f.keys
        self.q, self.k, self.v = (
            x if x.shape[0] == f.batch else self.xp.broadcast_to(x, (f.batch, *x.shape[1:]))
            for x in (p.q, p.k, p.v)
        )
        self.bias: Array | None = None if p.bias is None else self.backend.astype(p.bias, p.q.dtype)
        self.allowed: Array | None = None  # what flags do not say: (B, H, L, S)
        self.score_mod: ScoreMod | None = None

    def cannot(self, question: str, has: str, advice: str) -> ValueError:
        says = self.d.choice(question).says
        return ValueError(
            f"{who(self.d)}.from_polyattn: {QUESTIONS[question].asks}, in {self.d.name}: {says}; this call has {has}. "
            f"{advice}"
        )

    def words(self, repair: bool) -> Words:
        d, p = self.d, self.p
        if p.dropout_rate:
            raise ValueError(
                f"{who(d)}.from_polyattn: expected dropout_rate = 0, got {p.dropout_rate}; {d.name} draws other "
                "weights to drop from any seed: ask it for its own dropout"
            )
        width, out_width = self.q.shape[3], self.v.shape[3]
        if width != out_width and d.choice("value width").refuses:
            raise self.cannot(
                "value width", f"width {width} and {out_width}", "Pad the narrower one with zeros."
            )
        if repair and d.chose("float64", "float32", "refused") and str(p.q.dtype).endswith("float64"):
            raise self.cannot(
                "float64", "float64 arrays", "Cast them, or keep float64 with polyattn.attention."
            )
        if repair and d.chose("no keys", "refused") and not self.keys:
            raise self.cannot("no keys", "no keys", "Return zeros without the call.")
        softcap = self.functions()
        causal, window = self.flags()
        own_sinks = d.chose("sinks", "given")
        if p.sinks is not None and not own_sinks and d.chose("bias", "none"):
            raise self.cannot("sinks", "sinks", "Nothing else there can express them.")
        sinks = None if own_sinks else p.sinks
        if self.needs_a_key(causal, window, sinks, repair):
            # From here on everything is said by one mask.
            self.hide(self.flag_masks(causal, window))
            causal, window = False, None
            self.append_key(sinks)
        if self.heads != self.k.shape[1] and d.chose("grouped heads", "none", "h % Hkv"):
            own = self.backend.arange(0, self.heads, self.q) // max(self.heads // max(self.k.shape[1], 1), 1)
            self.k, self.v = (self.xp.take(x, own, axis=1) for x in (self.k, self.v))
        scale = self.scale()
        mask, bias = self.places()
        return Words(
            self.q,
            self.k,
            self.v,
            causal,
            window,
            mask,
            bias,
            scale,
            softcap,
            None
            if p.sinks is None or not own_sinks
            else self.xp.broadcast_to(p.sinks[:, 0, 0], (self.heads,)),
            self.score_mod,
        )

    # masks

    def flags(self) -> tuple[bool, tuple[int | None, int | None] | None]:
        """Causality and the window as flags, where the dialect's mean the same; the rest goes to one mask."""
        d, p = self.d, self.p
        causal, window, rest = False, None, list[Mask]()
        for part in _conjuncts(p.mask):
            if isinstance(part, Window):
                bounded = part.left is not None or part.right not in (None, 0)
                if bounded and window is not None:
                    rest.append(part)
                    continue
                causal = causal or part.right == 0
                if bounded:
                    window = (part.left, part.right)
            else:
                rest.append(part)
        last = d.chose("causal", "last rows") or d.chose("window", "neighbours, last rows")
        here = not hasattr(p.places.query, "ndim") and p.places.query == (
            self.keys - self.rows if last else 0
        )
        windowed = (
            window is not None
            and here
            and d.chose("window", "neighbours", "neighbours, last rows")
            and (d.of("window") is not None or d.of("left") is not None)
        )
        if window is not None and not windowed:
            rest.append(masks.window(*window))
        masked = bool(rest) or (self.bias is not None and d.chose("bias", "mask"))
        can = (
            causal
            and here
            and d.of("causal") is not None
            and not d.chose("causal", "hint")
            and not (d.chose("causal", "first rows unless alone") and self.rows == 1)
            and not (masked and d.chose("mask and causal", "kernel", "mask"))
            # Rows that see nothing are said better by a mask.
            and not (last and self.rows > self.keys and d.of("mask") is not None)
        )
        if causal and not can and not (windowed and window is not None and window[1] == 0):
            rest.append(masks.causal())
        for part in rest:
            self.hide(part)
        return can, window if windowed else None

    def hide(self, mask: Mask | None) -> None:
        if mask is None:
            return
        dense = mask.dense(
            self.rows,
            self.keys,
            batch=self.batch,
            heads=self.heads,
            query_offset=self.p.places.query,
            like=self.p.q,
        )
        self.allowed = dense if self.allowed is None else self.allowed & dense

    def flag_masks(self, causal: bool, window: tuple[int | None, int | None] | None) -> Mask | None:
        parts = [masks.causal()] * causal + ([] if window is None else [masks.window(*window)])
        whole: Mask | None = None
        for part in parts:
            whole = part if whole is None else whole & part
        return whole

    def visible(self, causal: bool, window: tuple[int | None, int | None] | None) -> Array:
        """What queries may attend to, everything together."""
        scores = (self.batch, self.heads, self.rows, self.keys)
        flags = self.flag_masks(causal, window)
        everything: Array = self.xp.ones(scores, dtype=self.xp.bool, device=self.backend.device(self.p.q))
        if flags is not None:
            everything = flags.dense(
                self.rows,
                self.keys,
                batch=self.batch,
                heads=self.heads,
                query_offset=self.p.places.query,
                like=self.p.q,
            )
        if self.allowed is not None:
            everything = everything & self.allowed
        return everything if self.bias is None else everything & (self.bias != -self.xp.inf)

    # arrays that are changed

    def needs_a_key(self, causal: bool, window: Any, sinks: Array | None, repair: bool) -> bool:
        """Whether a key is to be appended; on the way, hidden keys that are not finite become zero."""
        d, any_, all_ = self.d, self.xp.any, self.xp.all
        concrete = all(
            self.backend.is_concrete(x)
            for x in (self.q, self.k, self.v, self.allowed, self.bias)
            if x is not None
        )
        if not (repair and concrete and self.keys):
            return sinks is not None
        if not d.chose("poison", "cannot leak") and not bool(
            all_(self.xp.isfinite(self.k)) & all_(self.xp.isfinite(self.v))
        ):
            seen = any_(self.visible(causal, window), axis=2)
            seen = any_(self.xp.reshape(seen, (self.batch, self.k.shape[1], -1, self.keys)), axis=2)
            self.k, self.v = (self.xp.where(seen[..., None], x, 0.0) for x in (self.k, self.v))
        fates = [
            question
            for question in ("empty row", "empty bias row")
            if not d.chose(question, "0", "no bias", "0, causal mean")
        ]
        if sinks is not None or not fates or (window is self.allowed is self.bias is None):
            return sinks is not None  # causality alone leaves the first key
        self.empty = ~any_(self.visible(causal, window), axis=-1, keepdims=True)
        if not bool(any_(self.empty)):
            return False
        if d.of("mask") is None:
            raise self.cannot(fates[0], "such rows", "Leave those rows out.")
        return True

    def append_key(self, sinks: Array | None) -> None:
        """One more key and value of zeros: its score is 0, so that a bias makes it a sink, and a row that sees
        nothing else becomes 0."""
        xp, (batch, heads) = self.xp, (self.batch, self.heads)
        scores, column = (batch, heads, self.rows, self.keys), (batch, heads, self.rows, 1)
        where = {"device": self.backend.device(self.p.q)}

        def one_more(x: Array) -> Array:
            return xp.concat([x, xp.zeros((*x.shape[:2], 1, x.shape[3]), dtype=x.dtype, **where)], axis=2)

        self.k, self.v = one_more(self.k), one_more(self.v)
        allowed = xp.ones(scores, dtype=xp.bool, **where) if self.allowed is None else self.allowed
        seen = xp.ones(column, dtype=xp.bool, **where) if sinks is not None else self.empty
        self.allowed = xp.concat([allowed, xp.broadcast_to(seen, column)], axis=-1)
        if self.bias is not None or sinks is not None:
            added = xp.zeros(column, dtype=self.q.dtype, **where)
            bias = xp.broadcast_to(added if self.bias is None else self.bias, scores)
            if sinks is not None:
                added = added + self.backend.astype(sinks, self.q.dtype)
            self.bias = xp.concat([bias, added], axis=-1)
        self.keys += 1

    # numbers

    def scale(self) -> float | None:
        p, width = self.p, max(self.q.shape[3], 1)
        default = 1.0 / math.sqrt(width)
        if not hasattr(p.scale, "ndim"):
            if p.scale == default or (self.d.of("scale") is not None):
                return None if p.scale == default else float(p.scale)
            self.q = self.q * (p.scale / default)
            return None
        takes = self.d.of("scale") is not None
        factor = p.scale if takes else p.scale / default
        self.q = self.backend.astype(self.q * factor, self.q.dtype)
        return 1.0 if takes else None

    def functions(self) -> float | None:
        """A soft cap as an argument; other score modifications as a function, or as a bias if they add."""
        d, mod = self.d, self.p.score_mod
        if mod is None:
            return None
        if d.of("score_mod") is not None:
            self.score_mod = mod
            return None
        parts = list(mod.parts) if isinstance(mod, Compose) else [mod]
        cap: float | None = None
        if isinstance(parts[0], Softcap):
            adds = self.bias is not None or self.p.sinks is not None or len(parts) > 1
            late = d.chose("softcap", "after the bias") and adds
            if late or not d.chose("softcap", "before the bias", "after the bias"):
                raise self.cannot("softcap", f"{parts[0]!r}", "No other argument there can express it.")
            given = parts.pop(0)
            cap = float(given.cap)  # type: ignore[attr-defined]
        for part in parts:
            self.add(part)
        return cap

    def add(self, mod: ScoreMod) -> None:
        """The effect of a mod that adds to the scores, as a bias."""
        if self.d.chose("bias", "none"):
            raise self.cannot("bias", f"the score_mod {mod!r}", "Nothing else there can express it.")
        xp = self.xp
        scores = (self.batch, self.heads, self.rows, self.keys)
        at = self.p.positions()
        like = {"dtype": self.p.compute_dtype, "device": self.backend.device(self.p.q)}
        zero, one, low = (mod(xp.full(scores, x, **like), at.b, at.h, at.q, at.kv) for x in (0.0, 1.0, -2.0))
        apart = xp.abs(one - zero - 1.0) + xp.abs(low - zero + 2.0)
        near = 8.0 * xp.finfo(zero.dtype).eps * (3.0 + xp.abs(zero))  # the roundings of these sums
        if not self.backend.is_concrete(zero) or not bool(xp.all(apart <= near)):
            raise self.cannot(
                "bias", f"the score_mod {mod!r}, which does not only add", "Nothing there can express it."
            )
        added = self.backend.astype(zero, self.q.dtype)
        self.bias = added if self.bias is None else self.bias + added

    # places

    def places(self) -> tuple[Array | None, Array | None]:
        """The mask and the bias, where the dialect has a place for them."""
        d, allowed, bias = self.d, self.allowed, self.bias
        if d.of("score_mod") is not None:
            if self.score_mod is not None or bias is not None:
                self.score_mod = _adding(bias, self.score_mod, self.p.places.query, self.p.frame.keys)
            return allowed, None
        if allowed is not None and d.of("mask") is None:
            raise self.cannot(
                "bool mask",
                f"the mask {self.p.mask} with query_offset = {self.p.places.query}",
                "Only causality and windows can be said there.",
            )
        if bias is not None and d.chose("bias", "none"):
            raise self.cannot("bias", "a bias", "Nothing else there can express it.")
        if bias is not None and d.chose("bias", "mask"):
            if allowed is not None:
                bias = self.xp.where(allowed, bias, -self.xp.inf)
            return bias, None
        if allowed is not None and d.chose("bool mask", "refused"):
            zero = self.xp.zeros_like(self.q[:1, :1, :1, :1])
            return self.xp.where(allowed, zero, -self.xp.inf), bias
        if allowed is not None and d.chose("bool mask", "ignore"):
            allowed = ~allowed
        return allowed, bias


def _conjuncts(mask: Mask | None) -> list[Mask]:
    if mask is None:
        return []
    return [*_conjuncts(mask.left), *_conjuncts(mask.right)] if isinstance(mask, And) else [mask]
