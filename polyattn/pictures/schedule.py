"""Ring attention: which device holds which block of keys when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyattn.calls import answers, integer
from polyattn.pictures.canvas import INK, TILE, drawing, frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ring"]


@answers("polyattn.pictures.ring", "settings")
def ring(devices: int) -> Figure:
    """The schedule of ring attention: devices downwards, steps to the right, in each cell the block of keys held there.

        block of device d at step t:  (d - t) mod n

    Each device keeps its queries, and passes its keys and values on to the next one after every step, the last to the
    first. So every row and every column has each block once: a Latin square. A device folds what it meets with `merge`
    of `polyattn.normalizers.softmax`. The path of block 0 is outlined, the block that a device owns is filled.
    Source: Liu 2023, arXiv:2310.01889, section 3.

    >>> from polyattn import pictures
    >>> figure = pictures.ring(3)
    >>> [text.get_text() for text in figure.axes[0].texts]  # device by device
    ['0', '2', '1', '1', '0', '2', '2', '1', '0']
    """
    who = "polyattn.pictures.ring"
    count = integer(who, "devices", devices, 1, "a ring has at least one device", most=32)
    cell = 0.5 if count <= 12 else 0.32
    with drawing(who, (max(3.2, cell * count + 1.3), cell * count + 1.25)) as figure:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for device in range(count):
            for step in range(count):
                block = (device - step) % count
                own = block == device
                axes.add_patch(
                    Rectangle(
                        (step - 0.46, device - 0.46), 0.92, 0.92, facecolor=TILE if own else "none",
                        edgecolor=INK, linewidth=2.2 if block == 0 else 0.5,
                    )
                )  # fmt: skip
                axes.text(
                    step, device, str(block), ha="center", va="center", fontsize=11 if count <= 12 else 8,
                    color="#ffffff" if own else INK, fontweight="bold" if own or block == 0 else "normal",
                )  # fmt: skip
        axes.set(xlim=(-0.6, count - 0.4), ylim=(count - 0.4, -0.6), aspect="equal")
        frame(axes)
        axes.set_xticks(range(count))
        axes.set_yticks(range(count))
        axes.tick_params(length=0, labelsize=9 if count <= 12 else 7)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.set(xlabel="step", ylabel="device")
        figure.supxlabel("block of keys; filled: the device's own; thick: block 0", fontsize=8)
    return figure
