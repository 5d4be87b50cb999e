"""The work of a ring of devices under a causal mask: who holds which tokens, and who waits for whom.

DIVISIONS["striped"](8, 4)             the tokens of each of 4 devices
pairs(tokens_of_devices)               [device][step]: pairs of a query and a key that it sees
drawn(8, 4)                            both, as a picture
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap

from polyattn.draw import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tokens = list[list[int]]  # of each device
#: Of Okabe and Ito (2008); a device keeps its colour.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7")


def in_a_row(tokens: int, devices: int) -> Tokens:
    """Device i has the i-th stretch."""
    size = tokens // devices
    return [list(range(i * size, (i + 1) * size)) for i in range(devices)]


def striped(tokens: int, devices: int) -> Tokens:
    """Device i has the tokens i, i + n, i + 2 n, ... of n devices (Brandon 2023, arXiv:2311.09431)."""
    return [list(range(i, tokens, devices)) for i in range(devices)]


def zigzag(tokens: int, devices: int) -> Tokens:
    """Device i has stretch i of 2 n, and the i-th from the end."""
    stretches = in_a_row(tokens, 2 * devices)
    return [stretches[i] + stretches[-1 - i] for i in range(devices)]


DIVISIONS: dict[str, Callable[[int, int], Tokens]] = {
    "in a row": in_a_row,
    "striped": striped,
    "zigzag": zigzag,
}


def pairs(held: Tokens) -> list[list[int]]:
    """How many pairs each device computes in each step: in step r it meets the keys of the device r before it."""
    n = len(held)
    return [
        [sum(key <= query for query in held[i] for key in held[(i - r) % n]) for r in range(n)]
        for i in range(n)
    ]


def time(held: Tokens) -> int:
    """Pairs that take time: in each step all wait for the slowest."""
    return sum(map(max, zip(*pairs(held), strict=True)))


def drawn(tokens: int, devices: int) -> Figure:
    """Above, who computes which pair; below, how many pairs each device computes in each step."""
    with drawing("schedules.drawn", (9.0, 5.0)) as figure:
        grid = figure.subplots(2, len(DIVISIONS))
        for (above, below), (name, divide) in zip(grid.T, DIVISIONS.items(), strict=True):
            held = divide(tokens, devices)
            owner = np.zeros((tokens, tokens))
            for device, rows in enumerate(held):
                owner[rows] = device
            owner[np.triu_indices(tokens, 1)] = np.nan
            above.imshow(owner, cmap=ListedColormap(COLOURS[:devices]), vmin=-0.5, vmax=devices - 0.5)
            above.set(title=f"{name}: a time of {time(held)}", xlabel="key", ylabel="query")
            work = np.asarray(pairs(held))
            below.imshow(work, cmap="Greys", vmin=0, vmax=2 * work.max(), aspect="auto")
            for (device, step), count in np.ndenumerate(work):
                slowest = count == work[:, step].max()
                below.text(
                    step, device, str(count), ha="center", va="center", color="black",
                    weight="bold" if slowest else "normal",
                )  # fmt: skip
            below.set(xlabel="step", ylabel="device", xticks=range(devices), yticks=range(devices))
            for label, colour in zip(below.get_yticklabels(), COLOURS, strict=False):
                label.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 2})
                label.set_color("black")
    return figure
