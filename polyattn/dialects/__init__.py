"""How other libraries write attention down: their conventions as one table, and translators made of it.

>>> from polyattn import dialects
>>> sdpa, nnx = dialects.DIALECTS["torch.sdpa"], dialects.DIALECTS["flax.nnx"]
>>> print(sdpa.choice("layout").says, "|", nnx.choice("layout").says)
(B, H, L, D) | (B, L, H, D)

`DIALECTS[name].attention` has the foreign signature and the contract's numbers; `to_polyattn` and
`from_polyattn` translate a call in either direction; `explain` tells which traps bite for a call.
"""

from polyattn.dialects.question import Question
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Claim
from polyattn.dialects.table import DIALECTS, dialect
from polyattn.dialects.translate import Dialect
from polyattn.dialects.traps import Explanation, Trap, explain

__all__ = [
    "DIALECTS",
    "QUESTIONS",
    "Claim",
    "Dialect",
    "Explanation",
    "Question",
    "Trap",
    "dialect",
    "explain",
]
