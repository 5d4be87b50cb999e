"""Where nothing can be tapped: layers of a port put into the reference, to see whose swap brings the error in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import aligned, eta_of, roundoff, unit_of
from polyattn.parity.models.noise import DRAWS, deviations, pushed
from polyattn.parity.models.trees import (
    dtype_of,
    first,
    is_array,
    is_float,
    mapped,
    native,
    replace_first,
    to_numpy,
)
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Bisection", "bisect"]

Layers = Sequence[Callable[..., Any]]
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Bisection:
    """Which layers bring an error in. wrong: their numbers; etas: of each of them swapped alone; whole: of all swapped."""

    wrong: tuple[int, ...]
    etas: dict[int, float]
    whole: float
    runs: int

    @property
    def agrees(self) -> bool:
        """Whether all layers of the port together give what the reference gives."""
        return self.whole <= ACCEPTANCE and not self.wrong

    def __str__(self) -> str:
        ran = f"{self.runs} runs"
        if self.agrees:
            return f"AGREE: the layers of the port give what those of the reference give (eta {self.whole:.2g}, {ran})"
        if not self.wrong:
            return f"DISAGREE: eta {self.whole:.2g} with all layers swapped, and none of them is wrong alone ({ran})"
        layers = ", ".join(f"{i} (eta {self.etas[i]:.2g})" for i in self.wrong)
        return f"DISAGREE: the error comes with layer {layers} ({ran})"


def bisect(
    reference_layers: Layers,
    port_layers: Layers,
    x: Any,
    *,
    run: Callable[[Layers, Any], Any] | None = None,
    to_port: Convert | None = None,
    to_reference: Convert | None = None,
    seed: int = 0,
) -> Bisection:
    """The layers of a port that bring an error into the reference when they are swapped into it, each in its place.

    run(layers, x): how the model uses its layers, of which each is called with arrays and returns an array (or a structure
    with an array first); without it they are called one after the other. to_port, to_reference: how an array of one library
    becomes one of the other, where they differ. The noise is measured: the reference with the output of every layer off
    by one rounding. Groups of layers are halved until each wrong one is found, then each is swapped alone: k wrong ones
    of n take about 2 k log2(n) runs. Errors of two layers that cancel in one group stay unseen there. ValueError for other numbers of
    layers.

    >>> ours = [lambda x: 2 * x, lambda x: x + 1, lambda x: x * x]
    >>> theirs = [lambda x: x + x, lambda x: x + 1.01, lambda x: x**2]
    >>> bisect(ours, theirs, np.ones((2, 3))).wrong
    (1,)
    """
    who = "polyattn.parity.bisect"
    if len(reference_layers) != len(port_layers) or not reference_layers:
        raise ValueError(
            f"{who}: expected a layer of the port for each of the reference, got {len(reference_layers)} and "
            f"{len(port_layers)}; put several into one where they do the same together"
        )
    if wrong := [f for f in (*reference_layers, *port_layers) if not callable(f)]:
        raise TypeError(
            f"{who}: expected layers that can be called, got {type(wrong[0]).__name__}; pass functions"
        )
    swaps = _Swaps(reference_layers, port_layers, x, run or _chained, to_port, to_reference, seed)
    everything = tuple(range(len(port_layers)))
    whole = swaps.eta(everything)
    found = _search(swaps, everything) if whole > ACCEPTANCE else []
    alone = {i: swaps.eta((i,)) for i in found}
    bad = tuple(i for i in found if alone[i] > ACCEPTANCE)
    return Bisection(bad, {i: alone[i] for i in bad}, whole, swaps.runs)


def _chained(layers: Layers, x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _search(swaps: _Swaps, group: tuple[int, ...]) -> list[int]:
    """The wrong ones of a group that is wrong."""
    if len(group) == 1:
        return [*group]
    half = len(group) // 2
    return [
        i
        for part in (group[:half], group[half:])
        if swaps.eta(part) > ACCEPTANCE
        for i in _search(swaps, part)
    ]


class _Swaps:
    """Runs of the reference with some layers of the port, and their errors."""

    def __init__(
        self,
        reference: Layers,
        port: Layers,
        x: Any,
        run: Callable[[Layers, Any], Any],
        to_port: Convert | None,
        to_reference: Convert | None,
        seed: int,
    ) -> None:
        self.reference, self.x, self.run, self.runs = reference, x, run, 0
        self.port = [_between(layer, to_port, to_reference) for layer in port]
        self.known: dict[tuple[int, ...], float] = {}
        out = self._run(reference)
        self.true = to_numpy(out)
        rng = np.random.default_rng(seed)
        off = [[_off(layer, rng) for layer in reference] for _ in range(DRAWS)]
        apart = [
            d / DRAWS**0.5 for d in deviations([to_numpy(self._run(layers)) for layers in off], self.true)
        ]
        self.unit = unit_of(self.true, apart, roundoff(dtype_of(out)))

    def _run(self, layers: Layers) -> Any:
        self.runs += 1
        out = first(self.run(layers, self.x))
        if out is None:
            raise TypeError(
                "polyattn.parity.bisect: expected run(layers, x) to return an array, got none in what it returned; return it"
            )
        return out

    def eta(self, swapped: tuple[int, ...]) -> float:
        """The error with these layers of the port."""
        if swapped not in self.known:
            layers = [self.port[i] if i in swapped else layer for i, layer in enumerate(self.reference)]
            seen: Floats | None = aligned(to_numpy(self._run(layers)), self.true)
            self.known[swapped] = float("inf") if seen is None else eta_of(seen, self.true, self.unit)
        return self.known[swapped]


def _between(layer: Callable[..., Any], to_port: Convert | None, to_reference: Convert | None) -> Any:
    """A layer of the port that takes and gives arrays of the reference."""

    def changed(convert: Convert | None, tree: Any) -> Any:
        return tree if convert is None else mapped(lambda _, x: convert(x), tree)

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = changed(to_port, (args, kwargs))
        return changed(to_reference, layer(*args, **kwargs))

    return call


def _off(layer: Callable[..., Any], rng: np.random.Generator) -> Any:
    """A layer whose output is off by a rounding."""

    def call(*args: Any, **kwargs: Any) -> Any:
        out = layer(*args, **kwargs)
        x = first(out)
        if x is None or not is_array(x) or not is_float(x):
            return out
        return replace_first(out, native(to_numpy(pushed(x, rng, roundoff(dtype_of(x)))), x))

    return call
