"""Flax's nnx.MultiHeadAttention with polyattn computes what it does by itself; gradients, dropout, decoding, refusals."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import polyattn_jax.flax as adapter
import pytest
from flax import nnx
from polyattn_jax import nnx_attention
from shared.running import drawn, mapped, normal
from shared.textbook import (
    BIAS,
    CONTEXT,
    D_OUT,
    FIRST_ROWS,
    ITSELF,
    PAST,
    SOME,
    B,
    E,
    H,
    Judge,
    K,
    L,
    Q,
    S,
    V,
    X,
    same,
    weights_of,
)

from polyattn import attention, layers, masks, mods, weights
from polyattn.arrays import Array

Floats = np.ndarray[Any, Any]


class Case(NamedTuple):
    context: Floats | None = CONTEXT
    call: Mapping[str, Any] = {}  # of the layer
    seen: Any = True  # for the textbook
    bias: Floats | None = None
    kv_heads: int = H
    lead: tuple[int, ...] = (B,)


def causal_numbers() -> Array:
    """Float32, 1 = may attend."""
    mask = nnx.make_causal_mask(jnp.ones((B, L)))
    assert mask.dtype == jnp.float32
    return mask


FLAX: dict[str, Case] = {
    "plain": Case(),
    "self-attention": Case(None),
    "a mask of bools for each head": Case(call={"mask": SOME}, seen=SOME),
    "a mask of Flax's numbers": Case(None, {"mask": causal_numbers()}, PAST),
    "a mask of polyattn": Case(None, {"mask": masks.causal()}, PAST),
    "causal": Case(None, {"is_causal": True}, PAST),
    "causal with more keys": Case(call={"is_causal": True}, seen=FIRST_ROWS),
    "causal and a mask of integers": Case(
        call={"is_causal": True, "mask": 2 * (SOME | ITSELF)}, seen=(SOME | ITSELF) & FIRST_ROWS
    ),
    "a bias": Case(bias=BIAS),
    "grouped heads": Case(kv_heads=2, call={"mask": SOME}, seen=SOME),
    "no batch axis": Case(lead=()),
    "two batch axes": Case(lead=(2, 1), call={"mask": SOME[None, None]}, seen=SOME),
}


def flax_layer(attention_fn: Any, kv_heads: int = H, **options: Any) -> Any:
    options = {"num_kv_heads": kv_heads, "decode": False, "rngs": nnx.Rngs(0), **options}
    return nnx.MultiHeadAttention(H, E, attention_fn=attention_fn, **options)


def flax_results(attention_fn: Any, case: Case, layer: Any, params: Any, dtype: Any) -> dict[str, Array]:
    """The output, and the gradients by our names; jit-compiled."""
    if case.bias is not None:
        attention_fn = partial(attention_fn, bias=jnp.asarray(case.bias, dtype))
    module = flax_layer(attention_fn, case.kv_heads, param_dtype=dtype)
    weights.write(module, weights.to_format(layer, mapped(lambda w: w.astype(dtype), params), "flax"))
    items = slice(None) if case.lead else 0

    def given(x: Floats) -> Array:
        return jnp.asarray(x[items].reshape(*case.lead, *x.shape[1:]), dtype)

    inputs = [given(X)] if case.context is None else [given(X), given(case.context)]
    call = {n: y if case.lead or n != "mask" else y[items] for n, y in case.call.items()}

    @nnx.jit
    def results(module: Any, *inputs: Any) -> Any:
        def loss(module: Any, *inputs: Any) -> Any:
            out = module(*inputs, **call)
            return (out * given(D_OUT)).sum(), out

        numbers = tuple(range(len(inputs) + 1))
        return nnx.grad(loss, argnums=numbers, has_aux=True)(module, *inputs)

    (gradients, *into), out = results(module, *inputs)
    found = weights.from_format(layer, weights.tree.flatten(nnx.to_pure_dict(gradients)), "flax")
    return {"out": out, **dict(zip(("x", "context"), into, strict=False)), **found}


@pytest.mark.parametrize("name", list(FLAX))
def test_flax_with_polyattn_computes_what_flax_does_and_its_gradients(name: str, calls: list[str]) -> None:
    case = FLAX[name]
    layer = layers.GroupedQueryAttention(E, H, num_kv_heads=case.kv_heads)
    params = drawn(layer)
    items = slice(None) if case.lead else slice(1)
    context = None if case.context is None else case.context[items]
    bias = 0.0 if case.bias is None else case.bias
    judge = Judge(params, X[items], context, D_OUT[items], seen=case.seen, bias=bias)
    sides = {"polyattn": nnx_attention}
    if not isinstance(case.call.get("mask"), masks.Mask):
        sides["flax"] = nnx.dot_product_attention
    for who, fn in sides.items():
        judge.judge(who, flax_results(fn, case, layer, params, np.float32))
    with jax.enable_x64(True):  # roundings to float64 are 2^-29 of those to float32; Flax has float32 inside
        wide = flax_results(nnx_attention, case, layer, params, np.float64)
    judge.judge("polyattn in float64", wide, 2.0**-29)
    assert set(calls) == {"BLHD"}


DROPOUT = {"dropout_rate": 0.25, "broadcast_dropout": False, "dropout_rng": jax.random.key(1)}


def test_every_argument_of_flax_is_one_of_ours() -> None:
    theirs = inspect.signature(nnx.dot_product_attention).parameters
    ours = inspect.signature(nnx_attention).parameters
    assert len(theirs) > 10
    assert [*ours][: len(theirs)] == [*theirs]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name


def test_the_arguments_beyond_flax_are_those_of_attention() -> None:
    options: dict[str, Any] = {
        "score_mod": mods.softcap(2.0),
        "sinks": 0.5,
        "scale": 0.3,
        "query_offset": "end",
        "implementation": "blockwise",
    }
    ours = nnx_attention(Q, K, V, is_causal=True, **options)
    assert same(ours, attention(Q, K, V, is_causal=True, layout="BLHD", **options))
    assert not any(
        same(ours, nnx_attention(Q, K, V, is_causal=True, **(options | {n: None})))
        for n in ("scale", "sinks")
    )


def test_the_same_key_drops_the_same_weights_compiled_or_not() -> None:
    run = partial(nnx_attention, Q, K, V, **DROPOUT)
    once = run()
    assert same(once, run())
    assert not same(once, run(dropout_rng=jax.random.key(2)))
    assert same(run(deterministic=True), nnx_attention(Q, K, V))

    def kept(key: Array) -> Array:
        """Which weights are: with values 1, 0, 0, ... and 0, 1, 0, ... the result is the weights."""
        values = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, H, S))
        return nnx_attention(Q, K, values, **(DROPOUT | {"dropout_rng": key})) != 0.0

    for seed in range(2):
        assert same(kept(jax.random.key(seed)), jax.jit(kept)(jax.random.key(seed)))


def test_dropped_weights_are_zero_and_kept_ones_grow() -> None:
    n = 64  # with values 1, 0, 0, ... and 0, 1, 0, ... the result is the weights
    q, k = (jnp.asarray(normal(2, n, 2, 4, seed=i)) for i in range(2))
    v = jnp.broadcast_to(jnp.eye(n)[None, :, None], (2, n, 2, n))
    dropped = np.asarray(nnx_attention(q, k, v, **DROPOUT))
    kept = dropped != 0.0
    true, bound = weights_of(q, k, 0.75)
    assert np.abs(dropped - true)[kept].max() <= bound
    spread = (0.25 * 0.75 * kept.size) ** 0.5
    assert abs(kept.sum() - 0.75 * kept.size) <= 5 * spread
    halves = (kept[0] == kept[1], kept[:, :, 0] == kept[:, :, 1])  # neither items nor heads share their draws
    assert all(abs(h.sum() - 0.625 * h.size) <= 5 * (0.625 * 0.375 * h.size) ** 0.5 for h in halves)


def test_a_layer_in_training_draws_anew_and_at_rest_never(calls: list[str]) -> None:
    layer = flax_layer(nnx_attention, dropout_rate=0.25, broadcast_dropout=False)
    train, rest = (nnx.jit(lambda layer, x, d=d: layer(x, deterministic=d)) for d in (False, True))
    assert not same(train(layer, X), train(layer, X))
    assert same(rest(layer, X), rest(layer, X))
    layer.rngs = nnx.Rngs(dropout=5).dropout
    first = train(layer, X)
    layer.rngs = nnx.Rngs(dropout=5).dropout
    assert same(first, train(layer, X))


def test_weights_are_sown_as_flax_sows_them() -> None:
    layer, params = layers.MultiHeadAttention(E, H), drawn(layers.MultiHeadAttention(E, H))
    judge = Judge(params, X, CONTEXT, D_OUT, seen=SOME)
    sown = {}

    @nnx.capture(nnx.Intermediate)
    def run(module: Any, deterministic: bool) -> Any:
        return module(X, CONTEXT, mask=SOME, sow_weights=True, deterministic=deterministic)

    for who, fn in (("flax", nnx.dot_product_attention), ("polyattn", nnx_attention)):
        module = flax_layer(fn, dropout_rate=0.25, broadcast_dropout=False)
        weights.write(module, weights.to_format(layer, mapped(np.float32, params), "flax"))
        for deterministic in (True, False):  # they are those before dropout
            _, sown[who] = run(module, deterministic)
            (found,) = nnx.to_pure_dict(sown[who])["attention_weights"]
            judge.judge(who, {"weights": found})
    assert jax.tree.map(jnp.shape, sown["flax"]) == jax.tree.map(jnp.shape, sown["polyattn"])

    @nnx.capture(nnx.Intermediate)
    def halves(module: Any) -> Any:
        return nnx_attention(*(x.astype(jnp.bfloat16) for x in (Q, K, V)), module=module)

    assert jax.tree.leaves(halves(module)[1])[0].dtype == jnp.bfloat16


def test_decoding_token_by_token_gives_the_rows_of_the_whole(calls: list[str]) -> None:
    layer, params = layers.MultiHeadAttention(E, H), drawn(layers.MultiHeadAttention(E, H))
    judge = Judge(params, X, None, D_OUT, seen=PAST)
    module = flax_layer(nnx_attention)
    weights.write(module, weights.to_format(layer, mapped(np.float32, params), "flax"))
    judge.judge("whole", {"out": module(X, is_causal=True)})
    module.init_cache(X.shape)
    step = nnx.jit(lambda module, token: module(token, decode=True))
    judge.judge(
        "decoded", {"out": jnp.concatenate([step(module, X[:, i : i + 1]) for i in range(L)], axis=1)}
    )


def test_a_query_that_sees_nothing_gives_zero_and_gradient_zero() -> None:
    mask = jnp.ones((L, S), bool).at[2].set(False)

    def result(fn: Any) -> Array:
        return fn(Q, K, V, mask=mask)

    assert not np.asarray(result(nnx_attention))[:, 2].any()
    # in Flax the mean: a sum of S numbers, rounded
    mean = np.asarray(V, np.float64).mean(1)
    assert (
        np.abs(np.asarray(result(nnx.dot_product_attention))[:, 2] - mean).max()
        <= S * 2.0**-24 * np.abs(V).max()
    )
    d_value = jax.grad(lambda v: nnx_attention(Q, K, v, mask=mask.at[:].set(False)).sum())(V)
    assert not np.asarray(d_value).any()


def test_dtypes_are_promoted_as_in_flax() -> None:
    half = Q.astype(jnp.bfloat16)
    for dtype in (None, jnp.float16, jnp.bfloat16):
        assert (
            nnx_attention(half, K, V, dtype=dtype).dtype
            == nnx.dot_product_attention(half, K, V, dtype=dtype).dtype
        )
    asked: list[Any] = []

    def promote(arrays: Any, *, dtype: Any) -> Any:
        asked.append(dtype)
        return tuple(2 * x for x in arrays)

    doubled = nnx_attention(Q, K, V, promote_dtype=promote, dtype=jnp.float32)
    assert same(doubled, nnx_attention(2 * Q, 2 * K, 2 * V))
    assert asked == [jnp.float32]


@pytest.mark.parametrize(
    "precision",
    [
        "highest",
        "float32",
        "default",
        jax.lax.Precision.DEFAULT,
        jax.lax.Precision.HIGHEST,
        (jax.lax.Precision.HIGHEST,) * 2,
    ],
)
def test_full_precision_may_be_asked_for(precision: Any) -> None:
    assert same(nnx_attention(Q, K, V, precision=precision), nnx_attention(Q, K, V))


KEY = "pass jax.random.key(...), another one for each step, or deterministic=True outside training"
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "precision": (
        {"precision": jax.lax.Precision.HIGH},
        ValueError,
        "polyattn_jax.nnx_attention: expected precision None or jax.lax.Precision.HIGHEST, got Precision.HIGH; "
        "polyattn multiplies in full precision; in nnx.MultiHeadAttention the argument is that of the projections, too",
    ),
    "precision of one side": (
        {"precision": (None, "tensorfloat32")},
        ValueError,
        "polyattn_jax.nnx_attention: expected precision None or jax.lax.Precision.HIGHEST, got (None, "
        "'tensorfloat32'); polyattn multiplies in full precision; in nnx.MultiHeadAttention the argument is that of the projections, too",
    ),
    "broadcast dropout": (
        DROPOUT | {"broadcast_dropout": True},
        ValueError,
        "polyattn_jax.nnx_attention: expected broadcast_dropout=False where dropout is active, got "
        "broadcast_dropout=True with dropout_rate=0.25; polyattn drops the weights of each batch item and head "
        "independently; say so to nnx.MultiHeadAttention",
    ),
    "no key": (
        DROPOUT | {"dropout_rng": None},
        TypeError,
        f"polyattn_jax.nnx_attention: expected dropout_rng to be one key of JAX, got NoneType; {KEY}",
    ),
    "many keys": (
        DROPOUT | {"dropout_rng": jax.random.split(jax.random.key(0))},
        TypeError,
        f"polyattn_jax.nnx_attention: expected dropout_rng to be one key of JAX, got key<fry> of shape (2,); {KEY}",
    ),
    "one query, causal": (
        {"query": Q[:, :1], "is_causal": True},
        ValueError,
        "polyattn_jax.nnx_attention: expected is_causal=False for one query, got is_causal=True with 7 keys, of which "
        "the first alone would be seen; with decode=True the mask is causal already; otherwise pass query_offset, "
        "the position of the query",
    ),
    # what attention says, in the name of the function that Flax called
    "a rate that is no number": (
        DROPOUT | {"dropout_rate": jnp.float32(0.5)},
        TypeError,
        "polyattn_jax.nnx_attention: expected dropout_rate to be a Python number, got Array(0.5, dtype=float32); write "
        "dropout_rate=float(dropout_rate)",
    ),
    "a negative rate": (
        {"dropout_rate": -0.5},
        ValueError,
        "polyattn_jax.nnx_attention: expected 0 <= dropout_rate < 1, got -0.5; it is the share of weights dropped",
    ),
    "a bias of integers": (
        {"bias": np.zeros((L, S), np.int32)},
        TypeError,
        "polyattn_jax.nnx_attention: expected a real floating bias, got int32; a bool mask goes to mask= (True = may "
        "attend), integers are cast by the caller",
    ),
    "a mask that is a list": (
        {"mask": [[True]]},
        TypeError,
        "polyattn_jax.nnx_attention: expected mask to be a bool array, a polyattn.masks mask or a function (b, h, q_idx, "
        "kv_idx) -> bool, got list; make it an array of query's library",
    ),
    "lengths": (
        {"value": Q},
        ValueError,
        "polyattn_jax.nnx_attention: expected key and value of one length S, got query (2, 5, 4, 6), key (2, 7, 4, 6), "
        "value (2, 5, 4, 6) in layout BLHD; every key needs its value",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_honoured_is_refused_in_a_sentence(name: str) -> None:
    arguments, error, sentence = REFUSED[name]
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        nnx_attention(**({"query": Q, "key": K, "value": V} | arguments))


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(
        TypeError,
        match=r"^polyattn_jax\.nnx_attention: .* got logits_soft_cap=, .*; write score_mod=mods\.softcap\(logits_soft_cap\)$",
    ):
        nnx_attention(Q, K, V, logits_soft_cap=20.0)


def import_anew() -> None:
    spec = spec_from_file_location("adapter_anew", str(adapter.__file__))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))


def test_without_flax_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    sentence = (
        "polyattn_jax.nnx_attention: expected the package flax, got: import of flax halted; None in sys.modules; "
        "install it, pip install flax"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(sentence)}$"):
        import_anew()


def test_with_a_flax_that_cannot_be_imported_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax.nnx.nn.dtypes", ModuleType("flax.nnx.nn.dtypes"))
    with pytest.raises(
        ImportError, match=r"got: cannot import name 'promote_dtype' .*; mend that installation$"
    ):
        import_anew()


def test_the_example_of_the_docstring_holds() -> None:
    assert doctest.testmod(adapter) == (0, 2)
