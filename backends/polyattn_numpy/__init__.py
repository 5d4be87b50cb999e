"""polyattn on NumPy: the reference."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from threadpoolctl import ThreadpoolController

from polyattn.arrays import Array, Backend, TileSizes
from polyattn.implementations import BLOCKWISE, REFERENCE
from polyattn.implementations.blockwise import few_rows

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
_NEVER_SHARED = 2**13  # multiplications: no BLAS has threads for so few
_ROWS = 256  # of one product for one worker
_WORTH_WORKERS = 2**25  # products of numbers, for which one core needs about a millisecond (2026-11-29)
_LOCK = threading.Lock()
_POOL: list[ThreadPoolExecutor] = []
_BLAS: list[Any] = []  # the libraries, asked for once
_BEFORE: list[int] = []  # how many threads each had before the first call in
_RUNNING = 0


def _forget_threads() -> None:
    """In a forked child no thread of the pool runs, and nobody holds the lock."""
    global _LOCK, _RUNNING
    _LOCK, _RUNNING = threading.Lock(), 0
    _POOL.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool() -> ThreadPoolExecutor:
    with _LOCK:
        if not _POOL:
            _POOL.append(ThreadPoolExecutor(_workers(), thread_name_prefix=_WORKER))
        return _POOL[0]


def _in_worker() -> bool:
    return threading.current_thread().name.startswith(_WORKER)  # which never waits for another


def _by_workers(f: Callable[[int], Any], numbers: range) -> list[Any]:
    """f of every number, each in the context of the caller: what he said by np.errstate holds there."""
    with _one_blas_thread():
        contexts = [copy_context() for _ in numbers]
        return list(_pool().map(lambda context, n: context.run(f, n), contexts, numbers))


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """BLAS held to one thread, since its sums depend on how many it has.

    The first call in sets the limit, the last one out lifts it.
    """
    global _RUNNING
    with _LOCK:
        if not _BLAS:
            _BLAS.extend(ThreadpoolController().select(user_api="blas").lib_controllers)
        if _RUNNING == 0:
            _BEFORE[:] = [library.num_threads for library in _BLAS]
            _set_threads([1] * len(_BLAS))
        _RUNNING += 1
    try:
        yield
    finally:
        with _LOCK:
            _RUNNING -= 1
            if _RUNNING == 0:
                _set_threads(_BEFORE)


def _set_threads(numbers: list[int]) -> None:
    for library, n in zip(_BLAS, numbers, strict=True):
        # threadpoolctl from 3.8 on listens to the thread alone that spoke first, which here need not be the one
        # that speaks last.
        forget = getattr(library, "clear_controlling_thread", lambda force: None)
        forget(force=True)
        library.set_num_threads(n)
        forget(force=True)


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """The products of a call under one limit: to set it takes longer than to find it set."""

    @wraps(run)
    def run_alone(p: Any, settings: Any) -> Any:
        if p.frame.rows * p.frame.heads * p.frame.keys * max(p.q.shape[3], p.v.shape[3]) <= _NEVER_SHARED:
            return run(p, settings)
        with _one_blas_thread():
            return run(p, settings)

    return run_alone


@cache  # NumPy spells a name out anew each time, which took a tenth of a step of decoding (2026-11-30)
def _compute_dtype(dtype: Any) -> Any:
    # By name, because ml_dtypes.bfloat16 is not a dtype of the array API namespace.
    if dtype.name in ("float16", "bfloat16", "float32"):
        return xp.dtype(xp.float32)
    return dtype if dtype.kind == "f" and dtype.itemsize >= 8 else None


class NumpyBackend(Backend):
    implementations = (
        replace(BLOCKWISE, passed_over=few_rows(16), transforms=frozenset({"grad"})),  # attention_vjp
        replace(REFERENCE, run=_alone(REFERENCE.run), transforms=frozenset()),
    )

    def compute_dtype(self, dtype: Any) -> Any:
        return _compute_dtype(dtype)

    def refuses(self, kind: type) -> str | None:
        # A class that rounds or counts on purpose is welcome (`polyattn.truth.rounding` has one).
        if issubclass(kind, np.ma.MaskedArray):
            return "whose mask attention does not see; pass x.filled(0), and say by mask= what may be seen"
        return (
            "whose product is not that of arrays; pass numpy.asarray(x)"
            if issubclass(kind, np.matrix)
            else None
        )

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def device(self, x: Array) -> Any:
        return "cpu"

    def clip(self, x: Array, least: int, most: int) -> Array:
        return np.minimum(np.maximum(x, least), most)  # array_api_compat's takes ten times as long

    def arange(self, start: int, stop: int, like: Array) -> Array:
        return np.arange(start, stop, dtype=np.int32)

    def tile_sizes(self, p: Any) -> TileSizes:
        # One tile of scores is 1 MiB in float32 and stays in a core's cache (measured 2026-11-21).
        group = p.frame.heads // max(p.k.shape[1], 1)
        return TileSizes(rows=max(512 // max(group, 1), 16), keys=512, kv_heads=1)

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        if n == 1 or _in_worker():
            with _one_blas_thread(), _own_scratch():
                results = [f(i) for i in range(n)]
        else:
            # The last tiles first: under a causal mask they are the longest. Each worker takes the next
            # one as it comes free, and results are put in order, so the bits do not depend on threads.
            results = _by_workers(f, range(n - 1, -1, -1))[::-1]
        return tuple(xp.stack(parts) for parts in zip(*results, strict=True))

    def summed_at(self, x: Array, index: Array, count: int) -> Array:
        if type(x) is not np.ndarray:
            return super().summed_at(x, index, count)
        out = np.zeros((*x.shape[:2], count + 1), x.dtype)
        index = np.where((index >= 0) & (index < count), index, count)[:, None, :]
        item, head = np.ix_(np.arange(x.shape[0]), np.arange(x.shape[1]))
        np.add.at(out, (item[..., None], head[..., None], index), x)
        return out[..., :count]

    def put(self, x: Array, start: Any, tile: Array, axis: int, *, over: bool = False) -> Array:
        start, end = int(start), int(start) + tile.shape[axis]
        if start < 0 or end > x.shape[axis]:
            return super().put(x, start, tile, axis)
        out = x if over and x.flags.writeable else x.copy()
        out[(..., slice(start, end), *(slice(None),) * (-axis - 1))] = tile
        return out

    def matmul(self, a: Array, b: Array) -> Array:
        """Shared out in whole matrices, or a fixed number of rows of one, so that the bits are those of one thread."""
        plain = type(a) is type(b) is np.ndarray
        if a.size * b.shape[-1] <= _NEVER_SHARED:
            return np.matmul(a, b)
        if not plain or a.ndim < 2 or b.ndim < 2 or a.size * b.shape[-1] < _WORTH_WORKERS:
            with _one_blas_thread():
                return np.matmul(a, b)
        lead = xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = xp.empty((*lead, a.shape[-2], b.shape[-1]), dtype=xp.result_type(a, b))
        if lead:
            a, b = (xp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
            axis = lead.index(max(lead))
            step = -(-lead[axis] // _workers())
        else:
            axis, step = 0, _ROWS

        def product(i: int) -> None:
            at = (*(slice(None),) * axis, slice(i, i + step))
            xp.matmul(a[at], b[at] if lead else b, out=out[at])

        parts = range(0, out.shape[axis], step)
        if _in_worker():
            for i in parts:
                product(i)
        else:
            _by_workers(product, parts)
        return out

    def jit(self, f: Callable[..., Any], *, given_up: int | None = None) -> Callable[..., Any]:
        """f as it is, its products under one limit: to set that for each takes longer than a small product."""
        run = super().jit(f, given_up=given_up)

        @wraps(f)
        def held(*arrays: Any) -> Any:
            with _one_blas_thread():
                return run(*arrays)

        return held

    def product(self, a: Array, b: Array, slot: int) -> Array:
        shape = (*xp.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return xp.matmul(a, b, out=_scratch(slot, shape, a.dtype))

    def exp_of_difference(self, x: Array, y: Array) -> Array:
        x -= y
        return xp.exp(x, out=x)


backend = NumpyBackend("numpy", xp)
