"""Milliseconds of one step of decoding beside each kind of cache, and the bytes that it holds.

    python benchmarks/caches.py numpy            also torch, jax (compiled, the old cache donated)
    python benchmarks/caches.py jax 16384        tokens that came before

Four items, eight query heads on two kv heads of width 64, float32. "gathered" is the same step with all keys read as one
array: what folding over pages, or over bytes, saves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.caches import CircularCache, KVCache, PagedCache, QuantizedCache, cached_attention
from polyattn.testing import load_bench

BATCH, HEADS, KV_HEADS, WIDTH, STEPS = 4, 8, 2, 64, 16


def caches(tokens: int, like: Any) -> dict[str, Any]:
    """Empty ones with room for that many tokens, and those of the steps."""
    room = tokens + 64

    def paged(size: int) -> PagedCache:
        count = -(-room // size)
        sizes = {"pages": BATCH * count, "page_size": size, "pages_per_sequence": count}
        return PagedCache.empty(BATCH, KV_HEADS, WIDTH, **sizes, like=like)

    return {
        "linear": KVCache.empty(BATCH, KV_HEADS, room, WIDTH, like=like),
        "circular, window 512": CircularCache.empty(BATCH, KV_HEADS, 512, WIDTH, like=like),
        "paged by 16": paged(16),
        "paged by 128": paged(128),
        "quantised": QuantizedCache.empty(BATCH, KV_HEADS, room, WIDTH, like=like),
    }


def step(cache: Any, query: Any, token: Any, implementation: str) -> tuple[Any, Any]:
    """One more token, and what its query sees."""
    cache = cache.append(token, token)
    return cache, cached_attention(query, cache, is_causal=True, implementation=implementation)


def runner(library: str, implementation: str) -> Callable[..., Any]:
    """The step as it is run there, to its end."""
    if library != "jax":
        return lambda *given: step(*given, implementation)
    import jax

    compiled = jax.jit(lambda *given: step(*given, implementation), donate_argnums=0)
    return lambda *given: jax.block_until_ready(compiled(*given))


def main() -> None:
    library, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    bench, rng = load_bench(library), np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return bench.array(rng.normal(size=shape), "float32")

    prompt, query = normal(BATCH, KV_HEADS, tokens, WIDTH), normal(BATCH, HEADS, 1, WIDTH)
    token = normal(BATCH, KV_HEADS, 1, WIDTH)
    for name, empty in caches(tokens, bench.array(np.zeros(()), "float32")).items():
        if library == "jax" and isinstance(empty.length, int):
            empty = empty._replace(length=bench.array(np.zeros((), np.int32)))
        filled = empty.append(prompt, prompt).append(token, token)
        held = sum(x.nbytes for x in filled if hasattr(x, "nbytes"))
        print(f"{name:22}{held / 2**20:8.1f} MiB", end="")
        for word, implementation in (("", "auto"), (" gathered", "reference")):
            run, cache = runner(library, implementation), type(filled)._make(1 * x for x in filled)
            cache, _ = run(cache, query, token)
            start = time.perf_counter()
            for _ in range(STEPS):
                cache, _ = run(cache, query, token)
            print(f"{(time.perf_counter() - start) / STEPS * 1000:9.2f} ms{word}", end="")
        print()


if __name__ == "__main__":
    main()
