"""Every mechanism that teaching code shows, on every library, against its formula: output, weights, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from shared import formulas, mechanisms
from shared.formulas import Array
from shared.libraries import jax, polyattn_autograd, torch
from shared.running import LIBRARIES, applied, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, attention, layers, masks
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.parity.cases.scores import SIX_TOKENS
from polyattn.rotary import Rotary
from polyattn.testing import BENCHES
from polyattn.truth.rounding import noise

Arrays = dict[str, Any]
Convert = Callable[[np.ndarray[Any, Any]], Array]

PAD = 0
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 7, PAD, PAD, PAD, PAD]])  # two sentences, the second one padded
TRIL = np.tril(np.ones((6, 6)))
SEEN = (TOKENS != PAD)[:, None, :]  # (B, 1, S)
BIAS = normal(2, 6, 6, seed=3)  # (H, L, S)
SCATTERED = np.random.default_rng(5).random((6, 6)) < 0.6


@dataclass(frozen=True)
class Row:
    """A mechanism: the layer, the widths of its inputs (batch 2, lengths 6, then 5), the formula of it."""

    name: str
    layer: layers.Layer
    widths: tuple[int, ...]
    formula: Callable[..., Any]  # (params, *inputs) -> (out, weights)
    options: Callable[[Convert], dict[str, Any]] = field(default=lambda a: {})
    lengths: tuple[int, ...] = (6, 5, 5)
    causal: bool = False
    weighs: bool = True  # whether there are weights to ask for
    mixed: bool = False  # after the softmax, so that weights are no averages

    @property
    def params(self) -> Arrays:
        return drawn(self.layer, seed=1)

    @property
    def inputs(self) -> list[np.ndarray[Any, Any]]:
        widths = enumerate(zip(self.lengths, self.widths, strict=False))
        return [normal(2, n, width, seed=i) for i, (n, width) in widths]


def _one_head(q: Array, k: Array, v: Array, **options: Any) -> Any:
    out, weights = formulas.attend(q, k, v, **options)
    return out, weights  # without a head axis: rank 3 inputs are heads themselves


NORM = layers.LayerNorm(8, epsilon=1e-5)
HEADS = layers.MultiHeadAttention(8, 2)
SOURCE = layers.MultiHeadAttention(8, 2, context_dim=6)
LATENT: dict[str, Any] = {
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 2,
    "epsilon": 1e-6,
    "rotary": Rotary(interleaved=True),
}
NSA = {"block_size": 2, "count": 2, "window_size": 2, "initial": 0, "local": 1}


def _decoder(norm_first: bool) -> Row:
    return Row(
        f"EncoderDecoderAttention, norm {'first' if norm_first else 'last'}",
        layers.EncoderDecoderAttention(HEADS, SOURCE, NORM, norm_first=norm_first, dropout_rate=0.1),
        (8, 6),
        partial(
            formulas.decoder_block,
            norm_first=norm_first,
            epsilon=1e-5,
            allowed=TRIL,
            context_allowed=(np.arange(5) < np.array([5, 3])[:, None])[:, None, :],
        ),
        options=lambda a: {"context_mask": masks.key_lengths(a(np.array([5, 3], np.int32)))},
        causal=True,
    )


RECURRENT: list[tuple[layers.Layer, Callable[..., Any]]] = [
    (layers.LinearAttention(8, 2), formulas.linear_attention),
    (
        layers.LightningAttention(8, 2, slopes=(0.5, 0.25)),
        partial(formulas.lightning, slopes=(0.5, 0.25)),
    ),
    (
        layers.GatedDeltaNet(8, 2, num_value_heads=4, head_dim=3, value_dim=5, chunk_size=4),
        formulas.gated_delta_net,
    ),
    (layers.KimiDeltaAttention(8, 2, head_dim=3), formulas.kimi_delta_attention),
]

ROWS = [
    Row(
        "simplified self-attention",
        layers.ScaledDotProductAttention(scale=1.0),
        (4, 4, 4),
        lambda p, q, k, v: _one_head(q, k, v, scale=1.0),
        lengths=(6, 6, 6),
    ),
    Row("SelfAttention without bias (V1)", layers.SelfAttention(3, head_dim=2), (3,), formulas.multihead),
    Row(
        "SelfAttention with bias (V2)",
        layers.SelfAttention(3, head_dim=2, qkv_bias=True),
        (3,),
        formulas.multihead,
    ),
    Row("AdditiveAttention", layers.AdditiveAttention(8, 7, context_dim=6), (8, 6), formulas.additive),
    Row("Luong's dot", layers.LuongAttention(6, score="dot"), (6, 6), formulas.luong),
    Row("Luong's general", layers.LuongAttention(8, score="general", context_dim=6), (8, 6), formulas.luong),
    Row(
        "Luong's concat",
        layers.LuongAttention(8, score="concat", context_dim=6, hidden_dim=7),
        (8, 6),
        formulas.luong,
    ),
    Row(
        "ScaledDotProductAttention with a mask",
        layers.ScaledDotProductAttention(),
        (4, 4, 3),
        lambda p, q, k, v: _one_head(q, k, v, allowed=SCATTERED),
        options=lambda a: {"mask": a(SCATTERED)},
        lengths=(6, 6, 6),
    ),
    Row("MultiHeadAttention", layers.MultiHeadAttention(8, 2, dropout_rate=0.1), (8,), formulas.multihead),
    Row(
        "MultiHeadAttention without output projection",
        layers.MultiHeadAttention(8, 2, output_projection=False, qkv_bias=False),
        (8,),
        formulas.multihead,
    ),
    Row(
        "CausalSelfAttention",
        layers.CausalSelfAttention(8, 2, context_length=6, dropout_rate=0.1, qkv_bias=False),
        (8,),
        partial(formulas.multihead, allowed=TRIL),
        causal=True,
    ),
    Row("CrossAttention", layers.CrossAttention(3, head_dim=2, context_dim=4), (3, 4), formulas.multihead),
    Row(
        "MultiHeadCrossAttention",
        layers.MultiHeadCrossAttention(8, 2, context_dim=6),
        (8, 6),
        formulas.multihead,
    ),
    Row(
        "GroupedQueryAttention", layers.GroupedQueryAttention(8, 4, num_kv_heads=2), (8,), formulas.multihead
    ),
    Row("MultiQueryAttention", layers.MultiQueryAttention(8, 4), (8,), formulas.multihead),
    Row(
        "sinks, one for each head",
        layers.GroupedQueryAttention(8, 4, num_kv_heads=2, sinks=True, is_causal=True),
        (8,),
        partial(formulas.multihead, allowed=TRIL),
        causal=True,
    ),
    Row(
        "a bias of the call",
        HEADS,
        (8,),
        partial(formulas.multihead, bias=BIAS),
        options=lambda a: {"bias": a(BIAS)[None, ...]},
    ),
    _decoder(norm_first=False),
    _decoder(norm_first=True),
    Row(
        "padding mask",
        HEADS,
        (8,),
        partial(formulas.multihead, allowed=SEEN),
        options=lambda a: {"mask": a(TOKENS != PAD)[:, None, None, :]},
    ),
    Row(
        "padding as lengths",
        HEADS,
        (8,),
        partial(formulas.multihead, allowed=SEEN),
        options=lambda a: {"mask": masks.key_lengths(a(np.array([6, 2], np.int32)))},
    ),
    Row(
        "tril mask",
        HEADS,
        (8,),
        partial(formulas.multihead, allowed=TRIL),
        options=lambda a: {"mask": masks.from_array(a(TRIL > 0))},
        causal=True,
    ),
    Row(
        "padding and tril",
        HEADS,
        (8,),
        partial(formulas.multihead, allowed=SEEN * TRIL),
        options=lambda a: {
            "mask": masks.key_lengths(a(np.array([6, 2], np.int32))) & masks.causal(),
        },
        causal=True,
    ),
    *(
        Row(
            f"LatentAttention, {'x itself' if rank is None else 'latents'} for queries",
            layers.LatentAttention(8, 2, **LATENT, q_lora_rank=rank, is_causal=True),
            (8,),
            partial(mechanisms.latent, epsilon=1e-6, allowed=TRIL),
            causal=True,
        )
        for rank in (None, 5)
    ),
    Row(
        "DifferentialAttention",
        layers.DifferentialAttention(8, 2, num_kv_heads=1, lambda_init=0.2, epsilon=1e-5, is_causal=True),
        (8,),
        partial(mechanisms.differential, lambda_init=0.2, epsilon=1e-5, allowed=TRIL),
        causal=True,
    ),
    *(
        Row(type(layer).__name__, layer, (8,), formula, causal=True, weighs=False)
        for layer, formula in RECURRENT
    ),
    Row(
        "MixtureOfBlockAttention",
        layers.MixtureOfBlockAttention(8, 2, num_kv_heads=1, block_size=2, count=2),
        (8,),
        partial(mechanisms.moba, block_size=2, count=2),
        causal=True,
        weighs=False,
    ),
    Row(
        "NativeSparseAttention",
        layers.NativeSparseAttention(8, 4, num_kv_heads=2, **NSA, compression_dim=3),
        (8,),
        partial(mechanisms.nsa, **NSA),
        causal=True,
        weighs=False,
    ),
    Row(
        "TensorProductAttention",
        layers.TensorProductAttention(8, 2, q_rank=3, k_rank=2, v_rank=1, is_causal=True),
        (8,),
        partial(mechanisms.tensor_product, allowed=TRIL),
        causal=True,
    ),
    Row("ForgettingAttention", layers.ForgettingAttention(8, 2), (8,), mechanisms.forgetting, causal=True),
    Row(
        "TalkingHeadsAttention",
        layers.TalkingHeadsAttention(8, 4, is_causal=True),
        (8,),
        partial(mechanisms.mixed, allowed=TRIL),
        causal=True,
        mixed=True,
    ),
    Row(
        "MultiTokenAttention",
        layers.MultiTokenAttention(8, 4, query_width=2, key_width=4, is_causal=True),
        (8,),
        partial(mechanisms.mixed, allowed=TRIL),
        causal=True,
    ),
    Row(
        "MultiTokenAttention whose heads mix",
        layers.MultiTokenAttention(8, 4, query_width=3, key_width=3, group_size=2),
        (8,),
        mechanisms.mixed,
        mixed=True,
    ),
]
BY_NAME = {row.name: row for row in ROWS}
RUNS = [("numpy", "float64"), ("numpy", "float32"), ("strict", "float64"), ("jax", "float32")]
RUNS += [(library, dtype) for library in ("torch", "autograd") for dtype in ("float64", "float32")]

every_row = pytest.mark.parametrize("name", list(BY_NAME))
every_run = pytest.mark.parametrize(("library", "dtype"), RUNS)


@dataclass(frozen=True)
class Found:
    out: np.ndarray[Any, Any]
    weights: list[np.ndarray[Any, Any]]
    gradients: list[dict[str, Any]] | None  # of sum(out * cotangent) for the params and each input


@cache
def runner(name: str, library: str, dtype: str) -> Callable[..., Found]:
    """The row as a function of NumPy arrays (params, inputs); compiled by JAX."""
    row, bench = BY_NAME[name], BENCHES[library]()
    options = row.options(lambda x: bench.array(x, dtype))

    def f(params: Arrays, inputs: list[Array]) -> tuple[Array, list[Array]]:
        asked = AuxRequest(weights=True) if row.weighs else None
        out, _, aux = row.layer.run(params, *inputs, **options, return_aux=asked)
        found = aux if isinstance(aux, tuple) else (aux,) if row.weighs else ()  # of two attentions
        return out, [part.weights for part in found]

    def loss(params: Arrays, inputs: list[Array], cotangent: Array) -> Any:
        out, weights = f(params, inputs)
        return (out * cotangent).sum(), (out, weights)

    derived = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True)) if library == "jax" else None

    def run(params: Arrays, inputs: list[np.ndarray[Any, Any]]) -> Found:
        p, xs = mapped(lambda x: bench.array(x, dtype), params), [bench.array(x, dtype) for x in inputs]
        gradients: Any = None
        if derived is not None:
            shape = formulas_out(name).shape
            gradients, (out, weights) = derived(p, xs, bench.array(cotangent(shape), dtype))
        elif library == "torch":
            out, weights, gradients = torch_gradients(f, p, xs)
        elif library == "autograd":
            out, weights = f(p, xs)
            _, pullback = polyattn_autograd.vjp(lambda given: f(*given)[0], (p, xs))
            gradients = pullback(cotangent(out.shape).astype(dtype))
        else:
            out, weights = f(p, xs)
            recorded, pullback = layers.vjp(row.layer, p, *xs, **options)
            assert np.array_equal(bench.numpy(recorded), bench.numpy(out))  # to record changes no bit
            d_params, *d_inputs = pullback(bench.array(cotangent(out.shape), dtype))
            gradients = d_params, d_inputs[: len(xs)]
        if gradients is not None:
            values = np.asarray if library == "autograd" else bench.numpy
            gradients = [mapped(values, gradients[0]), dict(enumerate(map(values, gradients[1])))]
        return Found(bench.numpy(out), [bench.numpy(w) for w in weights], gradients)

    return run


def torch_gradients(f: Callable[..., Any], params: Arrays, inputs: list[Any], seed: int = 0) -> Any:
    params = mapped(lambda x: x.clone().requires_grad_(), params)
    inputs = [x.clone().requires_grad_() for x in inputs]
    out, weights = f(params, inputs)
    (out * torch.from_numpy(cotangent(out.shape, seed)).to(out.dtype)).sum().backward()
    return out, weights, (mapped(lambda x: x.grad, params), [x.grad for x in inputs])


def cotangent(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([7, seed]).choice([-1.0, -0.5, 0.5, 1.0], size=tuple(shape))


@cache
def found(name: str, library: str, dtype: str) -> Found:
    row = BY_NAME[name]
    return runner(name, library, dtype)(row.params, row.inputs)


@cache
def formulas_out(name: str) -> np.ndarray[Any, Any]:
    row = BY_NAME[name]
    return np.asarray(row.formula(row.params, *row.inputs)[0])


def weights_of(row: Row, weights: Any) -> list[Any]:
    return list(weights) if isinstance(weights, tuple) else [weights]


@cache
def allowance(name: str, which: int, dtype: str) -> float:
    """4 x the rounding noise of the output (which = -1) or of weights number `which`."""
    row = BY_NAME[name]

    def f(number: Callable[[Any], Any]) -> Any:
        out, weights = row.formula(mapped(number, row.params), *map(number, row.inputs))
        return out if which < 0 else weights_of(row, weights)[which]

    return 4 * noise(f) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


@every_run
@every_row
def test_output_and_weights_are_those_of_the_formula(name: str, library: str, dtype: str) -> None:
    row = BY_NAME[name]
    out, weights = row.formula(row.params, *row.inputs)
    here = found(name, library, dtype)
    assert here.out.shape == out.shape
    assert np.abs(here.out - out).max() <= allowance(name, -1, dtype) < 1e-4
    for i, (ours, true) in enumerate(zip(here.weights, weights_of(row, weights), strict=True)):
        assert ours.shape == true.shape
        assert np.abs(ours - true).max() <= allowance(name, i, dtype) < 1e-4
        assert ((ours == 0) == (true == 0)).all()


@every_run
@every_row
def test_attention_weights_sum_to_one_or_less_with_sinks(name: str, library: str, dtype: str) -> None:
    """S numbers e_j / sum(e): a rounding for each quotient, S - 1 for the sum, which they share."""
    for weights in () if BY_NAME[name].mixed else found(name, library, dtype).weights:
        room = (weights.shape[-1] + 1) * UNIT_ROUNDOFF[dtype]
        if "sinks" in BY_NAME[name].params:  # the rest is the sink's
            assert (weights.sum(-1) < 1 - room).all()
        else:
            assert np.abs(weights.sum(-1) - 1).max() <= room
        assert (weights >= 0).all()


def true_gradients(name: str, dtype: torch.dtype, seed: int) -> list[dict[str, Any]]:
    """Those of the formula, by autograd: nothing of the library."""
    row = BY_NAME[name]
    params = mapped(lambda x: torch.from_numpy(x).to(dtype), row.params)
    inputs = [torch.from_numpy(x).to(dtype) for x in row.inputs]
    _, _, (d_params, d_inputs) = torch_gradients(lambda p, xs: row.formula(p, *xs), params, inputs, seed)
    return [
        mapped(lambda x: x.double().numpy(), d_params),
        {i: x.double().numpy() for i, x in enumerate(d_inputs)},
    ]


def leaves(tree: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Every array with its path."""
    if not isinstance(tree, dict):
        return {"": tree}
    return {f"{name}.{rest}": x for name, part in tree.items() for rest, x in leaves(part).items()}


@cache
def gradient_noise(name: str) -> dict[str, float]:
    """The largest error of the formula's own float32 gradients, worst of eight cotangents; at least a rounding."""
    worst: dict[str, float] = {}
    for seed in range(8):
        true, rounded = (
            leaves(dict(enumerate(true_gradients(name, t, seed)))) for t in (torch.float64, torch.float32)
        )
        for path, x in true.items():
            error = max(np.abs(rounded[path] - x).max(), UNIT_ROUNDOFF["float32"] * np.abs(x).max())
            worst[path] = max(worst.get(path, 0.0), float(error))
    return worst


@every_run
@every_row
def test_the_gradient_reaches_every_parameter_and_is_that_of_the_formula(
    name: str, library: str, dtype: str
) -> None:
    assert_those_of_the_formula(name, dtype, found(name, library, dtype).gradients)


@pytest.mark.parametrize(("library", "dtype"), [("jax", "float32"), ("torch", "float64")])
@every_row
def test_recorded_arrays_of_libraries_with_autodiff_have_the_same_gradients(
    name: str, library: str, dtype: str
) -> None:
    row, bench = BY_NAME[name], BENCHES[library]()
    given = [mapped(lambda x: bench.array(x, dtype), row.params)]
    given += [bench.array(x, dtype) for x in row.inputs]
    out, pullback = layers.vjp(row.layer, *given, **row.options(lambda x: bench.array(x, dtype)))
    d_params, *d_inputs = pullback(bench.array(cotangent(out.shape), dtype))
    gradients = [
        mapped(bench.numpy, d_params),
        dict(enumerate(map(bench.numpy, d_inputs[: len(row.inputs)]))),
    ]
    assert_those_of_the_formula(name, dtype, gradients)


def assert_those_of_the_formula(name: str, dtype: str, gradients: list[dict[str, Any]] | None) -> None:
    true = leaves(dict(enumerate(true_gradients(name, torch.float64, 0))))
    ours = leaves(dict(enumerate(gradients or [])))
    assert ours.keys() == true.keys()
    for path, x in true.items():
        room = 4 * gradient_noise(name)[path] * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
        assert np.abs(ours[path] - x).max() <= room, path
        if not path.endswith("b_k."):  # a number added to all scores of a row: softmax does not see it
            assert np.abs(ours[path]).max() > 1e-3, path


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", [row.name for row in ROWS if row.causal])
def test_the_future_cannot_influence_the_past(name: str, library: str) -> None:
    row, run = BY_NAME[name], runner(name, library, "float32")
    before = found(name, library, "float32").out
    x, *rest = row.inputs
    for j in range(1, x.shape[1]):
        changed = x.copy()
        changed[:, j:] += 3.0 - changed[:, j:, ::-1]
        after = run(row.params, [changed, *rest]).out
        assert np.array_equal(after[:, :j], before[:, :j])
        assert not np.array_equal(after[0, j], before[0, j])


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_causal_does_see_the_future(library: str) -> None:
    row = BY_NAME["MultiHeadAttention"]
    (x,) = row.inputs
    changed = x.copy()
    changed[:, -1] += 1.0
    after = runner(row.name, library, "float32")(row.params, [changed]).out
    assert (after[:, 0] != found(row.name, library, "float32").out[:, 0]).any()


SIX = np.array(SIX_TOKENS)
CONTEXTS = [
    [0.465705, 0.387386, 0.673175],
    [0.501717, 0.398076, 0.627718],
    [0.460588, 0.409116, 0.672231],
    [0.47898, 0.453814, 0.666344],
    [0.464064, 0.398302, 0.674008],
    [0.486054, 0.382583, 0.646395],
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_simplified_self_attention_of_six_tokens_gives_the_printed_contexts(library: str) -> None:
    bench = bench_of(library)

    def call(x: Array) -> Array:
        out, aux = attention(x, x, x, scale=1, return_aux=AuxRequest(weights=True))
        return out, aux.weights

    out, weights = (jax.jit(call) if library == "jax" else call)(bench.array(SIX, "float32"))
    half_a_digit = 0.5e-6 + 2**-22  # printed to six places, and float32
    assert np.abs(bench.numpy(out) - CONTEXTS).max() <= half_a_digit
    printed = [0.1543, 0.1880, 0.1283, 0.2139, 0.1506, 0.1649]
    assert np.abs(bench.numpy(weights)[1] - printed).max() <= 0.5e-4 + 2**-22


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stack_of_single_heads_is_multi_head_attention_without_output_projection(library: str) -> None:
    heads = 4
    whole = layers.MultiHeadAttention(8, heads, output_projection=False, qkv_bias=False)
    single = layers.SelfAttention(8, head_dim=2)
    parts = [drawn(single, seed=h) for h in range(heads)]
    stacked = {name: np.concatenate([p[name] for p in parts], 1) for name in parts[0]}
    x = normal(2, 5, 8)
    side_by_side = np.concatenate([applied(library, single, p, x) for p in parts], -1)
    room = 4 * noise(lambda number: formulas.multihead(mapped(number, stacked), number(x))[0])
    assert np.abs(applied(library, whole, stacked, x) - side_by_side).max() <= room < 1e-4


@pytest.mark.parametrize(("library", "dtype"), RUNS)
def test_both_ways_to_say_padding_give_the_same_bits(library: str, dtype: str) -> None:
    pair = [found(name, library, dtype).out for name in ("padding mask", "padding as lengths")]
    assert np.array_equal(*pair)


@pytest.mark.parametrize("library", LIBRARIES)
def test_padding_cannot_influence_the_sentence(library: str) -> None:
    row, run = BY_NAME["padding mask"], runner("padding mask", library, "float32")
    before = found(row.name, library, "float32").out
    (x,) = row.inputs
    changed = np.where((TOKENS == PAD)[..., None], 1000.0, x)
    after = run(row.params, [changed]).out
    assert np.array_equal(after[TOKENS != PAD], before[TOKENS != PAD])
