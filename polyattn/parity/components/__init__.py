"""Why a single component of a port is wrong, and what is wrong with weights before anything runs.

`facts_of` reads what a component is from a module of any framework; `explain` says why one that is wrong by itself is so;
`compare_weights` looks at the arrays alone.
"""

from polyattn.parity.components.explaining import explain
from polyattn.parity.components.facts import Facts, facts_of
from polyattn.parity.components.weights import WeightDifference, compare_weights

__all__ = ["Facts", "WeightDifference", "compare_weights", "explain", "facts_of"]
