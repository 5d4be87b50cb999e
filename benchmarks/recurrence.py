"""Linear attention in chunks against the recurrence, token by token: seconds of both in one run, and their ratio.

    python benchmarks/recurrence.py

Forward, float32, batch 1, 4 heads of width 64, the rules of the gated delta net (a decay a head) and of KDA (a decay for
each entry of the key). A ratio above 1 says that chunks are faster. On JAX both are compiled.
"""

from __future__ import annotations

import time
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


def seconds(f: Callable[[], Any]) -> float:
    """The fastest of three, after one that compiles."""
    f()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        f()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    print("| rule | library | L | token by token, ms | in chunks, ms | ratio |")
    print("|---|---|--:|--:|--:|--:|")
    for rule, chunk_size in CHUNK.items():
        for library in ("numpy", "jax", "torch"):
            for length in (1, 16, 128, 1024):
                given = arrays(rule, length)
                slow, fast = (seconds(work(library, given, size)) for size in (1, chunk_size))
                ratio = slow / fast
                print(
                    f"| {rule} | {library} | {length} | {1e3 * slow:.2f} | {1e3 * fast:.2f} | {ratio:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
