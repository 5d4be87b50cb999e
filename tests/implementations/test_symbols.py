"""Sizes that are symbols, and the strict settings of JAX: lengths that are traced, and no promotion of dtypes or ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, Blockwise, attention, masks, mods
from polyattn.truth import Spec, eta, truth

pytestmark = pytest.mark.rule("rule-15")

LENGTHS = np.array([3, 5], np.int32)


def drawn(queries: int, keys: int) -> list[np.ndarray]:
    rng = np.random.default_rng([queries, keys])
    return [rng.normal(size=(2, 4, n, 8)).astype(np.float32) for n in (queries, keys, keys)]


#: what a program may compute on lengths that it does not know: options, and what may be seen of L by S
PROGRAMS: dict[str, tuple[dict[str, Any], Any]] = {
    "decoding": ({"is_causal": True, "query_offset": "end"}, lambda q, kv, n, s: kv <= q + s - n),
    "lengths": ({}, lambda q, kv, n, s: kv < LENGTHS[:, None, None, None]),
    "window": ({"mask": masks.window(2, 1), "query_offset": 1}, lambda q, kv, n, s: (kv >= q - 1) & (kv <= q + 2)),
    "prefix": ({"mask": masks.causal() | masks.prefix(2), "query_offset": 0}, lambda q, kv, n, s: (kv <= q) | (kv < 2)),
}  # fmt: skip


def program(name: str, way: str) -> Any:
    options, _ = PROGRAMS[name]

    def f(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        more = {"mask": masks.key_lengths(lengths)} if name == "lengths" else {}
        return attention(q, k, v, **options, **more, implementation=way)

    return f


def agrees(name: str, out: Any, arrays: list[np.ndarray]) -> None:
    n, s = arrays[0].shape[2], arrays[1].shape[2]
    q, kv = np.arange(n)[:, None], np.arange(s)
    allowed = np.broadcast_to(PROGRAMS[name][1](q, kv, n, s), (2, 1, n, s))
    spec = Spec(*(x.astype(np.float64) for x in arrays), allowed=allowed)
    assert eta(np.asarray(out), truth(spec)["out"], "float32") <= 4


@pytest.mark.parametrize("way", ["reference", "native", "auto"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_torch_compiles_and_exports_lengths_that_are_symbols(name: str, way: str) -> None:
    f, lengths = program(name, way), torch.from_numpy(LENGTHS)

    class Program(torch.nn.Module):
        def forward(self, q: Any, k: Any, v: Any, lengths: Any) -> Any:
            return f(q, k, v, lengths)

    torch.compiler.reset()
    compiled = torch.compile(f, dynamic=True, fullgraph=True, backend="eager")
    n, s = (torch.export.Dim(x, min=2, max=1024) for x in ("n", "s"))
    first = [torch.from_numpy(x) for x in drawn(6, 9)]
    shapes = ({2: n}, {2: s}, {2: s}, None)
    exported = torch.export.export(Program(), (*first, lengths), dynamic_shapes=shapes).module()
    for sizes in ((6, 9), (7, 13)):
        arrays = drawn(*sizes)
        tensors = [torch.from_numpy(x) for x in arrays]
        for run in (compiled, exported):
            agrees(name, run(*tensors, lengths), arrays)


@pytest.mark.parametrize("way", ["reference", "auto"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_jax_exports_lengths_that_are_symbols(name: str, way: str) -> None:
    n, s = jax.export.symbolic_shape("n, s")
    shapes = [jax.ShapeDtypeStruct((2, 4, x, 8), jnp.float32) for x in (n, s, s)]
    exported = jax.export.export(jax.jit(program(name, way)))(*shapes, jax.ShapeDtypeStruct((2,), jnp.int32))
    for sizes in ((6, 9), (7, 13)):
        arrays = drawn(*sizes)
        agrees(name, exported.call(*arrays, LENGTHS), arrays)


def test_the_engine_says_that_it_cuts_numbers() -> None:
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((2, 4, n, 8), jnp.float32)] * 3
    with pytest.raises(ValueError) as caught:
        jax.export.export(jax.jit(program("prefix", "blockwise")))(*shapes, LENGTHS)
    assert str(caught.value) == (
        "polyattn.attention: expected a problem that the blockwise engine computes exactly for "
        "implementation='blockwise', got one where a length is a symbol, and the engine cuts lengths that are "
        "numbers; use 'auto'"
    )


STRICT: dict[str, Any] = {
    "soft cap": lambda: {"score_mod": mods.softcap(2.0), "is_causal": True},
    "alibi": lambda: {"score_mod": mods.alibi(jnp.ones(4, jnp.float32))},
    "relative": lambda: {"score_mod": mods.relative_position_bias(jnp.ones((8, 4), jnp.float32))},
    "bias": lambda: {"bias": jnp.ones((9, 9), jnp.bfloat16)},
    "sinks": lambda: {"sinks": jnp.zeros(4, jnp.float32)},
    "scale": lambda: {"scale": jnp.ones(4, jnp.float32)},
    "dropout": lambda: {"dropout_rate": 0.3, "dropout_seed": jnp.asarray(3, jnp.int32)},
    "lengths": lambda: {"mask": masks.key_lengths(jnp.asarray([3, 9], jnp.uint8)) & masks.query_lengths([9, 4])},
    "positions": lambda: {"is_causal": True, "query_positions": jnp.arange(9, dtype=jnp.int16), "key_positions": jnp.arange(9, dtype=jnp.int8)},
}  # fmt: skip


@pytest.mark.parametrize("way", ["reference", Blockwise(4, 4)], ids=str)
def test_strict_promotion_of_dtypes_and_ranks_passes(way: Any) -> None:
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in drawn(9, 9))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for name, make in STRICT.items():
            options = make()

            def loss(q: Any, k: Any, v: Any, options: Any = options) -> Any:
                out, aux = attention(q, k, v, **options, implementation=way, return_aux=AuxRequest(lse=True))
                return out.astype(jnp.float32).sum() + aux.lse.sum()

            gradients = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
            assert all(x.dtype == jnp.bfloat16 and bool(jnp.isfinite(x).all()) for x in gradients), name
