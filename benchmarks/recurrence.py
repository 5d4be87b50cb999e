"""Linear attention in chunks and token by token, as `decoding.py` times them.

Forward, float32, batch 1, 4 heads of width 64, the rules of the gated delta net (a decay a head) and of KDA (a decay for
each entry of the key). On JAX both are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.linear import l2norm, linear_attention

HEADS, WIDTH, CHUNK = 4, 64, {"gated delta": 64, "KDA": 16}


def arrays(rule: str, length: int) -> list[Any]:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, HEADS, length, WIDTH)).astype(np.float32)
    decay = -rng.uniform(size=(1, HEADS, length, WIDTH if rule == "KDA" else 1)).astype(np.float32)
    beta = rng.uniform(size=(1, HEADS, length, 1)).astype(np.float32)
    return [l2norm(q), l2norm(k), v, decay, beta]


def work(library: str, given: list[Any], chunk_size: int) -> Callable[[], Any]:
    def call(q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
        return linear_attention(q, k, v, decay=decay, beta=beta, chunk_size=chunk_size)[0]

    if library == "numpy":
        return lambda: call(*given)
    if library == "torch":
        import torch

        tensors = [torch.from_numpy(x) for x in given]
        return lambda: call(*tensors)
    import jax

    compiled, moved = jax.jit(call), [jax.numpy.asarray(x) for x in given]
    return lambda: jax.block_until_ready(compiled(*moved))
