"""The engine as one kernel: its body, its settings, its lists of visits; hosts are in the adapters."""

from polyattn.implementations.fused.body import Rows, average, pull_keys, pull_queries, pull_scores
from polyattn.implementations.fused.measured import Measured, Tiles, measured_for, preferring, tuned
from polyattn.implementations.fused.settings import PLATFORMS, Fused, unfit
from polyattn.implementations.fused.visits import Visit, Visits, visits

__all__ = [
    "PLATFORMS",
    "Fused",
    "Measured",
    "Rows",
    "Tiles",
    "Visit",
    "Visits",
    "average",
    "measured_for",
    "preferring",
    "pull_keys",
    "pull_queries",
    "pull_scores",
    "tuned",
    "unfit",
    "visits",
]
