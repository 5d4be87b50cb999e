"""Why a single component of a port is wrong, and what is wrong with weights before anything runs."""

from polyattn.parity.components.explaining import explain
from polyattn.parity.components.facts import Facts, facts_of

__all__ = ["Facts", "explain", "facts_of"]
