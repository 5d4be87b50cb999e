"""Defects that have a name."""

from .moving import MOVING
from .positions import POSITIONS
from .seen import SEEN
from .usual import USUAL
from .weighing import WEIGHING

DEFECTS = USUAL + MOVING + POSITIONS + SEEN + WEIGHING

__all__ = ["DEFECTS"]
