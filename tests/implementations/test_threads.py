"""Threads of NumPy: what a caller has set holds in them, and no bit depends on how many there are."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from polyattn import Blockwise, attention, attention_vjp, layers

BLAS = ThreadpoolController().select(user_api="blas")
LIMIT = [library.num_threads for library in BLAS.lib_controllers]
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(1, 1, 1300, 32)).astype(np.float32)
K, V = RNG.normal(size=(2, 1, 1, 700, 32)).astype(np.float32)
LAYER = layers.MultiHeadAttention(64, 4)
PARAMS = LAYER.init(seed=0, like=Q)
TOKENS = RNG.normal(size=(1, 700, 64)).astype(np.float32)


def by_layer() -> list[Any]:
    return [LAYER(PARAMS, TOKENS)]


def by_vjp() -> list[Any]:
    out, pullback = attention_vjp(Q, K, V)
    return [out, *pullback(out).values()]


#: what is computed -> how
RUNS: dict[str, Any] = {
    "reference": lambda: [attention(Q, K, V, implementation="reference")],
    "blockwise": lambda: [attention(Q, K, V, implementation="blockwise")],
    "one ragged tile": lambda: [attention(Q, K, V, implementation=Blockwise(2000, 512))],
    "few rows": lambda: [attention(Q[..., :16, :], K, V)],
    "derivative": by_vjp,
    "layer": by_layer,
}


@pytest.mark.rule("rule-16")
@pytest.mark.parametrize("name", RUNS)
def test_no_bit_depends_on_the_threads_of_blas(name: str) -> None:
    found = []
    for threads in (1, 2, 3):
        with BLAS.limit(limits=threads):
            found.append(RUNS[name]())
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))


@pytest.mark.rule("rule-16")
def test_no_bit_depends_on_what_other_threads_compute() -> None:
    """While one is inside, BLAS has one thread for all."""
    names = list(RUNS) * 4
    with BLAS.limit(limits=2):
        alone = {name: RUNS[name]() for name in RUNS}
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda name: RUNS[name](), names))
    for name, found in zip(names, together, strict=True):
        assert all((a == b).all() for a, b in zip(alone[name], found, strict=True)), name


def test_blas_has_its_threads_again_whatever_happens_inside() -> None:
    def fails(score: Any, *_: Any) -> Any:
        assert [library.num_threads for library in BLAS.lib_controllers] == [1] * len(LIMIT)
        raise KeyboardInterrupt

    for way in ("reference", Blockwise(2000, 512), Blockwise(64, 64)):
        with BLAS.limit(limits=3), pytest.raises(KeyboardInterrupt):
            attention(Q, K, V, score_mod=fails, query_offset=0, implementation=way)
    assert [library.num_threads for library in BLAS.lib_controllers] == LIMIT


SAID: ContextVar[str] = ContextVar("SAID", default="nothing")


@pytest.mark.parametrize("way", ["reference", Blockwise(64, 64)], ids=str)
def test_what_the_caller_has_set_holds_in_the_workers(way: Any) -> None:
    seen: set[tuple[str, str]] = set()
    workers: set[str] = set()

    def mod(score: Any, *_: Any) -> Any:
        seen.add((SAID.get(), np.geterr()["over"]))
        workers.add(threading.current_thread().name)
        return score

    token = SAID.set("something")
    with np.errstate(over="raise"):
        attention(Q, K, V, score_mod=mod, query_offset=0, implementation=way)
    SAID.reset(token)
    assert seen == {("something", "raise")}
    assert way == "reference" or any(name.startswith("polyattn-worker") for name in workers)


def test_a_warning_that_is_switched_off_stays_off() -> None:
    huge = np.full((1, 2, 300, 4), 1e30, np.float32)
    for way in ("reference", Blockwise(64, 64)):
        with ExitStack() as settings:
            settings.enter_context(warnings.catch_warnings(action="error"))
            settings.enter_context(np.errstate(all="ignore"))
            attention(huge, huge, huge, implementation=way)


def test_large_products_are_shared_out_as_numpy_makes_them() -> None:
    from polyattn.arrays import backend_of

    a, b = RNG.normal(size=(2, 1, 300, 256)), RNG.normal(size=(3, 256, 300))
    with BLAS.limit(limits=1):
        expected = a @ b
    found = backend_of(a).matmul(a, b)
    assert found.shape == (2, 3, 300, 300)
    assert (found == expected).all()
