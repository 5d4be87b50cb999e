"""What attention with other conventions answers: a switch for every convention and defect, a file for every stage.

`Settings()` is the contract; dialects are settings, and `diagnose` searches among them. All is NumPy, in the dtype of the
call: float64 to judge, float32 to search.

operands.py   which arrays are taken for query, key and value, and how their heads lie
turning.py    norms and rotary embedding
rounding.py   lower precisions, and how far a result may land from a number that lies between two of theirs
products.py   query times key: what most settings share
scores.py     scale, soft cap, bias, and what hides
weighing.py   how scores become weights
outputs.py    what happens to the output at last
answering.py  all of it, one after the other
"""

from polyattn.conventions.answers.answering import Answer, Answers, answer
from polyattn.conventions.answers.outputs import merged_rightly, merged_wrongly

__all__ = ["Answer", "Answers", "answer", "merged_rightly", "merged_wrongly"]
