"""What lies far out: empty slots, queries that see nothing, scores below a sink, a library without its adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import AuxRequest, attention
from polyattn.arrays import discovery
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to, truth
from polyattn.testing import Bench

Q_AT = np.array([[3, 7, 2], [0, 9, 4]], np.int32)
K_AT = np.array([[0, 5, 2, -1, 3], [8, 1, -1, -1, 4]], np.int32)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float16")


QKV = {"query": draw(2, 4, 3, 8, seed=1), "key": draw(2, 2, 5, 8, seed=2), "value": draw(2, 2, 5, 6, seed=3)}


def run(bench: Bench, arrays: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """out, and where the library has derivatives the gradient of every array, in NumPy arrays."""

    def f(given: Any) -> Any:
        out, aux = attention(**given, **options, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    shape = (*arrays["query"].shape[:3], arrays["value"].shape[-1])
    cotangent = bench.array(np.ones(shape), "float32")
    out, _, grads = bench.run(f, {n: bench.array(x, "float32") for n, x in arrays.items()}, cotangent)
    return {name: bench.numpy(x) for name, x in {"out": out, **(grads or {})}.items()}


@pytest.mark.rule("rule-18", "rule-7")
def test_what_an_empty_slot_holds_reaches_nobody(eager: Bench) -> None:
    options = {"query_positions": eager.array(Q_AT), "key_positions": eager.array(K_AT)}
    clean = run(eager, QKV, **options)
    poisoned = {name: x.copy() for name, x in QKV.items()}
    for name in ("key", "value"):
        poisoned[name][np.broadcast_to((K_AT < 0)[:, None], (2, 2, 5))] = np.nan
    found = run(eager, poisoned, **options)
    assert clean.keys() == found.keys()
    assert all(np.array_equal(clean[name], found[name]) for name in clean)


@pytest.mark.rule("rule-23")
@pytest.mark.filterwarnings(
    "ignore:invalid value encountered in matmul:RuntimeWarning"
)  # inf times 0, thrown away
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("how", ["auto", "reference", "blockwise"])
def test_a_query_that_sees_nothing_may_hold_anything(eager: Bench, how: Any, poison: float) -> None:
    allowed = np.ones((2, 1, 3, 5), bool)
    allowed[:, :, 1] = False
    options = {"mask": eager.array(allowed), "implementation": how}
    clean = run(eager, QKV, **options)
    poisoned = QKV | {"query": QKV["query"].copy()}
    poisoned["query"][:, :, 1] = poison
    found = run(eager, poisoned, **options)
    assert not found["out"][:, :, 1].any()
    assert clean.keys() == found.keys()
    assert all(np.array_equal(clean[name], found[name]) for name in clean)


@pytest.mark.rule("rule-24")
@pytest.mark.parametrize("how", ["reference", "blockwise"])
@pytest.mark.parametrize("sink", [60.0, 120.0])
def test_scores_far_below_a_sink_have_gradients_that_are_finite_and_right(
    eager: Bench, how: Any, sink: float
) -> None:
    sinks = np.full(4, sink)
    found = run(eager, QKV | {"sinks": sinks}, implementation=how)
    assert all(np.isfinite(x).all() for x in found.values())
    judged = truth(Spec(*QKV.values(), sinks=sinks), np.ones((2, 4, 3, 6)))
    shorts = {"out": "out", "query": "dq", "key": "dk", "value": "dv", "sinks": "dsinks"}
    for name, x in found.items():
        if np.abs(judged[shorts[name]].value).max() > np.finfo(np.float32).tiny:
            assert eta(x, judged[shorts[name]], "float32") <= ACCEPTANCE, name


@pytest.mark.rule("rule-24")
@pytest.mark.parametrize("how", ["reference", "blockwise"])
def test_a_sink_of_infinity_takes_the_whole_row(eager: Bench, how: Any) -> None:
    found = run(eager, QKV | {"sinks": np.full(4, np.inf)}, implementation=how)
    assert not any(x.any() for x in found.values())


@pytest.mark.rule("rule-26")
def test_a_missing_adapter_of_our_own_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_BY_TYPE", {})
    monkeypatch.setattr(discovery, "_BY_NAME", {})
    monkeypatch.setattr(discovery, "find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.warns(UserWarning, match="polyattn_numpy"):
        attention(np.eye(2), np.eye(2), np.eye(2))
