"""Figures for slides, drawn from what the library computes.

python docs/teachers/slides.py docs/_build/slides        # four files for each of FIGURES; or: make figures
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from slide import SMALL, Slide, Theme, save

from polyattn import attention, masks, trace
from polyattn.caches import CircularCache, KVCache, LatentCache
from polyattn.normalizers.softmax import finish, lift, merge
from polyattn.rotary import Rotary

__all__ = ["FIGURES", "TOKENS", "VECTORS"]

TOKENS = ("The", "cat", "sat", "on", "the", "mat")
#: Those of the case "golden six tokens", which are query, key and value.
VECTORS = np.array(
    [[0.42, 0.15, 0.89], [0.78, 0.33, 0.21], [0.12, 0.44, 0.67], [0.56, 0.91, 0.73], [0.34, 0.29, 0.85], [0.63, 0.11, 0.49]]
)  # fmt: skip
LN2 = math.log(2.0)


def steps(theme: Theme) -> Slide:
    """Scores, softmax, sum: six tokens, every number."""
    slide = Slide(theme, "Scores, softmax, sum")
    found = {
        stage.name: np.asarray(stage.value)[0, 0] for stage in trace(VECTORS, VECTORS, VECTORS, scale=1.0)
    }
    cell, high, top = 0.78, 0.72, 3.3
    places = (
        (1.9, "scores  q · k", found["scores"]),
        (7.25, "softmax: weights", found["weights"]),
        (12.6, "sum: w · v", found["output"]),
    )
    for x, name, values in places:
        slide.words(x + values.shape[1] * cell / 2, 2.1, name, size=22)
        slide.grid(x, top, values, cell, numbers=True, high=high)
    for i, token in enumerate(TOKENS):
        slide.words(1.75, top + (i + 0.5) * high, token, ha="right", size=18)
        for x, _, _ in places[:2]:
            slide.words(x + (i + 0.5) * cell, top - 0.3, token, size=15)
    for x in (6.92, 12.26):
        slide.words(x, top + 3 * high, "→", size=26, color=theme.orange)
    slide.words(
        8,
        8.3,
        "each row of weights sums to 1; each row of the result is an average of the values",
        size=SMALL,
    )
    return slide


def gallery(theme: Theme) -> Slide:
    """Eight masks of eight tokens."""
    slide = Slide(theme, "Who may look at whom")
    ids = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    shown = {
        "causal": masks.causal(),
        "last 3 keys": masks.sliding_window(3),
        "neighbours": masks.window(1, 1),
        "prefix, causal": masks.prefix(3) | masks.causal(),
        "documents": masks.segments(ids) & masks.causal(),
        "blocks of 2": masks.block_causal(2),
        "every 2nd key": masks.dilated(2) & masks.causal(),
        "chunks of 4": masks.chunked(4),
    }
    for n, (name, mask) in enumerate(shown.items()):
        x, y = 1.2 + n % 4 * 3.6, 1.65 + n // 4 * 3.45
        rows = [[letter == "#" for letter in line.split()] for line in mask.show(8).splitlines()]
        slide.grid(x, y, np.array(rows, float), 0.33, most=1.0)
        slide.words(x + 1.32, y + 2.98, name, size=19)
    slide.words(8, 8.72, "queries downwards, keys to the right", size=SMALL)
    return slide


def heads(theme: Theme) -> Slide:
    """Which query head reads which head of keys and values."""
    slide = Slide(theme, "Query heads share keys and values")
    for n, (name, kv_heads) in enumerate((("multi-head", 8), ("grouped", 2), ("multi-query", 1))):
        left, step = 0.9 + 5.05 * n, 0.54
        value = np.arange(float(kv_heads))[:, None, None]
        read = attention(np.zeros((8, 1, 1)), np.zeros((kv_heads, 1, 1)), value).ravel().astype(int)
        place = [
            left + np.mean([h for h in range(8) if read[h] == kv]) * step + step / 2 for kv in range(kv_heads)
        ]
        slide.words(left + 4 * step, 2.3, name, size=24)
        for h, kv in enumerate(read):
            slide.line((left + (h + 0.5) * step, place[kv]), (3.7, 6.0), zorder=0)
            slide.box(left + h * step + 0.04, 3.3, step - 0.08, 0.7, strength=1.0)
            slide.words(left + (h + 0.5) * step, 3.65, str(h), size=SMALL, color=theme.paper)
        for kv, x in enumerate(place):
            slide.box(x - step / 2 + 0.04, 5.9, step - 0.08, 0.7, strength=1.0, color=theme.orange)
            slide.words(x, 6.25, str(kv), size=SMALL, color=theme.paper)
        slide.words(left + 4 * step, 7.2, f"{kv_heads} kv head{'s' * (kv_heads > 1)}", size=20)
    slide.words(8, 8.3, "query head h reads kv head h // (Hq // Hkv)", size=20, family="DejaVu Sans Mono")
    return slide


def alignment(theme: Theme) -> Slide:
    """Two queries beside four keys: two meanings of causal."""
    slide = Slide(theme, "Causal, but where do the queries stand?")
    value = np.array([8.0, 4, 0, 12])[:, None]
    for x, offset, name, kind in (
        (1.6, 0, "query_offset=0", "the first rows"),
        (9.4, "end", 'query_offset="end"', "the last rows"),
    ):
        out = attention(
            np.zeros((2, 1)), np.zeros((4, 1)), value, is_causal=True, query_offset=offset
        ).ravel()
        lines = masks.causal().show(2, 4, query_offset=0 if offset == 0 else 2).splitlines()
        slide.words(x + 2.2, 2.3, name, size=22, family="DejaVu Sans Mono")
        slide.grid(
            x,
            3.7,
            np.array([[letter == "#" for letter in line.split()] for line in lines], float),
            1.1,
            most=1.0,
        )
        for j in range(4):
            slide.words(x + (j + 0.5) * 1.1, 3.35, f"key {j}", size=17)
        for i, row in enumerate(out):
            slide.words(x - 0.15, 3.7 + (i + 0.5) * 1.1, f"q{i}", ha="right", size=20)
            slide.words(x + 4.65, 3.7 + (i + 0.5) * 1.1, f"→ {row:g}", ha="left", size=22, color=theme.orange)
        slide.words(x + 2.2, 6.7, f"{kind} of a longer text", size=20)
    slide.words(8, 8.1, "scores of 0, values 8, 4, 0, 12: the outputs are plain averages", size=18)
    return slide


def fold(theme: Theme) -> Slide:
    """A softmax in three tiles."""
    slide = Slide(theme, "One row, three tiles: maximum, sum, average")
    tiles = [((0, 0), (2, 6)), ((2, 1), (6, 8)), ((1, 1), (2, 4))]
    met: list[int] = []
    seen: Any = None
    for n, (scores, values) in enumerate(tiles):
        met += scores
        tile = lift(np.array([scores]) * LN2, np.array(values, float)[:, None])
        now = tile if seen is None else merge(seen, tile)
        factor = 0.0 if seen is None else math.exp(seen.top.item() - now.top.item())
        top, left = now.top.item() / LN2, 1.0 + 5.0 * n
        slide.words(left + 2.0, 2.0, f"after tile {n + 1}", size=22)
        for j in range(6):
            tall = 2.0 ** (met[j] - top) * 2.2 if j < len(met) else 0.03
            color = theme.orange if 2 * n <= j < 2 * n + 2 else theme.blue
            slide.box(left + j * 0.67, 5.0 - tall, 0.57, tall, strength=float(j < len(met)), color=color)
            slide.words(left + j * 0.67 + 0.285, 5.3, str(met[j]) if j < len(met) else "·", size=17)
        rows = (
            ("maximum", f"{top:g}"),
            ("old × ", f"{factor:g}"),
            ("sum", f"{now.sum.item():g}"),
            ("average", f"{finish(now).item():g}"),
        )
        for i, (name, number) in enumerate(rows):
            slide.words(left + 2.2, 6.05 + 0.6 * i, name.strip(), ha="right", size=19)
            slide.words(left + 2.6, 6.05 + 0.6 * i, number, ha="left", size=20, weight="bold")
        seen = now
    slide.words(
        8, 8.6, "bars: 2^(score − maximum); where the maximum grows, what was summed shrinks", size=SMALL
    )
    return slide


def caches(theme: Theme) -> Slide:
    """What decoding keeps, as the text grows."""
    slide = Slide(theme, "What decoding keeps: 32 layers, width 128, 2 bytes")
    like, lengths = np.zeros((), np.float16), [2**n for n in range(8, 15)]
    kinds: dict[str, Callable[[int], Any]] = {
        "32 kv heads": lambda n: KVCache.empty(1, 32, n, 128, like=like),
        "8 kv heads": lambda n: KVCache.empty(1, 8, n, 128, like=like),
        "latent 512 + 64": lambda n: LatentCache.empty(1, n, 512, 64, like=like),
        "1 kv head": lambda n: KVCache.empty(1, 1, n, 128, like=like),
        "8, last 1024": lambda n: CircularCache.empty(1, 8, min(n, 1024), 128, like=like),
    }
    axes = slide.plot((0.1, 0.14, 0.66, 0.66), xlabel="tokens", ylabel="MiB", xscale="log", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    styles = ("-", "--", "-.", ":", (0, (5, 1)))
    for (name, make), style in zip(kinds.items(), styles, strict=True):
        kept = [make(n) for n in lengths]
        size = [
            32 * (c.key.nbytes + (0 if isinstance(c, LatentCache) else c.value.nbytes)) / 2**20 for c in kept
        ]
        color = theme.orange if name in ("latent 512 + 64", "8, last 1024") else theme.blue
        axes.plot(lengths, size, linewidth=4, linestyle=style, color=color)
        label = {
            "xytext": (12, 0),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 18,
            "color": theme.ink,
        }
        axes.annotate(name, (lengths[-1], size[-1]), annotation_clip=False, **label)
    axes.set_xlim(lengths[0], lengths[-1])
    axes.set_xticks(lengths[::2], [f"{n}" for n in lengths[::2]])
    axes.set_yticks([2**n for n in range(2, 14, 3)], [f"{2**n}" for n in range(2, 14, 3)])
    return slide


def turns(theme: Theme) -> Slide:
    """Rotary positions: arrows that turn, and scores of distances."""
    slide = Slide(theme, "Rotary positions turn pairs; scores see distances")
    rotary, at = Rotary(base=16.0), np.arange(6)
    turned = rotary(
        np.tile(np.array([1.0, 1.0, 0.0, 0.0]), (6, 1)), at
    )  # half-split: (entry 0, entry 2), (1, 3)
    for n in range(2):
        x, y, radius = 2.6 + 4.1 * n, 4.9, 1.55
        circle = np.linspace(0, 2 * math.pi, 200)
        slide.line(x + radius * np.cos(circle), y - radius * np.sin(circle), linewidth=1.5)
        for place in at:
            a, b = turned[place, n], turned[place, n + 2]
            shade = {
                "arrowstyle": "-|>",
                "linewidth": 3,
                "color": theme.blue if place else theme.orange,
                "mutation_scale": 22,
            }
            slide.axes.annotate("", (x + radius * a, y - radius * b), (x, y), arrowprops=shade)
            slide.words(x + 1.2 * radius * a, y - 1.2 * radius * b, str(place), size=17)
        slide.words(x, 2.3, f"pair {n}: {rotary.frequencies(4)[n]:g} rad a token", size=19)
    q, k = (
        rotary(np.tile(np.array(v), (10, 1)), np.arange(10))
        for v in ([1.0, 1.0, 0.2, 0.4], [1.0, 1.0, 0.0, 0.0])
    )
    scores = q @ k.T
    slide.grid(9.9, 2.9, scores - scores.min(), 0.42)
    slide.words(12.0, 2.3, "q at m  ·  k at n", size=19)
    slide.words(12.0, 7.5, "the same along each diagonal", size=18)
    slide.words(4.65, 7.5, "one vector at the positions 0 to 5", size=18)
    return slide


def costs(theme: Theme) -> Slide:
    """Products of a causal head: softmax and linear."""
    width = 64
    slide = Slide(theme, f"A softmax costs L², a state costs L (width {width})")

    def softmax(n: int) -> int:  # q . k and w v for each pair that a causal row sees
        return 2 * width * n * (n + 1) // 2

    def linear(n: int) -> int:  # k v into the state, and q out of it, for each token
        return 2 * width * width * n

    lengths = [2**n for n in range(4, 15)]
    axes = slide.plot((0.12, 0.15, 0.62, 0.65), xlabel="tokens L", ylabel="multiplications of a head")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    for name, count, color, style in (
        ("softmax", softmax, theme.blue, "-"),
        ("linear", linear, theme.orange, "--"),
    ):
        counts = [count(n) for n in lengths]
        axes.plot(lengths, counts, linewidth=4, color=color, linestyle=style)
        label = {
            "xytext": (12, 0),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 22,
            "color": color,
        }
        axes.annotate(name, (lengths[-1], counts[-1]), annotation_clip=False, **label)
    meet = next(n for n in range(1, lengths[-1]) if softmax(n) >= linear(n))
    axes.axvline(meet, color=theme.line, linewidth=2, linestyle=":")
    axes.set_xlim(lengths[0], lengths[-1])
    axes.set_xticks(lengths[::2], [str(n) for n in lengths[::2]])
    slide.words(12.35, 5.9, f"from L = {meet} the\nstate is cheaper", size=19, ha="left", linespacing=1.4)
    return slide


FIGURES: Mapping[str, Callable[[Theme], Slide]] = {
    "steps": steps,
    "masks": gallery,
    "heads": heads,
    "alignment": alignment,
    "fold": fold,
    "caches": caches,
    "turns": turns,
    "costs": costs,
}


def write(folder: Path) -> list[Path]:
    """All files of all figures."""
    return [path for name, draw in FIGURES.items() for path in save(draw, name, folder)]


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
