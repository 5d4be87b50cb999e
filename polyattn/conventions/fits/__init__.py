"""Explanations with a number that nobody knew: a scale, a base, a window, a slope, a map of heads, found from the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from polyattn.conventions.call import Call
from polyattn.conventions.fits import (
    arrangements,
    biases,
    caches,
    caps,
    fills,
    masks,
    norms,
    orders,
    outputs,
    padding,
    rotaries,
    scales,
    windows,
)
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.probe import Fit, Observed
from polyattn.conventions.settings import CONTRACT, Settings

__all__ = ["FITS", "Fit", "Observed", "fits"]

#: Every kind of fit, the simplest first.
FITS: tuple[Callable[[Evidence], Iterator[Fit]], ...] = (
    scales.scales,
    norms.norms,
    windows.windows,
    padding.padding,
    masks.mask_places,
    outputs.gains,
    outputs.additions,
    outputs.lost_weight,
    fills.fills,
    caps.caps,
    biases.bias_factors,
    biases.bias_places,
    biases.alibis,
    rotaries.rotaries,
    rotaries.turned_unasked,
    orders.head_orders,
    orders.item_orders,
    orders.kv_maps,
    arrangements.arrangements,
    orders.row_orders,
    caches.moved_keys,
    caches.other_keys,
)


def fits(call: Call, seen: Observed, settings: Settings = CONTRACT) -> Iterator[Fit]:
    """Every proposal that explains what was observed, the simplest first; nothing where it is explained as it stands.

    A proposal leaves an error of at most `ACCEPTANCE` units in every trusted element, or says in which few rows it does not,
    and a number that is read as something ("1/sqrt(72) instead of 1/sqrt(64)") explains the output with that very value.
    """
    evidence = Evidence(call, seen, settings)
    if evidence.wrong.any():
        for find in FITS:
            yield from find(evidence)
