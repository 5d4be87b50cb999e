"""JAX's fused kernels at the edges, interpreted: ragged tiles, poison, functions, transformations, races."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract.test_random_problems import samples
from hypothesis import HealthCheck, settings
from hypothesis import given as given_data
from hypothesis import strategies as st
from shared.libraries import JaxBench, jax, jnp
from shared.running import normal

from polyattn import AuxRequest, Fused, attention, masks, mods
from polyattn.parity import ACCEPTANCE, eta
from polyattn.parity.case import Case, Draw, Later, Sample
from polyattn.testing import check_backend, judge
from polyattn.truth import Spec, truth
from polyattn.truth.definition import Judged
from polyattn.truth.threefry import kept

pytestmark = pytest.mark.rule("rule-20")

TPU, GPU = (Fused(16, 16, platform=platform, interpret=True) for platform in ("tpu", "gpu"))
BOTH = pytest.mark.parametrize("fused", [TPU, GPU], ids=["tpu", "gpu"])


def slow(*cases: Any) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


Q, K, V = normal(2, 4, 20, 8, seed=1), normal(2, 2, 20, 8, seed=2), normal(2, 2, 20, 8, seed=3)
LOWER = np.tri(20, dtype=bool)


def given(*arrays: Any) -> list[Any]:
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def check(fused: Fused, draw: Callable[[Draw], Sample], dtype: str = "float32") -> None:
    """Output, lse and gradients by eta."""

    def on_trial(*arrays: Any, **options: Any) -> Any:
        return attention(*arrays, **options, implementation=fused)

    check_backend(JaxBench(), dtypes=[dtype], only=[Case("edge", (), draw)], attention=on_trial)


def near(found: Any, spec: Spec) -> None:
    assert eta(np.asarray(found), truth(spec)["out"], "float32") <= ACCEPTANCE


# sizes


@pytest.mark.parametrize(
    ("rows", "keys", "fused"),
    [(1, 33, GPU), (33, 1, TPU), (16, 17, GPU), (1, 1, TPU), *slow((15, 16, TPU), (17, 2, GPU))],
)
def test_ragged_lengths_agree(rows: int, keys: int, fused: Fused) -> None:
    def draw(d: Draw) -> Sample:
        allowed = np.arange(keys) <= np.arange(rows)[:, None] + keys - rows
        spec = Spec(**d.qkv(rows=rows, keys=keys, width=5, out_width=3), allowed=allowed[None, None])
        return Sample(spec, {"is_causal": True, "query_offset": "end"})

    check(fused, draw)


@pytest.mark.slow
@pytest.mark.parametrize(("fused", "dtype"), [(TPU, "float32"), (GPU, "bfloat16")])
def test_many_features_at_once_agree(fused: Fused, dtype: str) -> None:
    """Lengths and offsets of each item as arrays, combined masks, a bias, sinks, a cap, six heads over one, width 80."""
    rows, keys, first, n = 17, 33, np.array([-2, 16], np.int32), np.array([3, 30], np.int32)

    def draw(d: Draw) -> Sample:
        more = {"bias": d.normal(1, 6, rows, keys), "sinks": d.normal(6)}
        q, kv = np.arange(rows)[:, None] + first[:, None, None, None], np.arange(keys)
        allowed = (kv <= q) & ((kv < n[:, None, None, None]) | ~((kv < 20) & (q - kv < 9)))
        spec = Spec(**d.qkv(2, 6, 1, rows, keys, 80, 7), allowed=allowed, softcap=2.0, **more)
        mask = Later(lambda a: masks.key_lengths(a(n)) | ~(masks.prefix(20) & masks.sliding_window(9)))
        options = {"is_causal": True, "query_offset": Later(lambda a: a(first)), "mask": mask}
        return Sample(spec, {**options, "score_mod": mods.softcap(2.0), **more})

    check(fused, draw, dtype)


@pytest.mark.parametrize(
    ("shape", "fused"),
    [
        ((2, 1, 1, 33), TPU),
        *slow(((2, 1, 17, 33), GPU), ((4, 17, 33), TPU)),
    ],
)
def test_a_bias_of_every_shape_gets_its_gradient(shape: tuple[int, ...], fused: Fused) -> None:
    def draw(d: Draw) -> Sample:
        bias = d.normal(*shape)
        spec = Spec(**d.qkv(rows=17, keys=33), bias=bias[(None,) * (4 - bias.ndim)])
        return Sample(spec, {"bias": bias})

    check(fused, draw)


@BOTH
def test_leading_axes_broadcast(fused: Fused) -> None:
    q, k, v = normal(2, 1, 4, 17, 8, seed=1), normal(1, 3, 2, 19, 8, seed=2), normal(2, 3, 2, 19, 8, seed=3)
    found = attention(*given(q, k, v), implementation=fused)
    wide = (np.broadcast_to(x, (2, 3, *x.shape[2:])).reshape(6, *x.shape[2:]) for x in (q, k, v))
    near(found.reshape(6, 4, 17, 8), Spec(*wide))
    for empty in ((0, 4, 17, 8), (2, 4, 0, 8)):
        keys = jnp.zeros((empty[0], 2, 19, 8))
        assert attention(jnp.zeros(empty), keys, keys, implementation=fused).shape == empty


@BOTH
@pytest.mark.rule("rule-11")
def test_the_bits_of_dropout_are_those_of_the_definition(fused: Fused) -> None:
    """Values are the identity, so that the output is the weights."""
    flat, identity = jnp.zeros((2, 4, 20, 1)), jnp.broadcast_to(jnp.eye(20), (2, 4, 20, 20))
    out = attention(flat, flat, identity, dropout_rate=0.375, dropout_seed=2**33 + 7, implementation=fused)
    assert np.array_equal(np.asarray(out) != 0, kept(2, 4, 20, 20, rate=0.375, seed=2**33 + 7) != 0)


# poison


@BOTH
@pytest.mark.rule("rule-6", "rule-7", "rule-23")
def test_what_is_hidden_reaches_nobody_by_a_bit(fused: Fused) -> None:
    """NaN and infinities in keys, values and rows that are hidden, and in the cotangents of those rows."""
    lengths = jnp.asarray([17, 9])
    mask = masks.key_lengths(lengths) & masks.mask_mod(lambda b, h, q, kv: ~((b == 1) & (q == 5)))
    rng = np.random.default_rng(0)

    @jax.jit
    def results(bad: Any) -> Any:
        q, k, v = given(Q, K, V)
        k, v = (x.at[:, :, 17:].set(bad).at[1, :, 9:].set(bad) for x in (k, v))
        q = q.at[1, :, 5].set(bad)

        def f(*arrays: Any) -> Any:
            out, aux = attention(
                *arrays[:3],
                bias=arrays[3],
                sinks=arrays[4],
                mask=mask,
                score_mod=mods.softcap(3.0),
                return_aux=AuxRequest(lse=True),
                implementation=fused,
            )
            return out, aux.lse

        out, pull = jax.vjp(f, q, k, v, *extra)
        return out, pull(tuple(x.at[1, :, 5].set(bad) for x in cotangents))

    extra = given(rng.normal(size=(4, 20, 20)), rng.normal(size=4))
    cotangents = given(rng.normal(size=Q.shape), rng.normal(size=Q.shape[:3]))
    clean = jax.tree.leaves(results(0.0))
    assert all(np.isfinite(x).all() for x in clean if x.ndim != 3)
    for bad in (np.nan, np.inf, -np.inf):
        for found, expected in zip(jax.tree.leaves(results(bad)), clean, strict=True):
            assert np.array_equal(found, expected), bad


# functions


def by_name(sentence: str) -> str:
    return (
        "polyattn.attention: expected a problem that a fused kernel computes exactly for implementation='fused', got "
        f"one where its functions {sentence}; use 'auto'"
    )


def own_derivative(f: Callable[[Any], Any], custom: str) -> Any:
    """f, which says its derivative itself."""
    made = getattr(jax, custom)(f)
    if custom == "custom_jvp":
        made.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    else:
        made.defvjp(lambda x: (f(x), None), lambda _, cotangent: (cotangent,))
    return made


TOGETHER = "do more with a row and a key together than kernels have: {}"
FUNCTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "sort": (lambda: lambda s, *_: jnp.sort(s, -1), TOGETHER.format("sort")),
    "cumsum": (lambda: lambda s, *_: jnp.cumsum(s, -1), TOGETHER.format("cumsum")),
    "a maximum": (lambda: lambda s, *_: s - s.max(-1, keepdims=True), TOGETHER.format("reduce_max")),
    "cond": (
        lambda: lambda s, b, *_: jax.lax.cond(b.sum() > 0, lambda x: x, lambda x: 2 * x, s),
        TOGETHER.format("cond"),
    ),
    "a loop": (
        lambda: lambda s, *_: jax.lax.fori_loop(0, 3, lambda _, x: x * 2, s),
        TOGETHER.format("scan"),
    ),
    "a table by distance": (
        lambda: lambda s, b, h, q, kv: s + jnp.arange(40.0)[q - kv + 20],
        TOGETHER.format("gather"),
    ),
    "sort with a derivative of its own": (
        lambda: lambda s, *_: own_derivative(lambda x: jnp.sort(x, -1), "custom_jvp")(s),
        TOGETHER.format("sort"),
    ),
    "cumsum with a derivative of its own": (
        lambda: lambda s, *_: own_derivative(lambda x: jnp.cumsum(x, -1), "custom_vjp")(s),
        TOGETHER.format("cumsum"),
    ),
    "random numbers": (
        lambda: lambda s, *_: s + jax.random.normal(jax.random.key(0), s.shape),
        "use an array as a whole, not by the numbers of rows or keys",
    ),
    "NumPy": (
        lambda: lambda s, *_: np.tanh(s),
        "make NumPy arrays of what they are given, which kernels cannot",
    ),
    "complex numbers": (
        lambda: lambda s, *_: jnp.abs(s * 1j),
        "compute in complex64, which kernels have not",
    ),
    "printing": (
        lambda: lambda s, *_: (jax.debug.print("seen"), s)[1],
        "print or call back, which kernels cannot",
    ),
}


@BOTH
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_no_kernel_is_refused_by_a_sentence(name: str, fused: Fused) -> None:
    make, sentence = FUNCTIONS[name]
    with pytest.raises(ValueError) as caught:
        attention(*given(Q, K, V), score_mod=make(), implementation=fused)
    assert str(caught.value) == by_name(sentence)


@BOTH
@pytest.mark.rule("rule-12")
def test_functions_read_arrays_of_every_kind_and_these_get_gradients(fused: Fused) -> None:
    """Of heads, of items and heads, of rows, of keys, numbers; integers of 8 and 16 bits; which all are traced."""
    rng = np.random.default_rng(0)
    of_head, of_both, of_row, of_key = (rng.normal(size=n) for n in (4, (2, 4), 20, 20))
    rows, keys = rng.integers(0, 3, (2, 20)), rng.integers(0, 3, (2, 20))
    row_ids, key_ids = jnp.asarray(rows, jnp.int8), jnp.asarray(keys, jnp.uint16)

    def loss(arrays: Any, implementation: Any) -> Any:
        head, both, row, key, number = arrays

        def mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
            return score + head[h] * both[b, h] + row[q] * key[kv] * number

        def same(b: Any, h: Any, q: Any, kv: Any) -> Any:
            return row_ids[b, q] == key_ids[b, kv]

        out = attention(*given(Q, K, V), score_mod=mod, mask=same, implementation=implementation)
        return jnp.sum(out * out), out

    arrays = given(of_head, of_both, of_row, of_key, 0.5)
    (_, out), found = jax.jit(jax.value_and_grad(lambda arrays: loss(arrays, fused), has_aux=True))(arrays)
    shift = (of_head * of_both)[..., None, None] + 0.5 * of_row[:, None] * of_key
    allowed = (rows[..., None] == keys[:, None, :])[:, None]
    spec = Spec(Q, K, V, allowed=allowed, shift=shift)
    near(out, spec)
    shifts = Spec(Q, K, V, allowed=allowed, bias=np.asarray(shift))  # whose gradient is that of every score
    true = truth(shifts, 2 * np.asarray(out, np.float64))["dbias"]
    chains = (of_both[..., None, None], of_head[:, None, None], 0.5 * of_key, 0.5 * of_row[:, None])
    chain = (*(np.broadcast_to(x, true.value.shape) for x in chains), of_row[:, None] * of_key)
    axes: tuple[Any, ...] = ((0, 2, 3), (2, 3), (0, 1, 3), (0, 1, 2), (0, 1, 2, 3))
    for x, factor, axis in zip(found, chain, axes, strict=True):
        judged = Judged(
            *(
                np.sum(f(factor) * part, axis)
                for f, part in zip((np.asarray, np.abs, np.abs), true[:3], strict=True)
            )
        )
        assert eta(np.asarray(x), judged, "float32") <= ACCEPTANCE


@BOTH
def test_masks_and_functions_are_read_anew_in_each_call(fused: Fused) -> None:
    slopes = np.zeros(4)

    def mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + jnp.asarray(slopes, jnp.float32)[h] * kv

    for seed in range(2):
        rng = np.random.default_rng(seed)
        slopes, allowed = rng.normal(size=4), rng.random((20, 20)) < 0.5
        out = attention(*given(Q, K, V), score_mod=mod, mask=jnp.asarray(allowed), implementation=fused)
        shift = np.float32(slopes).astype(float)[:, None, None] * np.arange(20.0)
        near(out, Spec(Q, K, V, allowed=allowed[None, None], shift=shift[None]))


# transformations

COTANGENT = normal(2, 4, 20, 8, seed=5)
FIRST, LENGTHS, SINKS = np.array([0, 3]), np.array([20, 7]), normal(4, seed=6)


def loss(fused: Any) -> Callable[..., Any]:
    def f(q: Any, k: Any, v: Any, sinks: Any, first: Any, lengths: Any) -> Any:
        options = {"query_offset": first, "mask": masks.key_lengths(lengths), "is_causal": True}
        out = attention(q, k, v, sinks=sinks, **options, implementation=fused)
        return jnp.sum(out * jnp.asarray(COTANGENT, out.dtype))

    return f


def gradients(q: Any, k: Any, v: Any, sinks: Any, first: Any, lengths: Any) -> list[Judged]:
    """The true ones of `loss`."""
    kv, rows = np.arange(20), np.arange(20)[:, None] + first[:, None, None, None]
    spec = Spec(q, k, v, allowed=(kv <= rows) & (kv < lengths[:, None, None, None]), sinks=sinks)
    found = truth(spec, COTANGENT)
    return [found[name] for name in ("dq", "dk", "dv", "dsinks")]


@pytest.mark.slow
@pytest.mark.rule("rule-15")
@pytest.mark.parametrize(
    ("over", "fused"),
    [((0,), GPU), ((1, 2), TPU), ((3, 4), GPU), ((5,), TPU)],
    ids=["q", "keys", "sinks", "lengths"],
)
def test_vmap_of_grad_and_grad_of_vmap_agree(over: tuple[int, ...], fused: Fused) -> None:
    args = (Q, K, V, SINKS, FIRST, LENGTHS)
    several = [np.stack([x, x - 1]) if i in over else x for i, x in enumerate(args)]
    made = [jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32) for x in several]
    axes, wrt = tuple(0 if i in over else None for i in range(6)), (0, 1, 2, 3)
    mapped = jax.jit(jax.vmap(jax.grad(loss(fused), wrt), axes))(*made)
    summed = jax.jit(jax.grad(lambda *xs: jax.vmap(loss(fused), axes)(*xs).sum(), wrt))(*made)
    true = [gradients(*(x[i] if n in over else x for n, x in enumerate(several))) for i in range(2)]
    for n in wrt:
        for i in range(2):
            assert eta(np.asarray(mapped[n][i]), true[i][n], "float32") <= ACCEPTANCE
            if n in over:
                assert eta(np.asarray(summed[n][i]), true[i][n], "float32") <= ACCEPTANCE
        if n not in over:
            both = Judged(*(a + b for a, b in zip(true[0][n], true[1][n], strict=True)))
            assert eta(np.asarray(summed[n]), both, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("fused", [TPU, pytest.param(GPU, marks=pytest.mark.slow)], ids=["tpu", "gpu"])
@pytest.mark.rule("rule-15")
def test_grad_goes_through_scan_checkpoint_x64_and_strict_promotion(fused: Fused) -> None:
    @jax.checkpoint
    def step(total: Any, args: Any) -> Any:
        return total + loss(fused)(*args), None

    def run(q: Any, k: Any, v: Any, sinks: Any) -> Any:
        again = [jnp.stack([x, x]) for x in (q, k, v, sinks, jnp.asarray(FIRST), jnp.asarray(LENGTHS))]
        return jax.lax.scan(step, jnp.zeros((), q.dtype), again)[0]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = jax.jit(jax.grad(run, (0, 1, 2, 3)))(*given(Q, K, V, SINKS))
    for x, judged in zip(found, gradients(Q, K, V, SINKS, FIRST, LENGTHS), strict=True):
        assert x.dtype == jnp.float32
        twice = Judged(*(2 * np.asarray(part) for part in judged))
        assert eta(np.asarray(x), twice, "float32") <= ACCEPTANCE


@BOTH
@pytest.mark.rule("rule-25")
@pytest.mark.parametrize("order", ["grad of grad", "jvp of grad", "hessian"])
def test_derivatives_of_a_derivative_are_refused_by_a_sentence(order: str, fused: Fused) -> None:
    q, k, v = (x[:1, :2, :4] for x in given(Q, K, V))

    def f(q: Any) -> Any:
        return attention(q, k, v, implementation=fused).sum()

    orders: dict[str, Callable[[], Any]] = {
        "grad of grad": lambda: jax.grad(lambda q: jnp.sum(jax.grad(f)(q) ** 2))(q),
        "jvp of grad": lambda: jax.jvp(jax.grad(f), (q,), (q,)),
        "hessian": lambda: jax.hessian(f)(q),
    }
    with pytest.raises(NotImplementedError) as caught:
        orders[order]()
    assert str(caught.value) == (
        "polyattn.attention: expected derivatives of a fused kernel of first order, by reverse mode (jax.grad, jax.vjp), "
        "got one of a derivative; use implementation='blockwise' for forward mode, or 'reference', which has all orders"
    )


@pytest.mark.rule("rule-17")
def test_inputs_may_be_donated() -> None:
    run = jax.jit(lambda q, k, v: attention(q, k, v, is_causal=True, implementation=TPU), donate_argnums=0)
    near(run(*given(Q, K, V)), Spec(Q, K, V, allowed=LOWER[None, None]))


@BOTH
@pytest.mark.rule("rule-16")
def test_threads_get_the_bits_of_one(fused: Fused) -> None:
    arrays = given(Q, K, V)

    def run() -> Any:
        return np.asarray(attention(*arrays, is_causal=True, implementation=fused))

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(x, run()) for x in found)


@pytest.mark.slow
def test_kernels_of_a_tpu_have_no_races() -> None:
    """As its interpreter sees them: copies under way beside the programs, memory that nobody wrote full of NaN."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # no public name says what was found
    from jax.experimental.pallas import tpu as pltpu

    q, k, v = normal(1, 2, 300, 16, seed=1), normal(1, 1, 300, 16, seed=2), normal(1, 1, 300, 16, seed=3)
    sinks, bias, cotangent = normal(2), normal(1, 1, 1, 300), normal(1, 2, 300, 16, seed=4)
    fused = Fused(128, 128, platform="tpu")

    def f(q: Any, k: Any, v: Any, sinks: Any, bias: Any) -> Any:
        mask = masks.sliding_window(150)
        return attention(q, k, v, sinks=sinks, bias=bias, mask=mask, implementation=fused)

    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        out, pull = jax.vjp(jax.jit(f), *given(q, k, v, sinks, bias))
        found = jax.block_until_ready(pull(*given(cotangent)))
    assert interpret_pallas_call.races is not None
    assert not interpret_pallas_call.races.races_found
    at = np.arange(300)
    allowed = (at <= at[:, None]) & (at > at[:, None] - 150)
    judged = truth(Spec(q, k, v, allowed=allowed[None, None], sinks=sinks, bias=bias), cotangent)
    for name, x in zip(("out", "dq", "dk", "dv", "dsinks", "dbias"), (out, *found), strict=True):
        assert eta(np.asarray(x), judged[name], "float32") <= ACCEPTANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_random_problems_agree(platform: str) -> None:
    bench = JaxBench()

    @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given_data(data=st.data())
    def agree(data: st.DataObject) -> None:
        dtype, sample = data.draw(samples(("float32", "bfloat16")))
        tile = Fused(*data.draw(st.tuples(st.integers(2, 9), st.integers(2, 9))), platform, interpret=True)

        def on_trial(*arrays: Any, **options: Any) -> Any:
            return attention(*arrays, **options, implementation=tile)

        outcome = judge(bench, Case("random", (), lambda d: sample), sample, dtype, on_trial)
        assert outcome.agrees, outcome

    agree()
