"""What a foreign call can say, part by part, and its spelling in the parameters of a dialect."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from polyattn import masks
from polyattn.arrays import Array, backend_of, readable
from polyattn.dialects.layout import pack
from polyattn.dialects.record import Record
from polyattn.mods import ScoreMod
from polyattn.places import Positions

__all__ = ["Words", "adding", "spell"]


_CAUSAL = ("causal", "causal_bottom_right")  # first query with first key; last with last


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
    ends: tuple[Array, Array] | None = None  # of packed sequences of queries and of keys, in every item


def spell(d: Record, words: Words) -> dict[str, Any]:
    """What is to be said, in the parameters of a dialect; nothing is adapted but the layout."""
    layout = d.answers["layout"].choice
    batch, heads, length, width = words.q.shape
    kv_heads, keys = words.k.shape[1:3]
    operands = {"query": words.q, "key": words.k, "value": words.v}
    said: dict[str, Any] = {}
    if d.caches:
        said = _cached(d, words)
        operands |= {"key": words.k[:, :, keys - length :, :], "value": words.v[:, :, keys - length :, :]}
    if layout == "LHD" and batch > 1:
        raise ValueError(
            f"{d.who('from_polyattn')}: expected one batch item, got {batch}; call it item by item"
        )
    said |= {role: pack(layout, x) for role, x in operands.items()}
    if layout in ("LB(HD)", "B(L HD)", "BL(HD)"):
        said["heads"] = heads
    if d.caches:
        said["kv_heads"] = kv_heads
    if layout == "THD":
        said |= _sequences(d, words)
    if words.mask is not None:
        said["mask"] = _shaped(d, words.mask, (batch, heads, length, keys))
    if words.bias is not None:
        said["score_mod" if d.of("bias") is None else "bias"] = words.bias
    if d.of("block_mask") is not None and words.mask is not None:
        several: dict[str, Any] = {
            name: n if n > 1 else None for name, n in zip("BH", words.mask.shape, strict=False)
        }
        where = {"Q_LEN": length, "KV_LEN": keys, "device": str(words.mask.device)}
        said["block_mask"] = masks.from_array(said.pop("mask")).to_block_mask(**several, **where)
    if words.score_mod is not None:
        said["score_mod"] = words.score_mod
    elif "score_mod" in said:
        said["score_mod"] = adding(words.bias)
    if words.window is not None:
        left, right = words.window
        if d.of("left") is not None:
            said["left"] = -1 if left is None else left
            if d.of("right") is not None:
                said["right"] = -1 if right is None else right
        elif d.chose("window", "with itself"):
            said["window"] = left
        else:
            said["window"] = _sides(d, left, right, length + keys)
    for role in ("scale", "softcap", "sinks"):
        if getattr(words, role) is not None:
            said[role] = getattr(words, role)
    if words.bias is not None and d.of("bias_word") is not None:
        said["bias_word"] = "post_scale_bias"
    if words.softcap is not None and d.of("clamps") is not None:
        said["clamps"] = True
    scale, flag, place = d.of("scale"), d.of("causal"), d.of("mask")
    if place is not None and place.default is inspect.Parameter.empty:
        said.setdefault("mask", None)
    if scale is not None and scale.default is inspect.Parameter.empty:
        said.setdefault("scale", max(width, 1) ** -0.5)
    if words.causal and d.chose("causal", "word"):
        if said.get("mask") is not None:
            raise ValueError(
                f"{d.who('from_polyattn')}: expected a mask or causality, got both, for which there is one place; "
                "say it by the mask"
            )
        said["mask"] = "causal"
    elif d.chose("causal", "words"):
        said["mask_word"] = (
            "arbitrary" if said.get("mask") is not None else _CAUSAL[1] if words.causal else "no_mask"
        )
    # None: the module decides; True: it is causal unless it is told otherwise
    elif words.causal or (flag is not None and (flag.default is None or flag.default)):
        said["causal"] = words.causal
    if heads != kv_heads and d.of("gqa") is not None:
        said["gqa"] = True
    if d.of("module") is not None:
        said["module"] = SimpleNamespace(
            num_key_value_groups=heads // max(kv_heads, 1), is_causal=words.causal, training=False
        )
    if words.lse:
        said["lse"] = True
    names = {p.role: p.name for p in d.parameters}
    if missing := [role for role in said if role not in names]:
        raise ValueError(
            f"{d.who('from_polyattn')}: expected a call that {d.what} has parameters for ({', '.join(names)}), got "
            f"{', '.join(missing)}; leave it out"
        )
    return {names[role]: value for role, value in said.items()}


def _cached(d: Record, words: Words) -> dict[str, Any]:
    """The keys before those of the queries as a cache, and how many there are in all."""
    (batch, _, length, _), keys, backend = words.q.shape, words.k.shape[2], backend_of(words.q)
    if keys < length:
        raise ValueError(
            f"{d.who('from_polyattn')}: expected as many keys as queries or more, got {keys} and {length}; leave out "
            "the queries that stand before all keys"
        )
    last = backend.astype(backend.arange(0, batch, words.q) * 0 + (keys - 1), backend.xp.int32)
    said = {"last_key": last, "total": backend.xp.max(last) + 1}
    if keys > length:
        before = slice(0, keys - length)
        said |= {"past_key": words.k[:, :, before, :], "past_value": words.v[:, :, before, :]}
    return said


def _sequences(d: Record, words: Words) -> dict[str, Any]:
    """Where the sequences begin and end, and how long the longest is: each item is one, or has those that were given."""
    backend, said = backend_of(words.q), dict[str, Any]()
    for i, (side, x) in enumerate((("q", words.q), ("k", words.k))):
        batch, _, n, _ = x.shape
        firsts = backend.arange(0, batch + 1, x) * n
        ends = firsts if words.ends is None else backend.astype(words.ends[i], firsts.dtype)
        known = readable(ends)
        if words.ends is not None and batch > 1:
            if not known:
                raise ValueError(
                    f"{d.who('from_polyattn')}: expected one batch item, or cu_seqlens_{side} that can be read, got {batch} "
                    "items and traced ones; call it item by item"
                )
            within = backend.xp.reshape(firsts[:-1, None] + ends[None, :-1], (-1,))
            ends = backend.xp.concat([within, firsts[-1:]])
        lengths = backend.to_list(ends[1:] - ends[:-1]) if known else [n]
        said |= {f"ends_{side}": ends, f"longest_{side}": max(lengths)}
    return said


def _shaped(d: Record, mask: Array, scores: tuple[int, int, int, int]) -> Array:
    """A mask in the shape that the library wants."""
    xp = backend_of(mask).xp
    if d.chose("layout", "LB(HD)", "B(L HD)"):
        mask = xp.broadcast_to(mask, scores)
    return xp.reshape(mask, (-1, *scores[2:])) if d.chose("layout", "LB(HD)") else mask


def _sides(d: Record, left: int | None, right: int | None, most: int) -> tuple[int | None, int | None]:
    default = next(p.default for p in d.parameters if p.role == "window")
    default = default if isinstance(default, tuple) else (most, most)
    return (default[0] if left is None else left, default[1] if right is None else right)


def adding(
    bias: Array | None, mod: ScoreMod | None = None, at: Positions | None = None, keys: int = 0
) -> ScoreMod:
    """A score_mod on indices: a mod on the positions of the first `keys` keys, then an array added."""

    def score_mod(score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        def here(x: Array, key: Array) -> Array:
            index = zip((b, h, q_idx, key), x.shape, strict=True)
            return x[tuple(i if n > 1 else i * 0 for i, n in index)]

        if mod is not None and at is not None:
            xp = backend_of(score).xp
            own = xp.where(kv_idx < keys, kv_idx, 0)
            modified = mod(score, b, h, here(at.q, own), here(at.kv, own))
            score = xp.where(kv_idx < keys, modified, score)
        return score if bias is None else score + here(bias, kv_idx)

    return score_mod
