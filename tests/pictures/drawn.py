"""The pictures whose pixels are kept, and how they are drawn: python tests/pictures/drawn.py [NAME ...] draws baseline/ anew."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyattn import AuxRequest, attention, masks, pictures
from polyattn.rotary import Linear, Rotary

BASELINE = Path(__file__).parent / "baseline"
DPI = 60
#: What a token may hold at worst: mathematics, a line's end, a turn to the left, an emoji, a tower of accents, length.
HOSTILE = ["$\\frac{", "a\nb\tc", "\u202egnp.exe", "\U0001f600", "e\u0301\u0301\u0301\u0301", "x" * 200, ""]
SENTENCE = ["The", "cat", "sat", "on", "the", "mat", "."]


def written(figure: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sign that no font has, a layout that found no room
        figure.savefig(file, format="png", dpi=60)
    return file.getvalue()


def attended(heads: int = 4, length: int = 7) -> Any:
    """Causal weights (H, L, L)."""
    q, k = 2 * np.random.default_rng(0).normal(size=(2, heads, length, 8))
    return attention(q, k, k, is_causal=True, return_aux=AuxRequest(weights=True))[1].weights


def image() -> Any:
    y, x = np.mgrid[:48, :64]
    return np.stack([np.exp(-((x - 40) ** 2 + (y - 18) ** 2) / 150.0), x / 64, y / 48], axis=-1)


def looked_at() -> Any:
    y, x = np.mgrid[:6, :8]
    return np.exp(-((x - 4.5) ** 2 + (y - 2) ** 2) / 3.0) / 10


def aligned() -> Any:
    scores = np.zeros((4, 8))
    scores[[0, 1, 2, 3], [6, 7, 3, 0]] = 4.0
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


#: The numbers at the bar of these grow longer as the map gets its place, so that one pass of the layout would cut them.
SCORES = np.add.outer(np.arange(6), np.arange(6)) / 6
ROW = np.array([0.4, 1.1, -0.5, 2.3, 0.2, -np.inf, 1.9, 0.3])
VALUES = np.random.default_rng(1).normal(size=(8, 3))


def apart() -> Any:
    right = np.random.default_rng(2).normal(size=(3, 8, 4))
    wrong = right.copy()
    wrong[1, 4:] += np.array([1e-3, 1e-2, 0.1, 1.0])[:, None]
    wrong[2, 2, 1] = np.nan
    return pictures.mismatch(wrong, right, names=("mine", "ours"))


LENGTHS = [2**n for n in range(7, 13)]
PICTURES: dict[str, Callable[[], Any]] = {
    "weights": lambda: pictures.weights(attended()[0], SENTENCE, title="head 0"),
    "scores": lambda: pictures.weights(
        SCORES,
        ["your", "journey", "starts", "with", "one", "step"],
        title="scores",
        rows="who looks",
        columns="who is looked at",
        colours="score",
    ),
    "hostile": lambda: pictures.weights(attended()[1], HOSTILE),
    "heads": lambda: pictures.heads(attended(), SENTENCE, columns=2),
    "mask": lambda: pictures.mask(masks.sliding_window(3) | masks.prefix(1), SENTENCE),
    "mask-tiles": lambda: pictures.mask(masks.sliding_window(5) | masks.prefix(3), 16, tile=(4, 4)),
    "over-image": lambda: pictures.over_image(image(), looked_at()),
    "alignment": lambda: pictures.alignment(aligned(), list("3 May 98"), list("9803")),
    "online-softmax": lambda: pictures.online_softmax(ROW, VALUES, tile=2),
    "rotary-clocks": lambda: pictures.rotary_angles(Rotary(width=8), np.arange(8)),
    "rotary-waves": lambda: pictures.rotary_angles(Rotary(width=16, scaling=Linear(2.0)), np.arange(64)),
    "alibi": lambda: pictures.alibi_slopes(8),
    "ring": lambda: pictures.ring(4),
    "over-length": lambda: pictures.over_length(
        LENGTHS,
        {
            "definition": [n * n if n < 4096 else None for n in LENGTHS],
            "blockwise": [300 * n for n in LENGTHS],
        },
        unit="bytes",
    ),
    "mismatch": apart,
}


def save(name: str, path: Path) -> None:
    """A picture as PNG on white paper, whatever the settings of the user."""
    from matplotlib import rc_context, rcParamsDefault

    fixed = {key: x for key, x in rcParamsDefault.items() if not key.startswith("backend")}
    with rc_context(fixed):
        PICTURES[name]().savefig(
            path, dpi=DPI, facecolor="#ffffff", transparent=False, metadata={"Software": None}
        )


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        save(name, BASELINE / f"{name}.png")
