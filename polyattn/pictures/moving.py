"""The fold of one row as an SVG that moves by itself: no script, no package, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from polyattn.arrays import Array
from polyattn.calls import answers
from polyattn.pictures.canvas import INK, TILE, VERMILLION
from polyattn.pictures.folding import Fold, Step, fold

__all__ = ["online_softmax_svg"]

BEAT, REST, MOVE = (
    1.8,
    2,
    0.4,
)  # seconds a tile, beats that the end stays, and the share of a beat in which things move
LEFT, TOP, HIGH, GAP, SIDE = 58, 34, 110, 46, 190  # of the panels, in pixels


@answers("polyattn.pictures.online_softmax_svg", "settings")
def online_softmax_svg(scores: Array, values: Array | None = None, *, tile: int = 1) -> str:
    """`online_softmax` as one animated SVG, for a page or a slide: its text, to be written to a file.

    scores (S,), values (S,) or (S, E), tile: as there. It moves by CSS alone, so that <img src="fold.svg"> shows it, on white
    paper and on black; where the reader asks for less motion (prefers-reduced-motion), and on paper, it stands at the end.
    It needs no matplotlib. Source: as for `online_softmax`.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> picture = pictures.online_softmax_svg(np.array([0.0, np.log(3.0)]))
    >>> picture[:5], "m = 1.1, l = 1.33" in picture
    ('<svg ', True)
    """
    found = fold("polyattn.pictures.online_softmax_svg", scores, values, tile)
    return _Moving(found).text()


class _Moving:
    """The parts of the SVG, and the keyframes of what moves."""

    def __init__(self, found: Fold) -> None:
        self.found, self.steps = found, found.steps
        self.name = f"fold{crc32(repr(found).encode()):08x}"  # several may lie on one page
        self.parts: list[str] = []
        self.frames: dict[str, str] = {}  # keyframes -> their name
        self.beats = len(self.steps) + REST
        self.pitch = min(44.0, max(12.0, 480 / len(found.scores)))
        self.wide = self.pitch * len(found.scores)

    def text(self) -> str:
        found, steps = self.found, self.steps
        self._scores(TOP)
        tops = [TOP, TOP + HIGH + GAP]
        whole: Any = found.whole
        self._bars(
            tops[1], "weight", whole, [_filled(step.weights, len(whole)) for step in steps], (0.0, 1.0)
        )
        if found.out is not None:
            tops.append(tops[1] + HIGH + GAP)
            every = [0.0, *found.out.tolist(), *(x for step in steps for x in step.out.tolist())]
            self._bars(tops[2], "average", found.out, [step.out for step in steps], (min(every), max(every)))
        for i, step in enumerate(steps):
            self._words(i, step)
        x, y = LEFT + self.wide + 24, tops[1] + 14
        self.parts.append(
            f'<path d="M{x:g} {y:g}h18" stroke="{VERMILLION}" stroke-width="2" stroke-dasharray="6 4"/>'
        )
        self.parts.append(f'<text x="{x + 26:g}" y="{y + 4:g}">m, the largest so far</text>')
        self.parts.append(f'<circle cx="{x + 9:g}" cy="{y + 20:g}" r="4" fill="none" stroke="{VERMILLION}"/>')
        self.parts.append(f'<text x="{x + 26:g}" y="{y + 24:g}">softmax of all keys</text>')
        width, height = LEFT + self.wide + SIDE, tops[-1] + HIGH + 30
        still = f".{self.name} *{{animation:none!important}}"
        style = "".join(f"@keyframes {name}{{{frames}}}" for frames, name in self.frames.items())
        title = "A softmax average, folded tile by tile"
        said = "; ".join(f"after tile {i} {_said(step)}" for i, step in enumerate(steps))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{self.name}" role="img" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="13" fill="{INK}">'
            f"<title>{title}</title><desc>{said}</desc>"
            f"<style>{style}@media (prefers-reduced-motion:reduce){{{still}}}@media print{{{still}}}</style>"
            f"{''.join(self.parts)}</svg>\n"
        )

    def moves(self, states: Sequence[str]) -> str:
        """A style that goes from one state of CSS to the next with each tile, and is the last of them where nothing moves."""
        if len(set(states)) == 1:
            return f'style="{states[-1]}"'
        frames = f"0%{{{states[0]}}}"
        for i in range(1, len(states)):
            if states[i] != states[i - 1]:
                start, stop = (100 * (i + share) / self.beats for share in (0, MOVE))
                frames += f"{start:.2f}%{{{states[i - 1]}}}{stop:.2f}%{{{states[i]}}}"
        frames += f"100%{{{states[-1]}}}"
        name = self.frames.setdefault(frames, f"{self.name}-{len(self.frames)}")
        return f'style="{states[-1]};animation:{name} {BEAT * self.beats:.1f}s infinite"'

    def _scores(self, top: float) -> None:
        row = self.found.scores
        heights = np.where(np.isfinite(row), row, 0.0)
        at, per = _scale(top, min(0.0, float(heights.min())), max(0.0, float(heights.max())))
        self._frame(top, at(0.0), "score")
        for key, score in enumerate(row.tolist()):
            x = LEFT + self.pitch * (key + 0.1)
            if score == -np.inf:
                self.parts.append(
                    f'<text x="{x + 0.4 * self.pitch:g}" y="{at(0) + 4:g}" text-anchor="middle">×</text>'
                )
                continue
            bar = f"M{x:g} {at(0):g}h{0.8 * self.pitch:g}V{at(0) - per * score:g}h{-0.8 * self.pitch:g}z"
            self.parts.append(f'<path d="{bar}" fill="none" stroke="{INK}" stroke-dasharray="2 2"/>')
            states = [
                f"opacity:{0 if key >= step.stop else 0.45 if key < step.start else 1}" for step in self.steps
            ]
            self.parts.append(f'<path d="{bar}" fill="{TILE}" {self.moves(states)}/>')
        heard = [max(step.top, float(heights.min())) for step in self.steps]
        states = [
            f"transform:translateY({at(top_of):.1f}px);opacity:{int(step.top > -np.inf)}"
            for top_of, step in zip(heard, self.steps, strict=True)
        ]
        line = f'd="M{LEFT - 4} 0h{self.wide + 8:g}" stroke="{VERMILLION}" stroke-width="2" stroke-dasharray="6 4"'
        self.parts.append(f"<path {line} {self.moves(states)}/>")

    def _bars(
        self, top: float, name: str, whole: Any, states: Sequence[Any], span: tuple[float, float]
    ) -> None:
        """Bars that grow and shrink, and circles where they will end."""
        at, per = _scale(top, *span)
        self._frame(top, at(0.0), name)
        pitch = self.wide / len(whole)
        for i, end in enumerate(whole.tolist()):
            x = LEFT + pitch * (i + 0.5)
            half = min(0.4 * pitch, 18.0)
            sizes = [f"transform:scaleY({per * state[i]:.2f})" for state in states]
            path = f'<path d="M{-half:g} 0h{2 * half:g}v-1H{-half:g}z" fill="{TILE}" {self.moves(sizes)}/>'
            self.parts.append(f'<g transform="translate({x:g} {at(0.0):g})">{path}</g>')
            self.parts.append(
                f'<circle cx="{x:g}" cy="{at(end):.1f}" r="4" fill="none" stroke="{VERMILLION}" stroke-width="1.5"/>'
            )

    def _words(self, i: int, step: Step) -> None:
        """What a tile says, seen while it is folded: its keys under a bracket, m, l, and the factor."""
        states = [f"opacity:{int(i == j)}" for j in range(len(self.steps))]
        x, y = LEFT + self.wide + 24, TOP + 12
        start, stop = (LEFT + self.pitch * key for key in (step.start, step.stop))
        bracket = f"M{start + 2:g} {TOP - 6}v-5H{stop - 2:g}v5"
        lines = [f"tile {i}", _said(step), f"old sum × {step.factor:.3g}" if i else "nothing before"]
        words = "".join(f'<text x="{x:g}" y="{y + 22 * n:g}">{line}</text>' for n, line in enumerate(lines))
        path = f'<path d="{bracket}" fill="none" stroke="{INK}" stroke-width="2"/>'
        self.parts.append(f"<g {self.moves(states)}>{path}{words}</g>")

    def _frame(self, top: float, zero: float, name: str) -> None:
        middle = top + HIGH / 2
        self.parts.append(
            f'<path d="M{LEFT - 4} {top:g}v{HIGH}M{LEFT - 4} {zero:g}h{self.wide + 8:g}" fill="none" stroke="{INK}"/>'
            f'<text transform="translate({LEFT - 18} {middle:g}) rotate(-90)" text-anchor="middle">{name}</text>'
        )


def _scale(top: float, low: float, high: float) -> tuple[Callable[[float], float], float]:
    """The place of a number in a panel, and the pixels of 1."""
    per = HIGH / (high - low or 1.0)
    return (lambda number: round(top + per * (high - number), 2) if high > low else top + HIGH), per


def _said(step: Step) -> str:
    return f"m = {step.top:.3g}, l = {step.sum:.3g}"


def _filled(seen: Any, count: int) -> Any:
    """Weights of the keys so far, 0 for those to come."""
    return np.concatenate([seen, np.zeros(count - len(seen))])
