"""The picture of the start page: a sentence attends to itself, word by word, with the weights of a pretrained model.

    python docs/figures/attention.py        # writes attention.svg and attention-narrow.svg beside this file

Each word in turn shares out one whole among all tokens, as MiniLM does in head 11 of layer 5, and the values of these come
back together in the same shares. A band is as wide as its weight, a stripe as opaque as its number: nothing is
drawn that was not computed. Whoever asked for less motion sees one word of it, "it", standing still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawing import BLUE, INK, ORANGE, Picture

from polyattn import trace

HERE = Path(__file__).parent
SENTENCE, LAYER, HEAD = "The cat sat on the mat because it was tired", 5, 11
SECONDS, REST = 1.7, 2  # for each word; and how many times that at the end, when all is there
SLOW = ".8 0 .2 1"  # slowly off, slowly there
STILL = "it"
TITLE = (
    f'Attention, word by word, of "{SENTENCE}": one whole is shared out among all tokens, and their values come back in the same '
    'shares. "it" gives {cat:.0%} of its weight to "cat"; its output is the weighted sum of the values.'
)
LEVELS, MOST = range(1, 6), 1.5  # of opacity; the number from which on a stripe is full
STYLE = (
    "<style>.attends text{fill:var(--color-foreground-primary,#767676)}.attends .name{fill:#767676}"
    ".attends .still{display:none}@media (prefers-reduced-motion:reduce){.attends .moving{display:none}"
    ".attends .still{display:inline}}"
    + "".join(
        f".attends .{name}{level}{{stroke:{colour};stroke-opacity:{level / len(LEVELS):g}}}"
        for name, colour in (("p", BLUE), ("m", ORANGE))
        for level in LEVELS
    )
    + "</style>"
)


class Head(NamedTuple):
    """What one head does with a sentence of T tokens."""

    tokens: list[str]
    weights: Any  # (T, T)
    values: Any  # (T, E)
    out: Any  # (T, E)


@cache
def head() -> Head:
    from polyattn.models.explain.texts import MODELS

    model = MODELS["minilm"]
    tokens, layers = model.read(model.numbers(SENTENCE))
    q, k, v = (x[HEAD][None, None].astype(float) for x in list(layers)[LAYER])
    steps = trace(q, k, v)
    return Head(tokens, *(np.asarray(x)[0, 0] for x in (steps["weights"].value, v, steps["output"].value)))


@dataclass(frozen=True)
class Sizes:
    """Where things stand, in pixels: `whole` is how wide a weight of 1 is, `stripe` how high a number."""

    width: int
    height: int
    left: int
    step: float
    whole: float
    wide: float
    stripe: float
    words: int  # where the line of queries ends
    fan: int  # how high the bands are
    slanted: bool


WIDE = Sizes(840, 396, 96, 62.0, 58.0, 36.0, 1.5, 22, 96, False)
NARROW = Sizes(350, 420, 2, 28.6, 27.0, 21.0, 1.5, 60, 80, True)


def picture(sizes: Sizes) -> Picture:
    it = head()
    rows = range(1, len(it.tokens) - 1)  # the words; [CLS] and [SEP] are read too
    drawn = Picture(
        sizes.width,
        sizes.height,
        TITLE.format(cat=it.weights[it.tokens.index(STILL), it.tokens.index("cat")]),
    )
    drawn.put(STYLE, '<g class="attends">')
    top = sizes.words + 8
    keys = top + sizes.fan + (62 if sizes.slanted else 18)
    values = keys + 10
    high = sizes.stripe * it.values.shape[1]
    outs = values + high + sizes.fan
    names = {
        "query": sizes.words,
        "weights": top + sizes.fan / 2,
        "keys": keys,
        "values": values + high / 2 + 4,
    }
    names |= {"weighted sum": values + high + sizes.fan / 2, "outputs": outs + high / 2 + 4}
    for name, y in () if sizes.slanted else names.items():
        drawn.text(0, y, name, style='class="name"')
    for j, token in enumerate(it.tokens):
        if j in rows:
            _word(drawn, sizes, j, sizes.words, token)
        _word(drawn, sizes, j, keys, token)
    for kind, states in (("moving", list(rows)), ("still", [it.tokens.index(STILL)])):
        drawn.put(f'<g class="{kind}">')
        _asks(drawn, sizes, states)
        for j in range(len(it.tokens)):
            down = [_band(sizes, it.weights, i, j, top, sizes.fan, from_query=True) for i in states]
            back = [
                _band(sizes, it.weights, i, j, values + high + 2, sizes.fan - 4, from_query=False)
                for i in states
            ]
            for path in (down, back):
                drawn.put(
                    f'<path fill="{BLUE}" fill-opacity="0.6" d="{path[-1]}">{_through("d", path)}</path>'
                )
            seen = [f"{0.3 + 0.7 * it.weights[i, j] ** 0.5:.2f}" for i in states]
            drawn.put(
                f'<g opacity="{seen[-1]}">{_through("opacity", seen)}{_stripes(sizes, j, values, it.values[j])}</g>'
            )
        for i in rows:
            comes = _comes(i, states) if kind == "moving" else ""
            drawn.put(f"<g>{comes}{_stripes(sizes, i, outs, it.out[i])}</g>")
        for i in states:
            alone = _alone(i, states) if kind == "moving" else ""
            drawn.put(
                f'<g>{alone}<text x="{sizes.width / 2:g}" y="{sizes.height - 10}" text-anchor="middle">{_sum(it, i, sizes)}</text></g>'
            )
        drawn.put("</g>")
    drawn.put("</g>")
    return drawn


def _middle(sizes: Sizes, j: int) -> float:
    return sizes.left + sizes.step * (j + 0.5)


def _word(drawn: Picture, sizes: Sizes, j: int, y: float, token: str) -> None:
    if sizes.slanted:
        drawn.put(
            f'<text transform="translate({_middle(sizes, j) + 4:.1f} {y:g}) rotate(-90)" font-size="13">{token}</text>'
        )
    else:
        drawn.text(_middle(sizes, j), y, token, anchor="middle", style='font-size="14"')


def _asks(drawn: Picture, sizes: Sizes, states: Sequence[int]) -> None:
    """A box around the word that asks, and under it a bar: one whole."""
    xs = [f"{_middle(sizes, i) - sizes.whole / 2:.1f}" for i in states]
    for y, high, opacity in ((2, sizes.words + 3, 0.2), (sizes.words + 5, 3, 1)):
        box = f'y="{y}" width="{sizes.whole:g}" height="{high}" fill="{BLUE}" fill-opacity="{opacity}"'
        drawn.put(f'<rect x="{xs[-1]}" {box}>{_through("x", xs)}</rect>')


def _band(sizes: Sizes, weights: Any, i: int, j: int, y: float, high: float, *, from_query: bool) -> str:
    """From the part of a query's whole that is key j's to the middle of key j, or from there to the output."""
    wide = sizes.whole * float(weights[i, j])
    part = _middle(sizes, i) + sizes.whole * (float(weights[i, :j].sum()) - 0.5)
    whole = _middle(sizes, j) - wide / 2
    a, b = (part, whole) if from_query else (whole, part)
    up, half, down = f"{y:g}", f"{y + high / 2:g}", f"{y + high:g}"
    there = f"M{a:.1f} {up}C{a:.1f} {half} {b:.1f} {half} {b:.1f} {down}"
    return f"{there}h{wide:.1f}C{b + wide:.1f} {half} {a + wide:.1f} {half} {a + wide:.1f} {up}z"


def _stripes(sizes: Sizes, j: int, y: float, numbers: Any) -> str:
    """A vector: a stripe for each number, blue above 0, orange below."""
    levels = np.clip(np.ceil(np.abs(numbers) / MOST * len(LEVELS)), 0, len(LEVELS)).astype(int)
    place = f'transform="translate({_middle(sizes, j) - sizes.wide / 2:.1f} {y + sizes.stripe / 2:g}) scale({sizes.wide:g} {sizes.stripe:g})"'
    parts = [f'<g {place} shape-rendering="crispEdges">']
    for name, sign in (("p", 1), ("m", -1)):
        for level in LEVELS:
            lines = "".join(f"M0 {n}h1" for n in np.flatnonzero((levels == level) & (sign * numbers > 0)))
            if lines:
                parts.append(f'<path class="{name}{level}" d="{lines}"/>')
    edge = f'width="{sizes.wide:g}" height="{sizes.stripe * len(numbers):g}" fill="none" stroke="{INK}" stroke-opacity="0.4"'
    return "".join(parts) + f'</g><rect x="{_middle(sizes, j) - sizes.wide / 2:.1f}" y="{y:g}" {edge}/>'


def _sum(it: Head, i: int, sizes: Sizes) -> str:
    """The output of a word, in words: the three largest weights by name."""
    largest = sorted(np.argsort(-it.weights[i])[: 2 if sizes.slanted else 4])
    shares = [f"{it.weights[i, j]:.2f} {it.tokens[j]}" for j in largest]
    return f'output of "{it.tokens[i]}" = {" + ".join(shares)} + ...'


def _times(states: Sequence[int]) -> list[float]:
    """When each word has its turn, as parts of the whole round."""
    return [n / (len(states) - 1 + REST) for n in range(len(states))]


def _through(attribute: str, values: Sequence[str]) -> str:
    """One state after the other, and a rest at the last."""
    if len(values) == 1:
        return ""
    times = ";".join(f"{t:.4g}" for t in [*_times(range(len(values))), 1])
    slow = ";".join([SLOW] * len(values))
    return (
        f'<animate attributeName="{attribute}" values="{";".join([*values, values[-1]])}" keyTimes="{times}" '
        f'calcMode="spline" keySplines="{slow}" {_round(len(values))}/>'
    )


def _comes(i: int, states: Sequence[int]) -> str:
    """Not there before the turn of word i, and there from then on."""
    at = _times(states)[states.index(i)]
    return _steps([(0.0, 0), (at, 1)] if at else [(0.0, 1)], states)


def _alone(i: int, states: Sequence[int]) -> str:
    """There while word i has its turn, which begins half a step before."""
    half = 0.5 / (len(states) - 1 + REST)
    at = _times(states)[states.index(i)]
    moments = [(0.0, int(at == 0)), (at - half, 1), (at + half, int(i == states[-1]))]
    return _steps([moment for moment in moments if moment[0] >= 0], states)


def _steps(moments: Sequence[tuple[float, int]], states: Sequence[int]) -> str:
    times, values = (";".join(f"{x:.4g}" for x in column) for column in zip(*moments, strict=True))
    return f'<animate attributeName="opacity" values="{values}" keyTimes="{times}" calcMode="discrete" {_round(len(states))}/>'


def _round(states: int) -> str:
    return f'dur="{SECONDS * (states - 1 + REST):g}s" repeatCount="indefinite"'


PICTURES = {"attention": lambda: picture(WIDE), "attention-narrow": lambda: picture(NARROW)}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
