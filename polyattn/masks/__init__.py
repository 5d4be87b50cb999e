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
from polyattn.masks.blocks import block_causal, block_diffusion
from polyattn.masks.documents import segments, shared_prefix
from polyattn.masks.grids import neighborhood, sliding_tiles
from polyattn.masks.lengths import key_lengths, prefix, query_lengths
from polyattn.masks.ranges import key_ranges
from polyattn.masks.relative import causal, chunked, dilated, sliding_window, window
from polyattn.masks.sparse import global_tokens, random_blocks, strided
from polyattn.masks.tiles import EMPTY, FULL, PARTIAL, Tile
from polyattn.masks.trees import tree
from polyattn.places import Frame

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Frame",
    "Mask",
    "Tile",
    "block_causal",
    "block_diffusion",
    "causal",
    "chunked",
    "dilated",
    "from_array",
    "global_tokens",
    "key_lengths",
    "key_ranges",
    "mask_mod",
    "neighborhood",
    "prefix",
    "query_lengths",
    "random_blocks",
    "segments",
    "shared_prefix",
    "sliding_tiles",
    "sliding_window",
    "strided",
    "tree",
    "window",
]
