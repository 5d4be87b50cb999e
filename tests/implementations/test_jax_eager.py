"""Calls on JAX outside of `jit`: they mean what Python means at that moment, and run where their arrays lie."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, polyattn_jax

from polyattn import Blockwise, attention, masks, mods
from polyattn.masks.tiles import PARTIAL
from polyattn.problem import pose

backend, eager = polyattn_jax.backend, polyattn_jax.eager
X = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 6, 4)), jnp.float32)
NOW: dict[str, Any] = {"factor": 1.0, "reach": 2, "table": jnp.zeros(3)}


@dataclass(frozen=True, eq=True)
class Near(masks.Mask):
    """A mask of the user, equal to every other of its kind, that reads what it was not given."""

    def allowed(self, at: Any) -> Any:
        return abs(at.q - at.kv) < NOW["reach"]

    def box(self, box: Any) -> Any:
        return PARTIAL

    def __str__(self) -> str:
        return "near"


@dataclass(frozen=True, eq=True)
class Times(mods.Mod):
    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * NOW["factor"]


READERS: dict[str, dict[str, Any]] = {
    "score_mod": {"score_mod": lambda s, b, h, q, kv: s * NOW["factor"]},
    "array": {"score_mod": lambda s, b, h, q, kv: s + NOW["table"][q % 3] * kv},
    "mask": {"mask": lambda b, h, q, kv: abs(q - kv) < NOW["reach"]},
    "part of a mask": {"mask": masks.causal() & masks.mask_mod(lambda b, h, q, kv: q - kv < NOW["reach"])},
    "Mask of one's own": {"mask": Near()},
    "Mod of one's own": {"score_mod": Times()},
    "composed": {"score_mod": mods.compose(mods.softcap(2.0), lambda s, b, h, q, kv: s * NOW["factor"])},
}


def by(way: Any, options: dict[str, Any]) -> np.ndarray:
    return np.asarray(attention(X, X, X, **options, query_offset=0, implementation=way))


@pytest.mark.rule("rule-12", "rule-16")
@pytest.mark.parametrize("what", READERS)
def test_what_a_function_reads_is_read_at_every_eager_call(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, tiles = READERS[what], Blockwise(rows=4, keys=4)
    before = by(tiles, options)
    for name, value in {"factor": 3.0, "reach": 4, "table": jnp.asarray([1.0, -1.0, 2.0])}.items():
        monkeypatch.setitem(NOW, name, value)
    after = by(tiles, options)
    assert np.abs(after - before).max() > 0.01
    assert np.abs(after - by("reference", options)).max() < 1e-5


def test_functions_that_say_the_same_are_compiled_once_and_let_go() -> None:
    def fresh(factor: float) -> Callable[..., Any]:
        return lambda s, b, h, q, kv: s * factor

    tiles = Blockwise(rows=4, keys=4)
    by(tiles, {"score_mod": fresh(1.25)})
    known = eager._kept.cache_info().currsize
    functions = [fresh(1.25) for _ in range(3)]
    alive = [weakref.ref(f) for f in functions]
    for f in functions:
        by(tiles, {"score_mod": f})
    assert eager._kept.cache_info().currsize == known
    by(tiles, {"score_mod": fresh(1.5)})
    assert eager._kept.cache_info().currsize == known + 1
    del f, functions
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_the_programs_that_are_kept_are_bounded() -> None:
    for kept in (eager._kept, eager._compiled):
        assert kept.cache_info().maxsize == eager.MOST <= 64


def test_the_device_of_the_arrays_decides_and_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pose("test", X, X, X)
    on_cpu = backend.tile_sizes(p)
    there, devices = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3"), jax.devices
    monkeypatch.setattr(jax, "devices", lambda name=None: [there] if name is None else devices(name))
    assert eager.platform(X) == "cpu"
    assert backend.tile_sizes(p) == on_cpu
    half = X.astype(jnp.float16)
    with pytest.raises(ValueError, match="there is no GPU"):
        attention(half, half, half, implementation="native")
    seen = []

    def look(x: Any) -> Any:
        seen.append(eager.platform(x))
        return x.sum()

    jax.grad(look)(X)
    jax.vmap(look)(X)
    jax.jvp(look, (X,), (X,))
    jax.vmap(jax.grad(look))(X)
    assert seen == ["cpu"] * 4
    jax.jit(look)(X)  # which may be called with others
    with jax.default_device(jax.devices("cpu")[0]):
        jax.jit(lambda x: look(2 * x))(X)
    assert seen[4:] == ["gpu", "cpu"]


def test_arrays_of_another_device_than_the_default_get_its_tiles() -> None:
    there = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    p = pose("test", X, X, X)
    elsewhere = SimpleNamespace(q=SimpleNamespace(devices=lambda: [there]), k=p.k, frame=p.frame)
    assert eager.platform(elsewhere.q) == "gpu"
    assert backend.tile_sizes(elsewhere) == (256, 256, None)
    assert backend.tile_sizes(p) == (512, 512, 2)
