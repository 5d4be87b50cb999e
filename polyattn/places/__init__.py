"""Where a score stands: sizes of the score matrix, positions of rows and keys, numbers of heads and items."""

from polyattn.places.frame import ORIGIN, Frame, Places, Side, Sides
from polyattn.places.positions import Positions, gather, look_up, positions

__all__ = ["ORIGIN", "Frame", "Places", "Positions", "Side", "Sides", "gather", "look_up", "positions"]
