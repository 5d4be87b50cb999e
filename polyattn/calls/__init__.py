"""How a call is answered that does not fit: its arguments by name and number, and the kind of each.

Below all that is called, so that functions, masks and layers answer alike: signatures, the words of other libraries,
and the few kinds of argument that there are.
"""

from polyattn.calls.foreign import Answer, Table, members, words_of
from polyattn.calls.functions import ambiguous, check_function
from polyattn.calls.kinds import (
    array,
    check_dtype,
    flag,
    integer,
    integral,
    is_traced,
    number,
    real,
    shown,
    size,
)
from polyattn.calls.layout import check_layout
from polyattn.calls.seeds import seed, seed_like, seed_line
from polyattn.calls.signature import Speaking, answers, unknown

__all__ = [
    "Answer",
    "Speaking",
    "Table",
    "ambiguous",
    "answers",
    "array",
    "check_dtype",
    "check_function",
    "check_layout",
    "flag",
    "integer",
    "integral",
    "is_traced",
    "members",
    "number",
    "real",
    "seed",
    "seed_like",
    "seed_line",
    "shown",
    "size",
    "unknown",
    "words_of",
]
