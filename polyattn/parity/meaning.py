"""What was meant by a call, as truth: judged results in the arrays that were given, rotary included."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.visible import spec_of
from polyattn.parity.turned import Turning, turning
from polyattn.truth.definition import Visit, truth
from polyattn.truth.judged import Judged
from polyattn.truth.spec import Floats, Spec

__all__ = ["Meaning", "meaning_of"]


@dataclass(frozen=True)
class Meaning:
    """A problem of query and key as they meet, and how they were turned before."""

    spec: Spec
    dtype: str
    turnings: tuple[Turning, Turning] | None = None  # of query and of key

    def judged(self, cotangent: Floats | None = None, visit: Visit | None = None) -> dict[str, Judged]:
        """`polyattn.truth.truth`, with gradients for what was given."""
        found = truth(self.spec, cotangent, dtype=self.dtype, visit=visit)
        for name, one in zip(("dq", "dk"), self.turnings or (), strict=False):
            if name in found:
                found[name] = one.judged(found[name])
        return found


def meaning_of(call: Call, dtype: str) -> Meaning:
    """The truth of a call, for results in `dtype`."""
    if call.rotary is None:
        return Meaning(spec_of(call), dtype)
    real = np.longdouble if dtype == "float64" else np.float64
    at = np.reshape(call.offset, (-1, 1)) + np.arange(call.shape[2])
    turn_q = turning(call.rotary, at, call.q.shape[3], real)
    turn_k = turning(call.rotary, np.arange(call.shape[3])[None], call.k.shape[3], real)
    plain = spec_of(replace(call, rotary=None))
    spec = replace(
        plain,
        q=turn_q.turn(plain.q),
        k=turn_k.turn(plain.k),
        q_size=turn_q.size(plain.q),
        k_size=turn_k.size(plain.k),
    )
    return Meaning(spec, dtype, (turn_q, turn_k))
