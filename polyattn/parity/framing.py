"""A verdict as a notebook shows it."""

from __future__ import annotations

from html import escape

from polyattn.draw import BAD, GOOD

__all__ = ["framed"]


def framed(verdict: str, good: bool, below: str) -> str:
    """A verdict, and what is below it in HTML, on whatever paper.

    >>> framed("a < b", True, "<p>so</p>")
    '<div style="border-left: 4px solid #2f855a; padding: 0.1em 1em"><p><strong>a &lt; b</strong></p><p>so</p></div>'
    """
    return (
        f'<div style="border-left: 4px solid {GOOD if good else BAD}; padding: 0.1em 1em">'
        f"<p><strong>{escape(verdict)}</strong></p>{below}</div>"
    )
