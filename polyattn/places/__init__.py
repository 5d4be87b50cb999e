"""Where a score stands: sizes of the score matrix, positions of rows and keys, numbers of heads and items."""

from polyattn.places.bounds import FAR, INT32, brought_near, check_near, within
from polyattn.places.frame import ORIGIN, Frame, Places, Side, Sides
from polyattn.places.indices import Positions, gather, look_up, positions, standing
from polyattn.places.packed import standing_in

__all__ = [
    "FAR",
    "INT32",
    "ORIGIN",
    "Frame",
    "Places",
    "Positions",
    "Side",
    "Sides",
    "brought_near",
    "check_near",
    "gather",
    "look_up",
    "positions",
    "standing",
    "standing_in",
    "within",
]
