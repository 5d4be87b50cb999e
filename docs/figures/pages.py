"""The pictures of pages beside docs/mechanisms/, drawn from what the library computes.

python docs/figures/pages.py        # writes a file beside this one for each of PICTURES
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from drawing import BLUE, INK, ORANGE, Picture

from polyattn import AuxRequest, mods, normalizers
from polyattn.caches import CircularCache, EvictingCache, KVCache, PagedCache, cached_attention
from polyattn.layers import GatedDeltaNet, KimiDeltaAttention, LatentAttention
from polyattn.linear import lightning_slopes, linear_attention
from polyattn.models.families import language_model
from polyattn.rotary import DynamicNTK, Linear, Llama3, LongRoPE, Rotary, YaRN

HERE = Path(__file__).parent


def normalizers_() -> Picture:
    """The weight of a score s beside a score of 1."""
    s = np.linspace(-3, 5, 161)
    pairs = np.stack([s, np.ones_like(s)], axis=-1)
    of = {name: normalizer.weights(pairs)[:, 0] for name, normalizer in normalizers.BY_NAME.items()}
    of["softmax plus one"] = normalizers.BY_NAME["softmax"].weights(np.pad(pairs, ((0, 0), (0, 1))))[:, 0]
    picture = Picture(690, 300, "The weight of a score s beside a score of 1, under six normalisers")
    ticks: Any = ({x: str(x) for x in range(-3, 6, 2)}, {0: "0", 0.5: "0.5", 1: "1"})
    for x, title, names in (
        (60, "the two weights sum to 1", ("softmax", "entmax15", "sparsemax")),
        (410, "they need not", ("sigmoid", "softmax plus one", "softpick")),
    ):
        curves = {name: list(of[name]) for name in names}
        picture.curves(
            (x, 34, 260, 160), list(s), curves, title=title, labels=("s", "weight of s"), ticks=ticks, legend=(x, 250)
        )  # fmt: skip
    return picture


def positions() -> Picture:
    """Frequencies by which pairs turn, over those without a scaling; and what is added to scores."""
    width, original = 128, 8192
    pairs = range(width // 2)
    long = tuple(1 + 7 * (i / 63) ** 2 for i in pairs)
    scalings = {
        "Linear(8)": Linear(8.0),
        "YaRN(8, 8192)": YaRN(8.0, original),
        "Llama3(8, 1, 4, 8192)": Llama3(8.0, 1.0, 4.0, original),
        "DynamicNTK(1, 8192), 65536 tokens": DynamicNTK(1.0, original),
        "LongRoPE, factors of 1 to 8 by a parabola": LongRoPE((1.0,) * 64, long, original, 8.0),
    }
    base = np.array(Rotary().frequencies(width))
    ratio = {
        name: list(np.array(Rotary(scaling=scaling).frequencies(width, length=8 * original)) / base)
        for name, scaling in scalings.items()
    }
    picture = Picture(
        700, 352, "Frequencies of pairs under five scalings, and what three modifications add to scores"
    )
    picture.curves(
        (62, 34, 270, 180), list(pairs), ratio, title="frequency over that without a scaling", labels=("pair", "ratio"),
        ticks=({0: "0", 16: "16", 32: "32", 48: "48", 64: "64"}, {0.125: "1/8", 0.25: "1/4", 0.5: "1/2", 1: "1"}),
        log=(False, True), legend=(20, 268),
    )  # fmt: skip
    n = 64
    keys = np.arange(n)
    gates = np.where(keys % 24 == 20, 0.2, 0.98)
    table = -0.5 * np.sqrt(np.arange(32.0))[:, None]
    added = {
        "alibi(1/8)": mods.alibi(np.array([0.125])),
        "relative_position_bias(-sqrt(bucket) / 2)": mods.relative_position_bias(table, bidirectional=False),
        "forgetting(gates 0.98, two of 0.2)": mods.forgetting(np.log(gates)[None]),
    }
    query, head = np.full((1, n), n - 1), np.zeros((1, 1), int)
    curves = {
        name: list(mod(np.zeros((1, n)), head, head, query, keys[None])[0]) for name, mod in added.items()
    }
    picture.curves(
        (410, 34, 270, 180), list(keys), curves, title="added to the scores of query 63", labels=("key", "added"),
        ticks=({0: "0", 16: "16", 32: "32", 48: "48", 64: "64"}, {-8: "-8", -6: "-6", -4: "-4", -2: "-2", 0: "0"}),
        legend=(390, 268),
    )  # fmt: skip
    return picture


def linear() -> Picture:
    """Eight tokens write a value each, under keys 0 1 2 3 0 1 2 0; a state has a row a key, a column for each value."""
    under = [0, 1, 2, 3, 0, 1, 2, 0]
    k, v = np.eye(4)[None, under], np.eye(8)[None]
    decay, one = np.full((1, 8, 1), math.log(0.75)), np.ones((1, 8, 1))
    rules = {
        "linear": {},
        "gated": {"decay": decay},
        "delta": {"beta": one},
        "gated delta": {"decay": decay, "beta": one},
    }
    picture = Picture(700, 306, "States of four rules after eight tokens, and the decays of eight heads")
    for i, (name, options) in enumerate(rules.items()):
        state = linear_attention(k, k, v, **options)[1][0]
        x, y = 36 + 186 * (i % 2), 28 + 126 * (i // 2)
        picture.heat(x, y, state, 18, title=name, most=1, axes=("token that wrote", "key"))
    steps = range(65)
    slopes = np.asarray(lightning_slopes(8, layer=0, depth=8))
    curves = {}
    for h in (0, 2, 4, 7):
        ones = np.zeros((1, 65, 1)) + (np.arange(65) == 0)[None, :, None]
        held = linear_attention(np.ones((1, 65, 1)), ones, ones, decay=np.full((1, 65, 1), -slopes[h]))[0]
        curves[f"head {h}"] = list(held[0, :, 0])
    picture.curves(
        (446, 28, 236, 160), list(steps), curves, title="what remains of token 0, lightning", labels=("tokens later", "share"),
        ticks=({0: "0", 16: "16", 32: "32", 48: "48", 64: "64"}, {0: "0", 0.5: "0.5", 1: "1"}), legend=(446, 242),
    )  # fmt: skip
    return picture


def caches() -> Picture:
    """Which token stands in which slot as tokens come; what the latest one reads is filled."""
    tokens = np.zeros((1, 1, 9, 2))
    empty: dict[str, Any] = {
        "KVCache, capacity 9": KVCache.empty(1, 1, 9, 2, like=tokens),
        "CircularCache, capacity 6, window 4": CircularCache.empty(1, 1, 4, 2, capacity=6, like=tokens),
        "EvictingCache, capacity 6, first and latest 3 kept": EvictingCache.empty(1, 1, 6, 2, like=tokens),
    }
    picture = Picture(
        740, 434, "Which token stands in which slot of a linear, a circular, an evicting and a paged cache"
    )
    for i, (title, cache) in enumerate(empty.items()):
        x, y = 96 + 356 * (i % 2), 28 + 210 * (i // 2)
        rows = []
        for t in range(9):
            if isinstance(cache, EvictingCache) and t >= 6:
                at = cache.positions
                cache = cache.evict((at == 0) | (at >= t - 3))
            cache = cache.append(tokens[:, :, t : t + 1], tokens[:, :, t : t + 1])
            rows.append(_slots(cache, tokens[:, :, :1]))
        picture.text(x, y - 8, title)
        picture.cells(x, y, rows[::2], (27, 26), [f"{t + 1} token{'s' * (t > 0)}" for t in range(0, 9, 2)])
        picture.text(x, y + 148, "slot 0, 1, 2, ...")
    x, y = 452, 238
    pages = PagedCache.empty(1, 1, 2, pages=5, page_size=2, pages_per_sequence=3, like=tokens)
    pages = pages.append(tokens[:, :, :3], tokens[:, :, :3])
    moments = {"a prompt": pages, "two go on": pages.fork([0, 0])}
    for n in range(1, 4):
        pages = list(moments.values())[-1]
        more = np.zeros((2, 1, 1, 2))
        moments[f"{n} more"] = pages.append(more, more)
    picture.text(x, y - 8, "PagedCache, 5 pages of 2 slots")
    picture.cells(x, y, [_pool(cache) for cache in moments.values()], (27, 26), list(moments))
    for page in range(5):
        picture.text(x + 54 * page + 26, y + 146, str(page), anchor="middle")
    picture.text(x - 8, y + 146, "page", anchor="end")
    for i, (colour, words) in enumerate({INK: "shared", BLUE: "answer 0", ORANGE: "answer 1"}.items()):
        picture.cells(x + 96 * i, y + 162, [[("", 0.3, colour)]], (14, 14), [""])
        picture.text(x + 96 * i + 18, y + 173, words)
    return picture


def _slots(cache: Any, query: Any) -> list[tuple[str, float, str]]:
    """The token in each slot, filled where the latest query reads it."""
    weights = cached_attention(query, cache, is_causal=True, return_aux=AuxRequest(weights=True))[1].weights
    at = np.broadcast_to(cache.positions, weights.shape)[0, 0, 0]
    there = (at >= 0) & (at < int(np.max(cache.length)))
    return [
        (str(p) if t else "", 0.3 * (w > 0), BLUE)
        for p, t, w in zip(at, there, weights[0, 0, 0], strict=True)
    ]


def _pool(cache: PagedCache) -> list[tuple[str, float, str]]:
    """The token in each slot of the pool, coloured by whose it is."""
    lengths = np.broadcast_to(cache.length, (len(cache.table),))
    slots = [("", 0.0, INK)] * (cache.page_size * len(cache.free))
    for item, length in enumerate(lengths):
        for p in range(length):
            slot = int(cache.table[item, p // cache.page_size]) * cache.page_size + p % cache.page_size
            mine = (BLUE, ORANGE)[item] if len(lengths) > 1 else INK
            slots[slot] = (str(p), 0.3, INK if slots[slot][0] else mine)
    return slots


#: what a layer attends by: a colour and an opacity that tell them apart without hue, in the order of the legend
KINDS = {
    "full, rotary": (BLUE, 0.75),
    "full, no positions": (BLUE, 0.0),
    "window": (BLUE, 0.25),
    "latent": (INK, 0.9),
    "linear, a delta rule": (ORANGE, 0.75),
}


def models() -> Picture:
    """The layers of families, first to last, by the configs that transformers has for them without arguments."""
    import transformers

    names = (
        "llama",
        "smollm3",
        "gemma2",
        "gemma3_text",
        "gpt_oss",
        "deepseek_v3",
        "qwen3_next",
        "kimi_linear",
    )
    picture = Picture(740, 284, "What each layer attends by, from first to last, in eight families")
    for i, name in enumerate(names):
        model, _ = language_model(transformers.AutoConfig.for_model(name))
        blocks = model.trunk.blocks
        kinds = [_kind(blocks[j % len(blocks)].attention) for j in range(model.trunk.depth)]
        row = [("", KINDS[kind][1], KINDS[kind][0]) for kind in kinds]
        picture.cells(104, 14 + 28 * i, [row], (10, 22), [name])
    for i, (words, (colour, opacity)) in enumerate(KINDS.items()):
        x, y = 104 + 190 * (i % 3), 246 + 20 * (i // 3)
        picture.cells(x, y, [[("", opacity, colour)]], (14, 14), [""])
        picture.text(x + 20, y + 11, words)
    return picture


def _kind(layer: Any) -> str:
    if isinstance(layer, GatedDeltaNet | KimiDeltaAttention):
        return "linear, a delta rule"
    if isinstance(layer, LatentAttention):
        return "latent"
    if layer.mask is not None:
        return "window"
    return "full, no positions" if layer.rotary is None else "full, rotary"


PICTURES = {
    "normalizers": normalizers_,
    "positions": positions,
    "linear": linear,
    "caches": caches,
    "models": models,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
