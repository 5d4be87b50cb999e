"""Parity of whole models: which component of a port is wrong, by itself, and why."""

from polyattn.parity.models.checking import assert_model, check_model, compare_models
from polyattn.parity.models.recording import record
from polyattn.parity.models.records import Record
from polyattn.parity.models.result import ModelComparison
from polyattn.parity.models.swapping import Bisection, bisect
from polyattn.parity.models.watching import tap

__all__ = [
    "Bisection",
    "ModelComparison",
    "Record",
    "assert_model",
    "bisect",
    "check_model",
    "compare_models",
    "record",
    "tap",
]
