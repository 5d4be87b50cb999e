"""Explanations with a number that nobody knew: a scale, a base, a window, a slope, a map of heads, found from the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from polyattn.conventions.call import Call
from polyattn.conventions.fits.arrangements import arrangements
from polyattn.conventions.fits.biases import alibis, bias_factors, bias_places
from polyattn.conventions.fits.caches import moved_keys, other_keys
from polyattn.conventions.fits.caps import caps
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.fills import fills
from polyattn.conventions.fits.masks import mask_places
from polyattn.conventions.fits.norms import norms
from polyattn.conventions.fits.orders import head_orders, item_orders, kv_maps, row_orders
from polyattn.conventions.fits.outputs import additions, gains, lost_weight
from polyattn.conventions.fits.padding import padding
from polyattn.conventions.fits.probe import Fit, Observed
from polyattn.conventions.fits.rotaries import rotaries, turned_unasked
from polyattn.conventions.fits.scales import scales
from polyattn.conventions.fits.windows import windows
from polyattn.conventions.settings import CONTRACT, Settings

__all__ = ["FITS", "Fit", "Observed", "fits"]

#: Every kind of fit, the simplest first.
FITS: tuple[Callable[[Evidence], Iterator[Fit]], ...] = (
    scales,
    norms,
    windows,
    padding,
    mask_places,
    gains,
    additions,
    lost_weight,
    fills,
    caps,
    bias_factors,
    bias_places,
    alibis,
    rotaries,
    turned_unasked,
    head_orders,
    item_orders,
    kv_maps,
    arrangements,
    row_orders,
    moved_keys,
    other_keys,
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
