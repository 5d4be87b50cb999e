"""Extra memory of forward and backward in bytes: the peak of this process less what it held before.

    python benchmarks/memory.py numpy 32768

One head, D = 64, causal, float32, through the blockwise engine.
"""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from polyattn import attention, attention_vjp


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forward_and_backward(library: str, length: int) -> Any:
    """The work, with its arrays made; compiled where the library compiles."""
    q, k, v, d = np.random.default_rng(0).normal(size=(4, 1, 1, length, 64)).astype(np.float32)
    options: dict[str, Any] = {"is_causal": True, "implementation": "blockwise"}
    if library == "numpy":
        return lambda: attention_vjp(q, k, v, **options)[1](d)
    if library == "torch":
        import torch

        arrays = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
        return lambda: torch.autograd.grad(attention(*arrays, **options), arrays, torch.from_numpy(d))
    import jax

    given = [jax.numpy.asarray(x) for x in (q, k, v)]
    grad = jax.jit(jax.grad(lambda *x: attention(*x, **options).sum(), argnums=(0, 1, 2)))
    compiled = grad.lower(*given).compile()
    return lambda: jax.block_until_ready(compiled(*given))


def main() -> None:
    library, length = sys.argv[1], int(sys.argv[2])
    forward_and_backward(library, 1024)()  # loads libraries and starts threads
    work = forward_and_backward(library, length)
    gc.collect()
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    print(max(peak, resident()) - before)


if __name__ == "__main__":
    main()
