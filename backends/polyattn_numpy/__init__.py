"""polyattn on NumPy: the reference."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from threadpoolctl import ThreadpoolController

from polyattn.arrays import Array, Backend, TileSizes
from polyattn.implementations import BLOCKWISE, REFERENCE
from polyattn.implementations.blockwise import few_rows


class NumpyBackend(Backend):
    implementations = (
        replace(BLOCKWISE, passed_over=few_rows(16), transforms=frozenset({"grad"})),  # attention_vjp
        replace(REFERENCE, transforms=frozenset()),
    )

    def compute_dtype(self, dtype: Any) -> Any:
        # By name, because ml_dtypes.bfloat16 is not a dtype of the array API namespace.
        if dtype.name in ("float16", "bfloat16", "float32"):
            return xp.dtype(xp.float32)
        return dtype if dtype.kind == "f" and dtype.itemsize >= 8 else None

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def device(self, x: Array) -> Any:
        return "cpu"

    def arange(self, start: int, stop: int, like: Array) -> Array:
        return np.arange(start, stop, dtype=np.int32)

    def tile_sizes(self, p: Any) -> TileSizes:
        # One tile of scores is 1 MiB in float32 and stays in a core's cache (measured 2026-11-21).
        group = p.frame.heads // max(p.k.shape[1], 1)
        return TileSizes(rows=max(512 // max(group, 1), 16), keys=512, kv_heads=1)

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        if n == 1 or threading.current_thread().name.startswith(_WORKER):  # a worker never waits for another
            with _own_scratch():
                results = [f(i) for i in range(n)]
        else:
            with _one_blas_thread():
                # The last tiles first: under a causal mask they are the longest. Each worker takes the next
                # one as it comes free, and results are put in order, so the bits do not depend on threads.
                results = list(_pool().map(f, range(n - 1, -1, -1)))[::-1]
        return tuple(xp.stack(parts) for parts in zip(*results, strict=True))

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        try:
            from polyattn_autograd import vjp
        except ImportError:
            raise NotImplementedError(
                "polyattn: the derivative of a function as score_mod needs autodiff, which numpy has not by itself; "
                "pip install autograd, or use the modifications of polyattn.mods"
            ) from None
        return vjp(f, x)[1](cotangent)

    def product(self, a: Array, b: Array, slot: int) -> Array:
        shape = (*xp.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return xp.matmul(a, b, out=_scratch(slot, shape, a.dtype))

    def exp_of_difference(self, x: Array, y: Array) -> Array:
        x -= y
        return xp.exp(x, out=x)


_LOCAL = threading.local()


def _scratch(slot: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory of this thread, used again and again: fresh pages cost more than the arithmetic on them."""
    kept = _LOCAL.__dict__.setdefault("buffers", {})
    size, place = math.prod(shape), (getattr(_LOCAL, "depth", 0), slot, dtype)
    buffer = kept.get(place)
    if buffer is None or buffer.size < size:
        buffer = kept[place] = xp.empty(size, dtype=dtype)
    return buffer[:size].reshape(shape)


@contextmanager
def _own_scratch() -> Iterator[None]:
    """A score_mod may call attention: the inner call must not write into the outer one's memory."""
    _LOCAL.depth = getattr(_LOCAL, "depth", 0) + 1
    try:
        yield
    finally:
        _LOCAL.depth -= 1


_WORKER = "polyattn-worker"
_LOCK = threading.Lock()
_POOL: list[ThreadPoolExecutor] = []
_BLAS: list[Any] = []  # the controller, and while the engine runs its limit
_RUNNING = 0


def _forget_threads() -> None:
    """In a forked child no thread of the pool runs, and nobody holds the lock."""
    global _LOCK, _RUNNING
    _LOCK, _RUNNING = threading.Lock(), 0
    _POOL.clear()
    _BLAS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _pool() -> ThreadPoolExecutor:
    with _LOCK:
        if not _POOL:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            _POOL.append(ThreadPoolExecutor(workers, thread_name_prefix=_WORKER))
        return _POOL[0]


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """BLAS held to one thread per worker: the first call in sets the limit, the last one out lifts it."""
    global _RUNNING
    with _LOCK:
        if not _BLAS:
            _BLAS.append(ThreadpoolController().select(user_api="blas"))
        if _RUNNING == 0:
            _BLAS.append(_BLAS[0].limit(limits=1))
        _RUNNING += 1
    try:
        yield
    finally:
        with _LOCK:
            _RUNNING -= 1
            if _RUNNING == 0:
                _BLAS.pop().restore_original_limits()


backend = NumpyBackend("numpy", xp)
