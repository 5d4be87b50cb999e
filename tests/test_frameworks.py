"""polyattn inside the attention layers of Flax, Equinox and Keras computes what they compute.

Outputs and gradients of both, theirs and theirs with polyattn, are judged by the textbook in float64, within 4 times
what rounding to float32 does to it (`rounding.noise`). Equinox and Keras use the programs of docs/frameworks.md.
"""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import polyattn_jax.flax as adapter
import pytest
from flax import nnx
from polyattn_jax import nnx_attention
from running import drawn, mapped, normal

import polyattn
from polyattn import attention, layers, masks, mods, weights
from polyattn.backend import Array
from polyattn.parity.rounding import noise

Floats = np.ndarray[Any, Any]
PAGE = (Path(__file__).parents[1] / "docs" / "frameworks.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
KERAS_AT = next(i for i, program in enumerate(PROGRAMS) if "import keras" in program)

B, L, S, E, H = 2, 5, 7, 24, 4  # batch, queries, keys, width, heads
X, CONTEXT, D_OUT = normal(B, L, E), normal(B, S, E, seed=1), normal(B, L, E, seed=2)
BIAS = normal(B, H, L, S, seed=3, size=2.0)
SOME = (np.arange(H)[:, None, None] + np.arange(L)[:, None] - np.arange(S)) % 3 != 1  # True = may attend
FIRST_ROWS, ITSELF = np.tri(L, S, dtype=bool), np.eye(L, S, dtype=bool)
PAST = np.tri(L, dtype=bool)


def textbook(
    number: Callable[[Floats], Floats],
    params: Mapping[str, Floats],
    x: Floats,
    context: Floats | None,
    d_out: Floats,
    seen: Any = True,
    bias: Any = 0.0,
) -> dict[str, Floats]:
    """Multi-head attention of x (B, L, E) over context (B, S, E), and the gradients of sum(out d_out).

    "w_q after" and so on are the params after a step of gradient descent, w - gradient. seen, bias: for scores
    (B, H, L, S). Of NumPy products and sums alone, so that `Rounded` takes it.
    """
    w = {name: number(value) for name, value in params.items()}
    inputs = {"q": number(x), "k": number(x if context is None else context)}
    inputs["v"] = inputs["k"]
    heads = {n: _split(inputs[n], w[f"w_{n}"], w.get(f"b_{n}")) for n in "qkv"}
    group = heads["q"].shape[1] // heads["k"].shape[1]
    q, k, v = heads["q"], *(np.repeat(heads[n], group, axis=1) for n in "kv")
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(2, 3) * scale + bias
    p = softmax(scores, seen)
    o = _joined(p @ v)
    w_o, d_out = w["w_o"].reshape(-1, w["w_o"].shape[-1]), number(d_out)
    found = {"out": o @ w_o + w.get("b_o", 0.0), "weights": p, "w_o": _flat(o).T @ _flat(d_out)}
    d_o = (d_out @ w_o.T).reshape(*d_out.shape[:2], q.shape[1], -1).swapaxes(1, 2)
    d_p = d_o @ v.swapaxes(2, 3)
    d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True)) * scale
    d = {"q": d_s @ k, "k": d_s.swapaxes(2, 3) @ q, "v": p.swapaxes(2, 3) @ d_o}
    into: dict[str, Floats] = {}
    for n in "qkv":
        grouped = d[n] if n == "q" else d[n].reshape(len(x), -1, group, *d[n].shape[2:]).sum(2)
        wide = _joined(grouped)
        found[f"w_{n}"] = _flat(inputs[n]).T @ _flat(wide)
        found[f"b_{n}"] = _flat(wide).sum(0)
        into[n] = wide @ w[f"w_{n}"].reshape(x.shape[-1], -1).T
    found["b_o"] = _flat(d_out).sum(0)
    if context is None:
        found["x"] = into["q"] + into["k"] + into["v"]
    else:
        found |= {"x": into["q"], "context": into["k"] + into["v"]}
    found = {n: y.reshape(w[n].shape) if n in w else y for n, y in found.items()}
    return found | {f"{n} after": w[n] - found[n] for n in w}


def softmax(scores: Floats, seen: Any = True) -> Floats:
    p = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    return p / p.sum(-1, keepdims=True)


def _split(x: Floats, w: Floats, b: Floats | None) -> Floats:
    """x w + b as heads (B, H, L, D)."""
    y = (x @ w.reshape(len(w), -1)).reshape(*x.shape[:2], *w.shape[1:])
    return (y if b is None else y + b).swapaxes(1, 2)


def _joined(x: Floats) -> Floats:
    """Heads (B, H, L, D) as (B, L, HD)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _flat(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


class Judge:
    """The textbook's results, and how far float32 may be from each."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.compute = lambda number: textbook(number, *arguments, **options)
        self.true = self.compute(lambda x: np.asarray(x, np.float64))

    def judge(self, who: str, found: Mapping[str, Any], unit: float = 1.0) -> None:
        """unit: of the roundings, those of float32 being 1."""
        for name, value in found.items():
            value, true = np.asarray(value), self.true[name]
            assert value.size == true.size, (who, name)
            error = np.abs(value.reshape(true.shape) - true).max()
            bound = 4 * unit * noise(lambda number, name=name: self.compute(number)[name])
            assert error <= bound, (who, name, error, bound)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list that grows with every call of polyattn's attention."""
    called: list[str] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        called.append(options.get("layout", "BHLD"))
        return attention(*arguments, **options)

    for module in (adapter, polyattn):
        monkeypatch.setattr(module, "attention", counting)
    yield called
    assert called, "polyattn was not called"


def programs(start: int = 0, end: int | None = None) -> Any:
    """Some of the page's, compiled."""
    return compile("\n".join(PROGRAMS[start:end]), "frameworks.md", "exec")


# The page


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


# Flax


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


Q, K, V = (jnp.asarray(normal(B, n, H, 6, seed=i)) for i, n in enumerate((L, S, S)))  # layout BLHD
DROPOUT = {"dropout_rate": 0.25, "broadcast_dropout": False, "dropout_rng": jax.random.key(1)}


def weights_of(q: Array, k: Array, keep: float) -> tuple[Floats, float]:
    """softmax(q k / sqrt(D)) / keep, as (B, L, H, S), and how far float32 may be from it."""

    def f(number: Callable[[Floats], Floats]) -> Floats:
        a, b = (number(np.asarray(x)).swapaxes(1, 2) for x in (q, k))
        return softmax(a @ b.swapaxes(2, 3) * a.shape[-1] ** -0.5).swapaxes(1, 2) / keep

    return f(lambda x: x.astype(np.float64)), 4 * noise(f)


def same(a: Array, b: Array) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


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
    "precision", ["highest", "float32", jax.lax.Precision.HIGHEST, (jax.lax.Precision.HIGHEST,) * 2]
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
    # what polyattn.attention says
    "a rate that is no number": (
        DROPOUT | {"dropout_rate": np.float32(0.5)},
        TypeError,
        "polyattn.attention: expected dropout_rate to be a Python number, got np.float32(0.5); it is static",
    ),
    "a negative rate": (
        {"dropout_rate": -0.5},
        ValueError,
        "polyattn.attention: expected 0 <= dropout_rate < 1, got -0.5; it is the share of weights dropped",
    ),
    "a bias of integers": (
        {"bias": np.zeros((L, S), np.int32)},
        TypeError,
        "polyattn.attention: expected a real floating bias, got int32; a bool mask goes to mask= (True = may "
        "attend), integers are cast by the caller",
    ),
    "a mask that is a list": (
        {"mask": [[True]]},
        TypeError,
        "polyattn.attention: expected mask to be a bool array, a polyattn.masks mask or a function (b, h, q_idx, "
        "kv_idx) -> bool, got list; make it an array of query's library",
    ),
    "lengths": (
        {"value": Q},
        ValueError,
        "polyattn.attention: expected key and value of one length S, got query (2, 5, 4, 6), key (2, 7, 4, 6), "
        "value (2, 5, 4, 6) in layout BLHD; every key needs its value",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_honoured_is_refused_in_a_sentence(name: str) -> None:
    arguments, error, sentence = REFUSED[name]
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        nnx_attention(**({"query": Q, "key": K, "value": V} | arguments))


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'logits_soft_cap'"):
        nnx_attention(Q, K, V, logits_soft_cap=20.0)


def test_without_flax_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_from_file_location("adapter_without_flax", str(adapter.__file__))
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "flax", None)
    sentence = (
        "polyattn_jax.nnx_attention: expected the package flax, but it cannot be imported; install it, "
        "pip install flax"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(sentence)}$"):
        spec.loader.exec_module(module_from_spec(spec))


def test_the_example_of_the_docstring_holds() -> None:
    assert doctest.testmod(adapter) == (0, 2)


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


# Keras takes its backend from the environment, once per process: a process for each.

KERAS: dict[str, tuple[str, Floats | None, Any]] = {
    # name: (arguments of the call, context, seen)
    "plain": ("", CONTEXT, True),
    "mask": ("attention_mask=given['some']", CONTEXT, SOME[:1]),
    "mask for each head": ("attention_mask=given['heads']", CONTEXT, SOME),
    "causal": ("use_causal_mask=True", None, PAST),
    "causal and a mask": (
        "use_causal_mask=True, attention_mask=given['some'] | given['itself']",
        CONTEXT,
        (SOME[:1] | ITSELF) & FIRST_ROWS,
    ),
}
FITTED = ("mask for each head", "causal")
# To compile theirs for PyTorch takes a minute.
FITS = {"theirs": ["eagerly"], "ours": ["eagerly", "compiled"]}

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import polyattn
from polyattn import weights

counted, attention = [], polyattn.attention


def counting(*arguments, **options):
    counted.append(options["layout"])
    return attention(*arguments, **options)


polyattn.attention = counting
folder = Path(sys.argv[1])
namespace = {}
exec((folder / "class.py").read_text(), namespace)
import keras
backend = keras.backend.backend()
if backend == "torch":  # the compiler in full, without the C++ that takes a minute
    import torch
    from functools import partial
    torch.compile = partial(torch.compile, backend="aot_eager")
given = {name: np.asarray(x) for name, x in weights.load(folder / "given.npz", like=np.zeros(())).items()
         if not isinstance(x, dict)}
params = weights.load(folder / "params.npz", like=keras.ops.zeros((), "float32"))
x, d_out = given["x"], given["d_out"]
calls, fitted, fits = eval((folder / "calls").read_text())
found = {}


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def build(kind, name, arguments, context):
    layer = kind(4, 6)
    inputs = [keras.Input((None, 24)) for _ in range(1 + context)]
    call = eval(f"dict({arguments})", {"given": {n: keras.ops.convert_to_tensor(y) for n, y in given.items()}})
    model = keras.Model(inputs, layer(inputs[0], inputs[-1], **call))
    weights.write(layer, params)
    return layer, model, call


for name, (arguments, context) in calls.items():
    for who, kind in ("theirs", keras.layers.MultiHeadAttention), ("ours", namespace["Attention"]):
        before = len(counted)
        layer, model, call = build(kind, name, arguments, context)
        data = [x, given["context"]] if context else [x]
        out, scores = layer(data[0], data[-1], return_attention_scores=True, **call)
        results = {"eager": {"out": numpy(out), "weights": numpy(scores)}}
        results["functional"] = {"out": model.predict(data, verbose=0)}
        for mode in fits[who] if name in fitted and backend != "numpy" else ():
            layer, model, call = build(kind, name, arguments, context)
            how = {"run_eagerly": True} if mode == "eagerly" else {"jit_compile": True}
            model.compile(keras.optimizers.SGD(1.0), lambda y, out: keras.ops.sum(y * out), **how)
            model.fit(data, d_out, verbose=0)
            results[mode] = {name: numpy(w) for name, w in weights.read(layer).items()}
        found[f"{name}, {who}"] = results
        assert (len(counted) > before) == (who == "ours"), (name, who, counted)

kind = namespace["Attention"]
one, two, rest = (kind(4, 6, dropout=0.25, seed=3) for _ in range(3))
q, k, v = (keras.ops.convert_to_tensor(given[n]) for n in ("heads_q", "heads_k", "identity"))
for layer in (one, two, rest):
    layer.build(x.shape, x.shape)
drawn = [numpy(layer._compute_attention(q, k, v, None, training)[0])
         for layer, training in ((one, True), (one, True), (two, True), (rest, False), (rest, None))]
found["dropout"] = {str(i): y for i, y in enumerate(drawn)}
layer = kind(4, 6)
layer.build(x.shape, x.shape)
weights.write(layer, params)
found["nothing"] = {"out": numpy(layer(x, x, attention_mask=np.zeros((1, 5, 5), bool)))}


class Wrapped(keras.Layer):  # without a word on shapes: Keras finds them by calling
    def __init__(self):
        super().__init__()
        self.attention = kind(4, 6, dropout=0.25)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, training=None):
        return self.attention(x, x, use_causal_mask=True, training=training)


inputs = keras.Input((None, 24))
found["shape"] = {"out": np.asarray([n or 0 for n in Wrapped()(inputs).shape])}
said = []
for refused in (lambda: kind(4, 6)(np.zeros((2, 3, 5, 24)), np.zeros((2, 3, 5, 24))), lambda: attention(inputs, inputs, inputs)):
    try:
        refused()
    except (TypeError, ValueError) as error:
        said.append(f"{type(error).__name__}: {error}")
(folder / f"{backend}.said").write_text(repr(said))
weights.save(found, folder / f"{backend}.npz")
if backend != "numpy":
    before = len(counted)
    exec((folder / "use.py").read_text(), namespace)
    assert len(counted) > before
"""
BACKENDS = ("jax", "torch", "numpy")


class Said(NamedTuple):
    found: Mapping[str, Any]
    refusals: list[str]
    printed: str


@pytest.fixture(scope="module")
def keras_results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Said]:
    folder = tmp_path_factory.mktemp("keras")
    layer = layers.MultiHeadAttention(E, H)
    given = {"x": X, "context": CONTEXT, "d_out": D_OUT, "heads_q": Q, "heads_k": K}
    given["identity"] = np.broadcast_to(np.eye(S)[None, :, None], (B, S, H, S))
    given = {name: np.asarray(x, np.float32) for name, x in given.items()}
    given |= {"some": SOME[:1], "heads": SOME[None], "itself": ITSELF[None]}
    weights.save(given, folder / "given.npz")
    params = weights.to_format(layer, mapped(np.float32, drawn(layer)), "keras")
    weights.save(params, folder / "params.npz")
    calls = {n: (call, c is not None) for n, (call, c, _) in KERAS.items()}
    (folder / "calls").write_text(repr((calls, FITTED, FITS)))
    (folder / "class.py").write_text(PROGRAMS[KERAS_AT])
    (folder / "use.py").write_text(PROGRAMS[KERAS_AT + 1])

    def start(backend: str) -> subprocess.Popen[str]:
        own = {"KERAS_BACKEND": backend, "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**os.environ, **own}, **pipes)  # type: ignore[call-overload, no-any-return]

    printed: dict[str, str] = {}
    with ExitStack() as stack:
        running = {backend: stack.enter_context(start(backend)) for backend in BACKENDS}
        stack.callback(lambda: [process.kill() for process in running.values()])  # where one has failed
        for backend, process in running.items():
            printed[backend], errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    return {
        backend: Said(
            weights.load(folder / f"{backend}.npz", like=X),
            eval((folder / f"{backend}.said").read_text()),
            printed[backend],
        )
        for backend in BACKENDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(KERAS))
def test_the_keras_layer_computes_and_learns_what_keras_does(
    name: str, backend: str, keras_results: Mapping[str, Said]
) -> None:
    _, context, seen = KERAS[name]
    layer = layers.MultiHeadAttention(E, H)
    judge = Judge(drawn(layer), X, context, D_OUT, seen=seen)
    trained = name in FITTED and backend != "numpy"  # which does not train
    for who, modes in FITS.items():
        results = keras_results[backend].found[f"{name}, {who}"]
        judge.judge(f"{who}, eager", results["eager"])
        judge.judge(f"{who}, functional", results["functional"])
        for mode in modes if trained else ():
            after = weights.from_format(layer, results[mode], "keras")
            judge.judge(f"{who}, {mode}", {f"{n} after": w for n, w in after.items()})


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keras_layer_drops_weights_in_training_alone(
    backend: str, keras_results: Mapping[str, Said]
) -> None:
    one, later, again, rest, unsaid = keras_results[backend].found["dropout"].values()
    assert same(one, again)  # layers of one seed
    assert not same(one, later)
    assert same(rest, unsaid)
    assert (rest != 0.0).all()
    kept = (one != 0.0) & (later != 0.0)
    assert abs(kept.sum() - 0.5625 * kept.size) <= 5 * (0.5625 * 0.4375 * kept.size) ** 0.5
    for found, where, keep in ((one, kept, 0.75), (rest, rest != 0.0, 1.0)):
        true, bound = weights_of(Q, K, keep)
        assert np.abs(found - true)[where].max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keras_layer_says_what_it_does_not_do(backend: str, keras_results: Mapping[str, Said]) -> None:
    said = keras_results[backend]
    assert list(said.found["shape"]["out"]) == [0, 0, E]  # of a layer around it, with sizes unknown
    bias = drawn(layers.MultiHeadAttention(E, H))["b_o"]
    assert (said.found["nothing"]["out"] == bias).all()  # no key seen: 0, then the output projection
    rank, symbol = said.refusals
    assert rank.startswith("ValueError: ")
    assert "Attention: expected heads of 4 axes, got " in rank
    assert symbol == (
        "TypeError: polyattn: expected an array of an array API library (NumPy, JAX, PyTorch, ...), got "
        "keras.src.backend.common.keras_tensor.KerasTensor; convert it first, for example with numpy.asarray"
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_programs_on_keras_print_what_the_page_says(
    backend: str, keras_results: Mapping[str, Said]
) -> None:
    assert re.fullmatch(
        r"True (torch\.Size\(\[8, 16, 32\]\)|\(8, 16, 32\))\n", keras_results[backend].printed
    )


def test_attention_takes_sizes_that_are_symbols() -> None:
    """As Keras has them on JAX when it looks for the shape of a result."""

    def f(q: Array, k: Array, v: Array) -> Array:
        return attention(q, k, v, mask=jnp.asarray(SOME), layout="BLHD")

    scope = jax.export.SymbolicScope()
    sizes = (jax.export.symbolic_shape(f"b, {n}, {H}, 6", scope=scope) for n in (L, S, S))
    symbols = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    exported = jax.export.export(jax.jit(f))(*symbols)
    assert str(exported.out_avals[0].shape) == f"(b, {L}, {H}, 6)"

    def definition(number: Callable[[Floats], Floats]) -> Floats:
        q, k, v = (number(np.asarray(x)).swapaxes(1, 2) for x in (Q, K, V))
        return (softmax(q @ k.swapaxes(2, 3) * 6**-0.5, SOME) @ v).swapaxes(1, 2)

    true = definition(lambda x: x.astype(np.float64))
    assert np.abs(np.asarray(exported.call(Q, K, V)) - true).max() <= 4 * noise(definition)


def test_tensors_of_no_array_api_library_are_refused_by_the_name_of_their_class() -> None:
    kind = type("EagerTensor", (), {"__module__": "tensorflow.python.framework.ops", "dtype": "float32"})
    sentence = (
        "polyattn: expected an array of an array API library (NumPy, JAX, PyTorch, ...), got "
        "tensorflow.python.framework.ops.EagerTensor; convert it first, for example with numpy.asarray"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        attention(kind(), kind(), kind(), layout="BLHD")
