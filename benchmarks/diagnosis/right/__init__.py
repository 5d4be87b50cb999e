"""Outputs that are right: of every installed library, on every problem that it can be told."""

from . import others, pytorch, with_jax
from .common import COMPILES, IMPLEMENTATIONS

__all__ = ["COMPILES", "IMPLEMENTATIONS", "others", "pytorch", "with_jax"]
