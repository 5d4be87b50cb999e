"""The picture of the start page: one flag, two meanings, when three tokens are decoded beside a cache of sixteen.

    python docs/figures/decoding.py        # writes decoding.svg beside this file

The weights are those of `polyattn.attention`; grey ink and a transparent ground are in sight on white paper and on black.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyattn import AuxRequest, attention

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "the",
    "dog",
    "that",
    "had",
    "slept",
    "all",
    "day",
    "woke",
    "up",
]
ROWS = 3
INK, TILE, WRONG = "#767676", "#3b82f6", "#d1453b"
LEFT, CELL = 76, 35  # pixels: room for a word, and a weight
FILE = Path(__file__).with_suffix(".svg")


def weights(query_offset: Any) -> Any:
    """(3, 16): what each of the last three words reads of all, under is_causal=True."""
    q, k = np.random.default_rng(4).normal(size=(2, len(WORDS), 16))
    asked = AuxRequest(weights=True)
    _, aux = attention(2 * q[-ROWS:], k, k, is_causal=True, query_offset=query_offset, return_aux=asked)
    return aux.weights


def panel(top: int, title: str, colour: str, read: Any) -> str:
    """A row of tiles for each of the last words, opaque where it reads much."""
    parts = [
        f'<text x="{LEFT}" y="{top - 14}" font-size="19" font-weight="600" fill="{colour}">{title}</text>'
    ]
    for i, (word, row) in enumerate(zip(WORDS[-ROWS:], read, strict=True)):
        y = top + i * CELL
        parts.append(f'<text x="{LEFT - 10}" y="{y + 24}" text-anchor="end">{word}</text>')
        for j, weight in enumerate(row):
            place = f'x="{LEFT + j * CELL}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="4"'
            parts.append(f'<rect {place} fill="none" stroke="{INK}" stroke-opacity="0.4"/>')
            if weight > 0:
                parts.append(f'<rect {place} fill="{colour}" fill-opacity="{0.3 + 0.7 * weight**0.5:.2f}"/>')
    return "".join(parts)


def picture() -> str:
    words = "".join(
        f'<text transform="translate({LEFT + j * CELL + 23} 50) rotate(-60)">{word}</text>'
        for j, word in enumerate(WORDS)
    )
    meant = panel(96, "what is meant: each word reads all up to itself", TILE, weights("end"))
    flag = panel(250, "is_causal=True computes: the first words only", WRONG, weights(0))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + len(WORDS) * CELL + 10}" height="360" '
        f'viewBox="0 0 {LEFT + len(WORDS) * CELL + 10} 360" role="img" font-family="sans-serif" font-size="18" fill="{INK}">'
        "<title>Three tokens decoded beside a cache of sixteen: what is meant, and what is_causal=True computes</title>"
        f"{words}{meant}{flag}</svg>\n"
    )


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
