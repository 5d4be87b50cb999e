"""The roof of a chip over what programs ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polyattn.pictures.canvas import BLUE, INK, drawing, frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roofline(peak: float, bandwidth: float, programs: Mapping[str, float]) -> Figure:
    """Operations per second that a chip can reach, min(peak, intensity * bandwidth), over operations per byte.

    peak: operations per second; bandwidth: bytes per second; programs: name -> operations per byte, a mark each on the
    roof. Both axes are logarithmic. Source: Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009.
    """
    with drawing("roofline", (6.4, 3.4)) as figure:
        axes = figure.subplots()
        ridge = peak / bandwidth
        reach = np.array([0.5, ridge, 8 * ridge])
        axes.plot(reach, np.minimum(peak, reach * bandwidth) / 1e12, color=INK, linewidth=2)
        for name, intensity in programs.items():
            height = min(peak, intensity * bandwidth) / 1e12
            axes.plot([intensity, intensity], [0.3, height], color=BLUE, linewidth=0.8, linestyle=":")
            axes.plot(intensity, height, color=BLUE, marker="o")
            axes.annotate(
                f"{name}: {intensity:.3g}", (intensity, height), (-6, 4),
                textcoords="offset points", fontsize=8, ha="right",
            )  # fmt: skip
        axes.annotate(
            f"ridge: {ridge:.3g}", (ridge, peak / 1e12), (0, 6), textcoords="offset points", fontsize=8
        )
        axes.set(
            xscale="log", yscale="log", xlim=(0.1, 10 * ridge), ylim=(0.5, 2.5 * peak / 1e12),
            xlabel="operations per byte of memory traffic", ylabel="10¹² operations per second, at most",
        )  # fmt: skip
        frame(axes, "left", "bottom")
    return figure
