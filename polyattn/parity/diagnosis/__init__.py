"""Why an implementation of attention returned what it did: the search among all that a call could have meant.

`reading` takes an output as it comes; `seen` measures it; `case` is one output beside what was meant; `screening` tries
explanations on a few telling rows and confirms the best on all; `search` says in which order; `plainly`, `partly`,
`roundings` and `dropped` know outputs of special kinds; `profile` says where an output is wrong that nothing explains.
"""

from polyattn.parity.diagnosis.entry import diagnose
from polyattn.parity.diagnosis.findings import Diagnosis, Finding
from polyattn.parity.diagnosis.profile import Profile

__all__ = ["Diagnosis", "Finding", "Profile", "diagnose"]
