"""A problem in plain NumPy: what an oracle needs to know, with masks and mods as explicit arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Floats", "Spec"]

Floats = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Spec:
    """normalizer(where(allowed, cap(scale q k) + shift + bias, -inf), sink) * keep @ v, as arrays."""

    q: Floats  # (B, Hq, L, D) float64, exactly representable in the dtype under test
    k: Floats  # (B, Hkv, S, D)
    v: Floats  # (B, Hkv, S, E)
    allowed: Floats = field(default_factory=lambda: np.ones((1, 1, 1, 1), bool))  # broadcasts to the scores
    scale: Floats | float | None = None  # a number or (Hq,); None = 1/sqrt(D)
    softcap: float | None = None
    shift: Floats | None = None  # what mods add, broadcasting to the scores
    bias: Floats | None = None
    sinks: Floats | None = None  # (Hq,)
    normalizer: str = "softmax"
    parameter: float = 0.0  # of the normaliser: the bias of "sigmoid", the k of "top_k"
    q_size: Floats | None = None  # of what one rounding may be, where that is not |q|; likewise of k
    k_size: Floats | None = None
    keep: Floats | None = None  # factors on the weights, broadcasting to the scores

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        batch = max(x.shape[0] for x in (self.q, self.k, self.v))
        return (0 if 0 in self.q.shape[:1] else batch, self.q.shape[1], self.q.shape[2], self.k.shape[2])

    @property
    def scales(self) -> Floats:
        """(Hq,) factors on the scores."""
        scale = self.scale
        if scale is None:
            scale = 1.0 / np.sqrt(self.q.shape[-1]) if self.q.shape[-1] else 1.0
        return np.broadcast_to(np.asarray(scale, np.longdouble), (self.q.shape[1],))
