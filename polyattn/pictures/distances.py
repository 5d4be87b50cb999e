"""Positions: the angles that a rotary turns by, the biases of ALiBi over distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array, backend_of
from polyattn.calls import answers, integer, integral, shown
from polyattn.mods import alibi
from polyattn.mods import alibi_slopes as slopes_of
from polyattn.pictures.canvas import BLUE, INK, TILE, VERMILLION, beside, drawing, frame
from polyattn.rotary import Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["alibi_slopes", "rotary_angles"]

CLOCKS = 16  # positions and pairs up to which each angle is a clock
PAIRS = 12  # panels of waves at most


@answers("polyattn.pictures.rotary_angles", "settings")
def rotary_angles(
    rotary: Rotary, positions: Array, *, width: int | None = None, length: int | None = None
) -> Figure:
    """The angles by which a rotary turns the pairs of a vector: clocks, positions to the right and pairs downwards.

    positions: integers (L,), with sections (axes, L). width: how many entries are turned; None: the width of the rotary,
    and 16 where it has none. length: that of the text, for a scaling that asks for it. A hand points to the right at
    angle 0, as the axis of the first entry of a pair does, and is as long as the amplitude of the scaling. Beyond 16
    positions or pairs it is the cosine of each pair over positions, of 12 pairs from first to last.
    The angles are read from what the rotary makes of the vectors (1, 0).

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> from polyattn.rotary import Rotary
    >>> figure = pictures.rotary_angles(Rotary(width=4), np.arange(3))
    >>> [line.get_ydata()[1].round(3).item() for line in figure.axes[0].lines]  # sines of pair 0, then of pair 1
    [0.0, -0.421, -0.455, 0.0, -0.005, -0.01]
    """
    who = "polyattn.pictures.rotary_angles"
    if not isinstance(rotary, Rotary):
        raise TypeError(
            f"{who}: expected a polyattn.rotary.Rotary, got {shown(rotary)}; write Rotary(width=64), or "
            "Rotary.from_config(config)"
        )
    turned = _turned(who, rotary, positions, width, length)
    count, pairs = turned.shape[:2]
    where = backend_of(positions).to_numpy(positions)
    names = [str(p) for p in (where.T.tolist() if where.ndim > 1 else where.tolist())]
    if count <= CLOCKS and pairs <= CLOCKS:
        return _clocks(who, turned, names)
    return _waves(who, turned, where, rotary, 2 * pairs, length)


def _turned(who: str, rotary: Rotary, positions: Any, width: int | None, length: Any) -> NDArray[np.float64]:
    """What becomes of (1, 0): (L, pairs, 2)."""
    backend = integral(who, "positions", positions, "one for each token")
    axes = 1 if rotary.sections is None else 2
    if positions.ndim != axes or 0 in positions.shape:
        shape = "(L,)" if axes == 1 else f"({len(rotary.sections or ())}, L)"
        raise ValueError(
            f"{who}: expected positions of shape {shape}, got {tuple(positions.shape)}; write arange(8)"
        )
    if width is not None and rotary.width not in (None, width):
        raise ValueError(
            f"{who}: expected the width of the rotary, {rotary.width}, got {width}; leave width out"
        )
    entries = (rotary.width or 16) if width is None else integer(who, "width", width, 2)
    if rotary.sections is not None and width is None and rotary.width is None:
        entries = 2 * sum(rotary.sections)
    unit = np.zeros((positions.shape[-1], entries))
    first = slice(None, None, 2) if rotary.interleaved else slice(None, entries // 2)
    unit[:, first] = 1.0
    found = rotary(unit, backend.to_numpy(positions), length=length)
    if rotary.interleaved:
        return found.reshape(len(unit), -1, 2)
    return np.stack([found[:, : entries // 2], found[:, entries // 2 :]], axis=-1)


def _clocks(who: str, turned: NDArray[Any], names: list[str]) -> Figure:
    count, pairs = turned.shape[:2]
    with drawing(who, (0.5 * count + 1.3, 0.5 * pairs + 0.75)) as figure:
        from matplotlib.patches import Circle

        axes = figure.subplots()
        longest = max(1.0, float(np.hypot(turned[..., 0], turned[..., 1]).max()))
        for pair in range(pairs):
            for place in range(count):
                x, y = 0.46 * turned[place, pair] / longest
                axes.add_patch(Circle((place, pair), 0.46, facecolor="none", edgecolor=INK, linewidth=0.6))
                axes.plot(
                    [place, place + x], [pair, pair - y], color=TILE, linewidth=2, solid_capstyle="round"
                )
        axes.set(xlim=(-0.6, count - 0.4), ylim=(pairs - 0.4, -0.6), aspect="equal")
        frame(axes)
        style: dict[str, Any] = {"rotation": 90} if max(map(len, names)) > 4 else {}
        axes.set_xticks(range(count), names, **style)
        axes.set_yticks(range(pairs), [str(i) for i in range(pairs)])
        axes.tick_params(length=0)
        axes.set(xlabel="position", ylabel="pair")
    return figure


def _waves(
    who: str, turned: NDArray[Any], where: NDArray[Any], rotary: Rotary, width: int, length: Any
) -> Figure:
    pairs = turned.shape[1]
    chosen = np.unique(np.linspace(0, pairs - 1, min(PAIRS, pairs)).round().astype(int))
    frequencies = rotary.frequencies(width, length=length)
    x = where if where.ndim == 1 else np.arange(where.shape[-1])
    order = np.argsort(x, kind="stable")
    with drawing(who, (7.0, 0.5 * len(chosen) + 0.7)) as figure:
        rows = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        for axes, pair in zip(rows, chosen.tolist(), strict=True):
            axes.axhline(0, color=INK, alpha=0.4, linewidth=0.6)
            axes.plot(x[order], turned[order, pair, 0], color=TILE, linewidth=1.4)
            wave = 2 * np.pi / frequencies[pair] if frequencies[pair] else np.inf
            axes.text(
                1.01, 0.5, f"pair {pair}: {_length(wave)}", transform=axes.transAxes, va="center", fontsize=8
            )
            most = 1.1 * max(1.0, float(np.abs(turned).max()))
            frame(axes, *(("bottom",) if axes is rows[-1] else ()))
            axes.set_yticks([])
            axes.tick_params(length=3 if axes is rows[-1] else 0)
            axes.set(ylim=(-most, most), xlim=(x.min(), x.max() + (x.min() == x.max())))
        rows[-1].set_xlabel("position" if where.ndim == 1 else "token")
        rows[0].set_title("cosine of the angle", fontsize=10)
    return figure


def _length(wave: float) -> str:
    return "never turns" if wave == np.inf else f"turns in {wave:{'.1f' if wave < 100 else '.0f'}}"


@answers("polyattn.pictures.alibi_slopes", "settings")
def alibi_slopes(num_heads: int, *, length: int = 64) -> Figure:
    """What ALiBi adds to a score, over the distance between query and key: a line a head, -slope |q - kv|.

    length: of the sequence, so that the largest distance is length - 1. The numbers are those of `mods.alibi`.
    Source: Press 2021, arXiv:2108.12409, figure 3.

    >>> from polyattn import pictures
    >>> figure = pictures.alibi_slopes(2, length=3)
    >>> [line.get_ydata().tolist() for line in figure.axes[0].lines]
    [[0.0, -0.0625, -0.125], [0.0, -0.00390625, -0.0078125]]
    """
    who = "polyattn.pictures.alibi_slopes"
    heads = integer(who, "num_heads", num_heads, 1, most=64)
    length = integer(who, "length", length, 2, most=2**16)
    distance = np.arange(length)
    bias = alibi(heads)(
        np.zeros((heads, length)), np.array(0), np.arange(heads)[:, None], np.array(length - 1), length - 1 - distance
    )  # fmt: skip
    with drawing(who, (6.4, max(3.0, 0.17 * heads + 0.95))) as figure:
        axes = figure.subplots()
        for head in range(heads):
            axes.plot(
                distance, bias[head], color=(BLUE, VERMILLION)[head % 2], linestyle=("-", "--")[head % 2]
            )
        frame(axes, "left", "bottom")
        axes.set(xlabel="distance |q - kv|", ylabel="added to the score", xlim=(0, length - 1))
        axes.set_ylim(1.04 * float(bias.min()), 0)
        slopes = slopes_of(heads)
        beside(
            axes,
            [
                (
                    length - 1,
                    float(bias[head, -1]),
                    f"head {head}: {slopes[head]:.3g}",
                    (BLUE, VERMILLION)[head % 2],
                )
                for head in range(heads)
            ],
        )
    return figure
