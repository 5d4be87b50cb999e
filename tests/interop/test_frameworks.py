"""docs/frameworks.md: its programs are short and true, and the Equinox layer computes what Equinox's does."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from shared.running import drawn, mapped
from shared.textbook import (
    CONTEXT,
    D_OUT,
    KERAS_AT,
    PAST,
    PROGRAMS,
    SOME,
    E,
    H,
    Judge,
    X,
    programs,
    same,
)

from polyattn import layers, weights

Floats = np.ndarray[Any, Any]


def test_each_program_of_the_page_takes_about_ten_lines() -> None:
    assert len(PROGRAMS) == 6
    for program in PROGRAMS:
        lines = [line for line in program.splitlines() if line.strip()]
        assert len([x for x in lines if not x.startswith(("import ", "from ", "#"))]) <= 12
        assert max(map(len, lines)) <= 110


def test_the_programs_on_flax_and_equinox_print_what_the_page_says(
    capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    exec(programs(0, KERAS_AT), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(calls) == 5
    assert printed[1:4] == ["(2, 16, 32)", "() (32, 4, 8)", printed[3]]
    assert printed[4:] == ["(16, 32)"]
    # Differences of two ways to the same result, of order 1, by sums of 32 products.
    assert all(float(printed[i]) <= 32 * 2.0**-23 for i in (0, 3))


# Equinox


def equinox_class() -> Any:
    namespace: dict[str, Any] = {"jax": jax}
    exec(next(program for program in PROGRAMS if "(eqx.nn.MultiheadAttention):" in program), namespace)
    return namespace["Attention"]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", ["plain", "mask", "causal"])
def test_the_equinox_layer_computes_what_equinox_does_and_its_gradients(
    name: str, biases: bool, calls: list[str]
) -> None:
    context = None if name == "causal" else CONTEXT
    seen = {"plain": True, "mask": SOME, "causal": PAST}[name]
    layer = layers.MultiHeadAttention(E, H, qkv_bias=biases, out_bias=biases)
    params = drawn(layer)
    judge = Judge(params, X, context, D_OUT, seen=seen)
    options = {f"use_{part}_bias": biases for part in ("query", "key", "value", "output")}

    @eqx.filter_jit
    @partial(eqx.filter_value_and_grad, has_aux=True)
    def results(given: Any, call: Any) -> Any:
        module, x, context = given
        context = x if context is None else context
        out = jax.vmap(lambda x, context: module(x, context, context, **call))(x, context)
        return (out * D_OUT).sum(), out

    for kind in (eqx.nn.MultiheadAttention, ours := equinox_class()):
        causal = name == "causal" and kind is ours
        call = {"is_causal": True} if causal else {"mask": None if seen is True else seen}
        module = kind(H, E, **options, key=jax.random.key(0))
        module = weights.write(module, weights.to_format(layer, mapped(np.float32, params), "equinox"))
        assert len(calls) == 0
        (_, out), (gradients, *into) = results((module, jnp.asarray(X), context), call)
        found = weights.from_format(layer, weights.read(gradients), "equinox")
        found |= {n: y for n, y in zip(("x", "context"), into, strict=True) if y is not None}
        judge.judge(str(kind), {"out": out, **found})


def test_the_equinox_layer_drops_weights_by_its_key_and_not_at_inference(calls: list[str]) -> None:
    layer = equinox_class()(H, E, dropout_p=0.25, key=jax.random.key(0))
    x = jnp.asarray(X[0])
    one, two = jax.random.split(jax.random.key(1))
    assert same(layer(x, x, x, key=one), layer(x, x, x, key=one))
    assert not same(layer(x, x, x, key=one), layer(x, x, x, key=two))
    rest = layer(x, x, x, inference=True)
    assert same(rest, layer(x, x, x, key=one, inference=True))
    assert same(rest, eqx.nn.inference_mode(layer)(x, x, x))
    with pytest.raises(ValueError, match=r"expected dropout_seed with dropout_rate = 0\.25, got None"):
        layer(x, x, x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'process_heads'"):
        layer(x, x, x, process_heads=lambda *heads: heads)
