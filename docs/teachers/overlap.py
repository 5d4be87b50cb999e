"""Whether words of a figure lie over each other."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ["overlapping"]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of words whose boxes intersect by more than half a pixel: titles, labels and ticks too.

    >>> figure = Figure()
    >>> _ = figure.text(0.5, 0.5, "one"), figure.text(0.5, 0.505, "other"), figure.text(0.5, 0.9, "third")
    >>> overlapping(figure)
    [('one', 'other')]
    """
    figure.draw_without_rendering()  # which places ticks and labels
    texts = (text for text in figure.findobj(Text) if isinstance(text, Text))
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in texts
        if text.get_visible() and text.get_text().strip()
    ]
    return [
        (a, b)
        for i, (a, box) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if min(box.x1, other.x1) > max(box.x0, other.x0) + 0.5
        and min(box.y1, other.y1) > max(box.y0, other.y0) + 0.5
    ]
