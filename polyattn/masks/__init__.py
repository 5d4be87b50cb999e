"""Masks as objects that compose: True = may attend, everywhere.

>>> from polyattn import masks
>>> print((masks.sliding_window(2) | masks.prefix(1)).show(4))
# . . .
# # . .
# # # .
# . # #
"""

from polyattn.masks.algebra import Mask
from polyattn.masks.arbitrary import from_array, mask_mod
from polyattn.masks.documents import segments
from polyattn.masks.lengths import key_lengths, prefix, query_lengths
from polyattn.masks.ranges import key_ranges
from polyattn.masks.relative import causal, chunked, dilated, sliding_window, window
from polyattn.masks.tiles import EMPTY, FULL, PARTIAL, Tile
from polyattn.places import Frame

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Frame",
    "Mask",
    "Tile",
    "causal",
    "chunked",
    "dilated",
    "from_array",
    "key_lengths",
    "key_ranges",
    "mask_mod",
    "prefix",
    "query_lengths",
    "segments",
    "sliding_window",
    "window",
]
