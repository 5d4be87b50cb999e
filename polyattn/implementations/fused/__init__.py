"""The engine as one kernel: its body, its settings, its lists of visits; hosts are in the adapters."""

from polyattn.implementations.fused.body import Rows, average, pull_keys, pull_queries, pull_scores
from polyattn.implementations.fused.kernels import Kernels, Trial, kernels_of
from polyattn.implementations.fused.measured import Measured, Tiles, measured_for, preferring, tuned
from polyattn.implementations.fused.settings import FEW, PLATFORMS, Fused, unfit
from polyattn.implementations.fused.visiting import Count, Run, Visits, counted, visits

__all__ = [
    "FEW",
    "PLATFORMS",
    "Count",
    "Fused",
    "Kernels",
    "Measured",
    "Rows",
    "Run",
    "Tiles",
    "Trial",
    "Visits",
    "average",
    "counted",
    "kernels_of",
    "measured_for",
    "preferring",
    "pull_keys",
    "pull_queries",
    "pull_scores",
    "tuned",
    "unfit",
    "visits",
]
