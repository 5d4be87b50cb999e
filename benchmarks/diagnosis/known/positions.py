"""Mistakes of positions: rotary embedding, linear biases, temperature by position."""

from __future__ import annotations

import torch
from torch import Tensor

from ..defect import Defect, computed, defect
from ..naming import Said, scaled
from ..problems import Problem
from ..rotations import PAIRS, at, rotate, row, turn, unasked
from ..stages import Stages, slopes

UNASKED = "rotary.*nobody|rotary.*unasked|rotary.*not asked"


def number(words: str, *numbers: float) -> Said:
    return Said(words, lambda p: numbers)


def per_item(p: Problem, q: Tensor) -> Tensor:
    """The queries of item 1 and 2 stand 5 and 2 later."""
    late = torch.tensor([0.0, 5.0, 2.0])[: q.shape[0], None, None]
    return row(q, p.start) + late


def crossed(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the head taken for the position."""
    assert p.rotary is not None
    return tuple(turn(x, torch.arange(x.shape[1])[:, None].expand(x.shape[1:3]), p.rotary) for x in (q, k))  # type: ignore[return-value]


ROTARY: tuple[Defect, ...] = (
    defect("rotary missing", "rotary", "rotary.*not applied|rotary (ignored|missing)", "rotary", rotate=lambda p, q, k, v: (q, k)),
    defect("rotary pairing", "rotary", "rotary pairing", "rotary", rotate=rotate(other=True)),
    defect("rotary on the queries alone", "rotary", "quer\\w+ alone", "rotary", rotate=rotate(keys=False)),
    defect("rotary on the keys alone", "rotary", "keys alone", "rotary", rotate=rotate(both=False)),
    defect("rotary positions one late", "rotary", "rotary.*(off by one|shift|\\b1\\b)", "rotary", rotate=rotate(queries=1)),
    defect("rotary without the offset", "rotary", "rotary.*(start at 0|shift|offset)", "rotary end", rotate=rotate(from_0=True)),
    defect("rotary unasked", "rotary", UNASKED, "", "rotary", rotate=unasked()),
    defect("rotary unasked, interleaved", "rotary", UNASKED, "", "rotary", rotate=unasked(PAIRS)),
    defect("rotary unasked, base 500000", "rotary", number(UNASKED, 500000), "", "rotary", rotate=unasked(base=500000.0)),
    defect("rotary unasked, interleaved, base 100", "rotary", number(UNASKED, 100), "", "rotary", rotate=unasked(PAIRS, base=100.0)),
    defect("rotary unasked, half of the width", "rotary", number(UNASKED, 8), "", "rotary", rotate=unasked(width=8)),
    defect("rotary base 500000", "rotary", number("rotary.*base", 500000), "rotary", rotate=rotate(base=500000.0)),
    defect("rotary base 1e6", "rotary", number("rotary.*base", 1e6), "rotary", rotate=rotate(base=1e6)),
    defect("rotary base 100", "rotary", number("rotary.*base", 100), "rotary", rotate=rotate(base=100.0)),
    defect("rotary base 12345", "rotary", number("rotary.*base", 12345), "rotary", rotate=rotate(base=12345.0)),
    defect("rotary exponent i / D for 2 i / D", "rotary", number("rotary.*(base|exponent)", 100), "rotary", rotate=rotate(base=10000.0**0.5)),
    defect("rotary of half the width", "rotary", number("rotary.*(width|entries)", 8), "rotary", rotate=rotate(width=8)),
    defect("rotary of a quarter of the width", "rotary", number("rotary.*(width|entries)", 4), "rotary", rotate=rotate(width=4)),
    defect("rotary positions divided by 4", "rotary", number("rotary.*(factor|scal|divid|times)", 4, 0.25), "rotary", rotate=rotate(factor=4.0)),
    defect("rotary positions divided by 2.5", "rotary", number("rotary.*(factor|scal|divid|times)", 2.5, 0.4), "rotary", rotate=rotate(factor=2.5)),
    defect("rotary positions times 2", "rotary", (number("rotary.*(factor|scal|divid|times)", 2, 0.5), Said("rotary.*twice")), "rotary", rotate=rotate(factor=0.5)),
    defect("rotary queries 3 late", "rotary", number("rotary.*(shift|off|late|ahead|later)", 3), "rotary", rotate=rotate(queries=3)),
    defect("rotary queries 2 early", "rotary", number("rotary.*(shift|off|early|behind|earlier)", 2), "rotary", rotate=rotate(queries=-2)),
    defect("rotary queries 7 late", "rotary", number("rotary.*(shift|off|late|ahead)", 7), "rotary end", rotate=rotate(queries=7)),
    defect("rotary keys 1 late", "rotary", number("rotary.*(shift|off|late|ahead|early)", 1), "rotary", rotate=rotate(later=1)),
    defect("rotary keys 4 late", "rotary", number("rotary.*(shift|off|late|ahead|early)", 4), "rotary", rotate=rotate(later=4)),
    defect("rotary positions of their own in every item", "rotary", Said("rotary.*(item|batch)", lambda p: (5,)), "rotary", rotate=at(per_item, lambda p, k: row(k))),
    defect("rotary turned backwards", "rotary", "rotary.*(direction|backward|sign|revers|other way|inverse|negative)", "rotary end", rotate=rotate(table="backwards")),
    defect("rotary of keys backwards", "rotary", "rotary.*(key)", "rotary", rotate=lambda p, q, k, v: (turn(q, row(q, p.start), p.rotary), turn(k, row(k), p.rotary, table="backwards"))),
    defect("rotary of the values too", "rotary", "rotary.*value", "rotary equal", rotate=rotate(values=True)),
    # Turned alike, a query and a key of one head are as if not turned.
    defect("rotary by head", "rotary", "rotary.*(axis|head)|rotary.*not applied", "rotary", rotate=crossed),
    defect("rotary twice", "rotary", "rotary.*(twice|factor)", "rotary", rotate=rotate(twice=True)),
    defect("rotary with cos and sin exchanged", "rotary", "rotary.*(cos|sin)", "rotary", rotate=rotate(table="sin cos")),
    defect("rotary with tables of the other pairing", "rotary", "rotary.*(table|cos|pairing)", "rotary", rotate=rotate(table="mixed")),
    defect("rotary positions from the end", "rotary", "rotary.*(revers|backward|from the end|direction|other way)", "rotary", rotate=at(lambda p, q: p.shape[3] - 1 - row(q, p.start), lambda p, k: row(k).flip(0))),
    # With nothing hidden, that is the same as keys and values in reverse order.
    defect("rotary positions of the keys from the end", "rotary", "rotary.*(key|revers)|keys and values in reverse", "rotary", rotate=at(lambda p, q: row(q, p.start), lambda p, k: row(k).flip(0))),
)  # fmt: skip

# linear biases


def leaned(f) -> Stages:  # type: ignore[no-untyped-def]
    """s + f(p, i, j), f (H, L, S) or so."""

    def run(p: Problem, s: Tensor, allowed: Tensor) -> Tensor:
        return s + f(p, *p.places).to(s.dtype)

    return {"leaned": run}


def of(slope: Tensor) -> Tensor:
    return slope.double()[:, None, None]


def geometric(heads: int, first: int = 1) -> Tensor:
    """2^(-8 i / n) from i = first."""
    return 2.0 ** (-8.0 * torch.arange(first, heads + first) / heads)


SLOPES = "alibi|linear bias|slope"

ALIBI: tuple[Defect, ...] = (
    defect("alibi ignored", "alibi", f"({SLOPES}|score.?mod).*(ignored|left out|not applied|missing)", "alibi", leaned=lambda p, s, allowed: s),
    defect("alibi added, not subtracted", "alibi", f"({SLOPES}).*(sign|added|subtract)", "alibi", leaned=slopes(-1.0)),
    defect("alibi slopes doubled", "alibi", Said(SLOPES, lambda p: (2, 0.5)), "alibi", leaned=slopes(2.0)),
    defect("alibi slopes times 0.7", "alibi", Said(SLOPES, lambda p: (0.7,)), "alibi", leaned=slopes(0.7)),
    defect("alibi before the scale", "alibi", Said(SLOPES + "|before the scale"), "alibi", leaned=lambda p, s, allowed: slopes(p.stated_scale)(p, s, allowed)),
    Defect("alibi slopes in reverse order", "alibi", (Said(f"({SLOPES})"),), "alibi", leaned(lambda p, i, j: -of(p.alibi.flip(0)) * (i - j).abs())),
    Defect("alibi slopes of other heads", "alibi", (Said(f"({SLOPES})"),), "alibi", leaned(lambda p, i, j: -of(p.alibi.roll(1)) * (i - j).abs())),
    Defect("alibi slopes of the first head for all", "alibi", (Said(f"({SLOPES})"),), "alibi", leaned(lambda p, i, j: -of(p.alibi[:1]) * (i - j).abs())),
    Defect("alibi slopes from 2^0", "alibi", (Said(f"({SLOPES})"),), "alibi", leaned(lambda p, i, j: -of(geometric(p.q.shape[1], 0)) * (i - j).abs())),
    Defect("alibi of six heads by the rule of a power of two", "alibi", (Said(f"({SLOPES})"),), "alibi six", leaned(lambda p, i, j: -of(geometric(6)) * (i - j).abs())),
    Defect("alibi of signed distance", "alibi", (Said(f"({SLOPES}).*(sign|absolute|distance)"),), "alibi", leaned(lambda p, i, j: -of(p.alibi) * (i - j)), "causal"),
    Defect("alibi of keys ahead alone", "alibi", (Said(f"({SLOPES})"),), "alibi", leaned(lambda p, i, j: -of(p.alibi) * (j - i).clamp(min=0)), "causal sliding"),
    Defect("alibi without the offset", "alibi", (Said(f"({SLOPES}).*(offset|position|from 0|first row|shift)"),), "alibi end", leaned(lambda p, i, j: -of(p.alibi) * (i - p.start - j).abs()), "causal"),
    Defect("alibi unasked", "alibi", (Said(f"({SLOPES})"),), "", leaned(lambda p, i, j: -of(geometric(p.q.shape[1])) * (i - j).abs()), "alibi"),
    Defect("a linear bias of one slope", "alibi", (Said(f"({SLOPES})", lambda p: (0.1,)),), "", leaned(lambda p, i, j: -0.1 * (i - j).abs()), "alibi"),
    Defect("a linear bias that prefers what is far", "alibi", (Said(f"({SLOPES})", lambda p: (0.05,)),), "", leaned(lambda p, i, j: 0.05 * (i - j).abs()), "alibi"),
)  # fmt: skip

# temperature


def sharpened(f) -> Stages:  # type: ignore[no-untyped-def]
    """Scores times f(positions of the queries, (L, 1))."""
    return {"sharpened": lambda p, s: s * f(p, p.places[0].double()).to(s.dtype)}


LOG = r"log|temperature|\bln\b"

TEMPERATURE: tuple[Defect, ...] = (
    Defect("scores times log of the keys before", "scale", (Said(LOG),), "causal", sharpened(lambda p, i: (i + 2).clamp(min=2).log())),
    Defect("scores times log of the place", "scale", (Said(LOG),), "", sharpened(lambda p, i: (i + 1).clamp(min=1).log()), "end first"),
    Defect("scores times log_16 of the place, at least 1", "scale", (Said(LOG),), "", sharpened(lambda p, i: ((i + 1).clamp(min=1).log() / torch.tensor(16.0).double().log()).clamp(min=1.0)), "end first"),
    Defect("scores times log_8 of the place, at least 1", "scale", (Said(LOG),), "causal", sharpened(lambda p, i: ((i + 1).clamp(min=1).log() / torch.tensor(8.0).double().log()).clamp(min=1.0)), "end first"),
    Defect("temperature of late queries", "scale", (Said(LOG),), "", sharpened(lambda p, i: 1 + 0.1 * torch.floor((i + 1) / 8).log1p()), "end first"),
    computed("scores times log of the number of keys", "scale", (Said(LOG), *scaled(lambda p: p.stated_scale * float(torch.tensor(p.shape[3]).double().log()))), lambda p: {"scale": lambda p: p.stated_scale * float(torch.tensor(p.shape[3]).double().log())}),
)  # fmt: skip

POSITIONS = ROTARY + ALIBI + TEMPERATURE
