"""Mistakes of what is seen: masks, causality, windows, padding, fill values, the keys of a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..defect import MASKED, Defect, computed, defect
from ..naming import Said
from ..problems import Problem
from ..stages import Stages, hide
from .moving import only

UNSEEN = "nobody|unasked|not asked|although"


def number(words: str, *numbers: float) -> Said:
    return Said(words, lambda p: numbers)


def besides(f: Callable[..., Tensor]) -> Stages:
    """A mask of positions that nobody asked for."""
    return {"allowed": lambda p, allowed: allowed & f(p, *p.places)}


MASKS: tuple[Defect, ...] = (
    defect("mask transposed", "mask", "mask.*transposed|transposed", "mask square", mask=lambda p: p.mask.mT),
    defect("mask with its keys in reverse", "mask", "mask.*(revers|flip|mirror)", "mask", mask=lambda p: p.mask.flip(-1)),
    defect("mask with its queries in reverse", "mask", "mask.*(revers|flip|mirror)", "mask", mask=lambda p: p.mask.flip(-2)),
    defect("mask of the first item for all", "mask", "mask.*(first|item)", "mask", mask=lambda p: p.mask[:1]),
    defect("mask of the other item", "mask", "mask.*(item|batch|revers|roll)", "mask", mask=lambda p: p.mask.roll(1, 0)),
    defect("mask of item h % B, not of its own", "mask", "mask.*(item|batch|head|tile|h %)", "mask", mask=lambda p: p.mask[torch.arange(p.q.shape[0] * p.q.shape[1]) % p.q.shape[0], 0].unflatten(0, p.q.shape[:2])),
    defect("mask for the first head alone", "mask", "mask.*first head|first head", "mask", mask=lambda p: p.mask | (torch.arange(p.q.shape[1]) > 0)[:, None, None]),
    defect("mask for the first item alone", "mask", "mask.*(first|item)", "mask", mask=lambda p: p.mask | (torch.arange(p.q.shape[0]) > 0)[:, None, None, None]),
    # Of keys in any order the mask is one key to the right where keys and values are one to the left.
    defect("mask one key to the right", "mask", "mask.*(shift|off by one|roll|moved)|keys and values rolled", "mask", mask=lambda p: p.mask.roll(1, -1)),
    defect("mask or causality, not and", "mask causal", "\\bor\\b|instead of (and|both)|union", "mask causal", "window sliding", allowed=lambda p, allowed: p.mask | (p.places[1] <= p.places[0])),
    defect("padding or causality, not and", "mask causal", "\\bor\\b|instead of (and|both)|union", "padding causal", "window sliding", allowed=lambda p, allowed: p.mask | (p.places[1] <= p.places[0])),
    defect("mask or window, not and", "mask window", "\\bor\\b|instead of (and|both)|union", "mask window", "causal", allowed=lambda p, allowed: p.mask | ((p.places[0] - p.window[0] <= p.places[1]) & (p.places[1] <= p.places[0] + p.window[1]))),
)  # fmt: skip

SHIFT = "causal.*(shift|ahead|later|earlier|off|late|early|diagonal|sees)"

POSITIONS: tuple[Defect, ...] = (
    defect("causal, two tokens ahead", "causal", number(SHIFT, 2), "causal", causal=lambda p, i, j: j <= i + 2),
    defect("causal, five tokens ahead", "causal", number(SHIFT, 5), "causal", causal=lambda p, i, j: j <= i + 5),
    defect("causal, two tokens hidden", "causal", number(SHIFT, 1, 2), "causal", causal=lambda p, i, j: j <= i - 2),
    defect("causal, four tokens hidden", "causal", number(SHIFT, 3, 4), "causal", causal=lambda p, i, j: j <= i - 4),
    Defect("causal unasked", "causal", (Said(f"causal.*({UNSEEN})|({UNSEEN}).*causal|causal mask"),), "", besides(lambda p, i, j: j <= i), "causal window sliding"),
    Defect("causal unasked, from the last row", "causal", (Said("causal"),), "end", besides(lambda p, i, j: j <= i), "causal window sliding"),
    Defect("causal unasked, without the diagonal", "causal", (Said("causal"),), "", besides(lambda p, i, j: j < i), "causal window sliding"),
    defect("window two wider on the left", "window", Said("window", lambda p: (p.window[0] + 2, 2, p.window[0] + 3)), "window", window=lambda p, i, j, left, right: (i - left - 2 <= j) & (j <= i + right)),
    defect("window three wider on the right", "window", Said("window", lambda p: (p.window[1] + 3, 3, p.window[1] + 4)), "window", "causal", window=lambda p, i, j, left, right: (i - left <= j) & (j <= i + right + 3)),
    defect("window two narrower on the left", "window", Said("window", lambda p: (p.window[0] - 2, 2, p.window[0] - 1)), "window", window=lambda p, i, j, left, right: (i - left + 2 <= j) & (j <= i + right)),
    defect("causal window twice as wide", "window", Said("window", lambda p: (2 * p.window[0], p.window[0], 2 * p.window[0] + 1, 2)), "window causal", window=lambda p, i, j, left, right: (i - 2 * left <= j) & (j <= i + right)),
    defect("window with its sides exchanged", "window", (Said("window.*(side|exchanged|swapped|left|right)"), Said("window of .* before and .* after", each=lambda p: p.window)), "window", "causal", window=lambda p, i, j, left, right: (i - right <= j) & (j <= i + left)),
    defect("window to the left alone", "window", "window.*(side|left|right|one side)|causal", "window", "causal", window=lambda p, i, j, left, right: (i - left <= j) & (j <= i)),
    Defect("window of 8 unasked", "window", (number("window", 8, 7),), "causal", besides(lambda p, i, j: i - 8 < j), "window sliding"),
    Defect("window of 4 on both sides unasked", "window", (number("window", 4),), "", besides(lambda p, i, j: (i - j).abs() <= 4), "window sliding causal"),
)  # fmt: skip


def real(f: Callable[[Problem], Sequence[int]], left: bool = False) -> Stages:
    """Only so many keys of each item are seen, the first or the last."""

    def mask(p: Problem) -> Tensor:
        column = torch.arange(p.shape[3])
        return (column.flip(0) if left else column) < torch.tensor(f(p))[:, None, None, None]

    return {"mask": mask}


def hidden(f: Callable[[Problem], Sequence[int]], left: bool = False) -> Stages:
    def allowed(p: Problem, allowed: Tensor) -> Tensor:
        return allowed & real(f, left)["mask"](p)

    return {"allowed": allowed}


def some(p: Problem) -> list[int]:
    return [p.shape[3], p.shape[3] - 5, p.shape[3] - 9][: p.shape[0]]


def each(f: Callable[[Problem], Sequence[int]], words: str = "padding|length|keys|sees") -> Said:
    """Every item's length is said, or how many keys of it are hidden: of those that differ."""
    return Said(words, lambda p: [x for n in f(p) for x in (n, p.shape[3] - n) if x])


PADDING: tuple[Defect, ...] = (
    Defect("padding ignored in the second item", "mask", (Said("padding|length|item"),), "padding", real(lambda p: (p.lengths[0], p.shape[3]))),
    Defect("padding one key short", "mask", (each(lambda p: [n - 1 for n in p.lengths]), Said("(padding|length|keys).*(one|1)")), "padding", real(lambda p: [n - 1 for n in p.lengths])),
    Defect("padding one key long", "mask", (each(lambda p: [n + 1 for n in p.lengths]), Said("(padding|length|keys).*(one|1)")), "padding", real(lambda p: [n + 1 for n in p.lengths])),
    Defect("padding of other lengths", "mask", (each(lambda p: [n - 4 for n in p.lengths]), number("padding.*less", 4)), "padding", real(lambda p: [n - 4 for n in p.lengths])),
    Defect("padding on the other side", "mask", (Said("padding.*(side|left|right)|side"),), "padding", real(lambda p: p.lengths, left=True)),
    Defect("left padding taken for right", "mask", (Said("padding.*(side|left|right)|side"),), "left", real(lambda p: p.lengths)),
    Defect("lengths of the other item", "mask", (Said("(padding|length|mask).*(item|exchanged|order|batch|revers)"), each(lambda p: p.lengths[::-1])), "padding", real(lambda p: p.lengths[::-1])),
    Defect("lengths of the first item for all", "mask", (Said("(padding|length|mask).*(first|item)"), each(lambda p: p.lengths[:1])), "padding", real(lambda p: [p.lengths[0]] * p.shape[0])),
    Defect("longest length for all", "mask", (Said("padding|length|item", lambda p: (max(p.lengths), p.shape[3] - max(p.lengths))), Said("padding.*item", lambda p: (max(p.lengths) - min(p.lengths),))), "padding", real(lambda p: [max(p.lengths)] * p.shape[0])),
    Defect("padding unasked", "mask", (each(some),), "", hidden(some), f"{MASKED} three"),
    Defect("padding unasked, of three items", "mask", (each(some), Said("sees keys", each=lambda p: [n - 1 for n in some(p)])), "three", hidden(some), MASKED),
    Defect("padding unasked, on the left", "mask", (each(some),), "", hidden(some, left=True), MASKED),
)  # fmt: skip

# The fill value times the row sum shows from about -15 up; lower ones only where nothing is seen.
FILLED = "fill|hidden|constant|added"


def filled(value: float, needs: str) -> Defect:
    named = Said(FILLED, lambda p: (abs(value),))
    return defect(f"hidden filled with {value:g}, {needs}", "hidden", named, needs, hidden=hide(value))


def lowered(value: float, needs: str) -> Defect:
    named = Said(FILLED, lambda p: (abs(value),))
    return defect(f"{value:g} added to the hidden, {needs}", "hidden", named, needs, hidden=lambda p, s, allowed: s + value * (~allowed).to(s.dtype))  # fmt: skip


FILLS: tuple[Defect, ...] = (
    filled(-1.0, "mask"),
    filled(-1.0, "causal"),
    filled(-3.0, "padding"),
    filled(-5.0, "causal"),
    filled(-10.0, "mask"),
    filled(1.0, "mask"),
    lowered(-1.0, "mask"),
    lowered(-2.0, "causal"),
    lowered(-5.0, "padding"),
    lowered(-10.0, "mask"),
    defect("hidden filled with -100", "hidden", "see nothing|fill", "empty", hidden=hide(-100.0)),
    defect("hidden filled with -1e4", "hidden", "see nothing|fill", "empty", hidden=hide(-1e4)),
    defect("-1e4 added to the hidden", "hidden", "see nothing|fill|added", "empty", hidden=lambda p, s, allowed: s - 1e4 * (~allowed).to(s.dtype)),
    defect("filled with -10 before the scale", "hidden scale", Said(FILLED, lambda p: (10, 10 * p.stated_scale)), "mask", "softcap bias alibi", order=("hidden", "scaled", "capped", "leaned", "biased"), hidden=hide(-10.0)),
)  # fmt: skip

# keys


def cut(keep: slice) -> Stages:
    return {"seen": lambda p, s, v: (s[..., keep], v[:, :, keep])}


def extra(count: int) -> Stages:
    """Slots of zeros that are seen beside the keys: a cache that is longer than what it holds."""

    def seen(p: Problem, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        zeros: Any = (*s.shape[:3], count), (*v.shape[:2], count, v.shape[3])
        return tuple(torch.cat((x, x.new_zeros(z)), a) for x, z, a in ((s, zeros[0], 3), (v, zeros[1], 2)))  # type: ignore[return-value]

    return {"seen": seen}


def slots(f: Callable[[Tensor], Tensor]) -> Stages:
    """f of keys and values as the cache holds them."""
    return {"cached": lambda p, k, v: (f(k), f(v))}


def zeroed(x: Tensor, where: slice) -> Tensor:
    x = x.clone()
    x[:, :, where] = 0
    return x


KEYS: tuple[Defect, ...] = (
    Defect("last key dropped", "keys", (Said("last key"),), "", cut(slice(None, -1))),
    Defect("first key dropped", "keys", (Said("first key"),), "", cut(slice(1, None))),
    Defect("last two keys dropped", "keys", (Said("last (2|two)|2 keys|missing", lambda p: (2,)), Said("last two")), "", cut(slice(None, -2))),
    Defect("first three keys dropped", "keys", (Said("first|missing", lambda p: (3,)), Said("first three")), "", cut(slice(3, None))),
    computed("second half of the keys dropped", "keys", (Said("last|half|keys", lambda p: (p.shape[3] // 2, p.shape[3] - p.shape[3] // 2)),), lambda p: cut(slice(None, p.shape[3] // 2))),
    Defect("four empty slots seen", "keys", (number("extra|empty|zero|slot|more|added|keys", 4),), "", extra(4), "sinks"),
    Defect("one empty slot seen", "keys softmax sinks", (Said("extra|empty|zero|slot|more|plus one|1 added"),), "", extra(1), "sinks"),
    Defect("last key stale", "keys", (Said("stale|not updated|last key|cache|zero"),), "", slots(lambda x: torch.cat((x[:, :, :-1], x[:, :, -2:-1]), 2))),
    Defect("last three keys stale zeros", "keys", (Said("stale|zero|empty|last"),), "", slots(lambda x: zeroed(x, slice(-3, None)))),
    Defect("cache rolled by one", "keys", (Said("roll|shift|order"),), "causal", slots(lambda x: x.roll(1, 2)), "padding left"),
    Defect("cache rolled by four", "keys", (Said("roll|shift|order"),), "causal", slots(lambda x: x.roll(4, 2)), "padding left"),
    Defect("keys one beside their values", "keys", (Said("roll|shift|off by one|beside|align"),), "", {"arguments": only("k", lambda x: x.roll(1, 2))}),
    Defect("values two beside their keys", "keys", (Said("roll|shift|beside|align"),), "", {"arguments": only("v", lambda x: x.roll(-2, 2))}),
    Defect("keys in reverse", "keys", (Said("revers|backward"),), "", {"arguments": only("k", lambda x: x.flip(2))}),
    Defect("first key twice", "keys", (Said("twice|duplicate|repeat|first key"),), "", {"seen": lambda p, s, v: (torch.cat((s[..., :1], s), -1), torch.cat((v[:, :, :1], v), 2))}),
    Defect("the query's own token alone left out", "causal diagonal", (Said("diagonal|own|itself"),), "", besides(lambda p, i, j: i != j), "causal window sliding"),
)  # fmt: skip

SEEN = MASKS + POSITIONS + PADDING + FILLS + KEYS
