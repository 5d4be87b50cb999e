"""Attention to selected keys: the keys of a row are gathered, so that what was not selected costs nothing.

    scores -> top_indices -> selected_attention

Scores of keys (`indexer_scores`) or of blocks of keys (against `pooled_keys`) are cheap; the attention itself then
has L K scores instead of L S. It equals attention under the mask of the selection.
"""

from polyattn.selection.choosing import indexer_scores, pooled_keys, top_indices
from polyattn.selection.gathered import selected_attention
from polyattn.selection.moba import moba_attention
from polyattn.selection.nsa import nsa_attention

__all__ = [
    "indexer_scores",
    "moba_attention",
    "nsa_attention",
    "pooled_keys",
    "selected_attention",
    "top_indices",
]
