"""The arguments of attention, declared, checked, and in canonical form."""

from polyattn.problem.axes import Axes
from polyattn.problem.features import FEATURES, say
from polyattn.problem.options import NAMES, AuxRequest, Options
from polyattn.problem.packed import packed_positions
from polyattn.problem.problem import Problem, pose

__all__ = ["FEATURES", "NAMES", "AuxRequest", "Axes", "Options", "Problem", "packed_positions", "pose", "say"]
