"""Initial parameters: the same bits on every library, from the distributions that are promised."""

from __future__ import annotations

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest
from shared.libraries import jax, torch
from shared.running import LIBRARIES, bench_of, mapped

from polyattn import layers
from polyattn.layers import Constant, Distribution, Normal, Uniform

N = 2**16  # numbers drawn: 256 x 256
# The variance of a standard normal number cut at 2: 1 - 4 pdf(2) / (cdf(2) - cdf(-2)).
CUT = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))

DTYPES = ["float64", "float32", "float16", "bfloat16"]
EVERYTHING = layers.Decoder(
    layers.DecoderBlock(
        layers.MultiHeadAttention(8, 4, qk_norm=layers.RMSNorm(2, epsilon=1e-6)),
        layers.AdditiveAttention(8, 8),
        layers.LayerNorm(8, epsilon=1e-5),
        mlp=layers.MLP(8, 8, activation="swiglu", initializer="lecun_normal"),
        norm_first=True,
    ),
    2,
)


def drawn(
    how: str | Distribution, seed: int = 0, *, inputs: int = 256, outputs: int = 256
) -> np.ndarray[Any, Any]:
    layer = layers.Linear(inputs, outputs, initializer=how)
    return np.asarray(layer.init(seed, like=np.zeros(()))["w"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_init_gives_the_same_bits_on_every_library(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        made = {}
        for name in LIBRARIES:
            bench = bench_of(name)
            if dtype in bench.dtypes:
                params = EVERYTHING.init(3, like=bench.array(np.zeros(()), dtype))
                made[name] = np.concatenate([x.ravel() for x in flat(mapped(bench.numpy, params))])
    assert len(made) >= (5 if dtype in ("float64", "float32") else 3)
    assert made["numpy"].size > 500
    assert all(np.array_equal(made["numpy"], x) for x in made.values())


def flat(tree: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [x for part in tree.values() for x in (flat(part) if isinstance(part, dict) else [part])]


def test_many_normal_numbers_in_half_precision_are_the_same_bits_too() -> None:
    """Two roundings differ from one for a number in 2^13: it takes many to see it."""
    layer = layers.Linear(256, 256, initializer=Normal(0.02))
    ours = layer.init(0, like=torch.zeros((), dtype=torch.float16))["w"]
    assert np.array_equal(ours, layer.init(0, like=np.zeros((), np.float16))["w"])


@pytest.mark.parametrize(
    ("how", "limit"),
    [
        ("glorot_uniform", math.sqrt(6 / (256 + 256))),
        ("torch_linear", math.sqrt(1 / 256)),
        (Uniform(3.0), 3.0),
    ],
)
def test_a_uniform_initializer_has_its_limits_mean_and_variance(
    how: str | Distribution, limit: float
) -> None:
    x = drawn(how)
    assert -limit <= x.min()
    assert x.max() < limit
    # The chance that none of N numbers comes within 20 / N of an edge is exp(-10).
    assert max(limit - x.max(), x.min() + limit) < 2 * limit * 20 / N
    assert abs(x.mean()) < 6 * limit / math.sqrt(3 * N)
    # The mean of x^2 is limit^2/3, its standard deviation limit^2 sqrt(1/5 - 1/9).
    assert abs((x**2).mean() - limit**2 / 3) < 6 * limit**2 * math.sqrt((1 / 5 - 1 / 9) / N)


@pytest.mark.parametrize(
    ("how", "std", "truncated"),
    [("lecun_normal", math.sqrt(1 / 256), True), (Normal(0.02), 0.02, False), (Normal(2.0, True), 2.0, True)],
)
def test_a_normal_initializer_has_its_mean_variance_and_shape(
    how: str | Distribution, std: float, truncated: bool
) -> None:
    x = drawn(how) / std
    assert abs(x.mean()) < 6 / math.sqrt(N)
    assert abs((x**2).mean() - 1) < 6 * math.sqrt(2 / N)  # the variance of x^2 is at most that of the normal
    edge = 2 / math.sqrt(CUT)
    assert (abs(x).max() <= edge) == truncated
    inside = (math.erf(1 / math.sqrt(2) * (math.sqrt(CUT) if truncated else 1))) / (
        math.erf(math.sqrt(2)) if truncated else 1
    )
    assert abs((abs(x) < 1).mean() - inside) < 6 * math.sqrt(inside * (1 - inside) / N)


def test_neighbours_are_uncorrelated() -> None:
    x = drawn("glorot_uniform")
    x = x / x.std()
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        assert abs((a * b).mean()) < 6 / math.sqrt(a.size)


@pytest.mark.parametrize(
    ("kind", "name", "limit"),
    [
        # w_q, w_k and w_v as one matrix: fan_out is H D + 2 Hkv D
        (layers.MultiHeadAttention(256, 4), "w_q", math.sqrt(6 / (256 + 3 * 256))),
        (layers.GroupedQueryAttention(256, 4, num_kv_heads=1), "w_k", math.sqrt(6 / (256 + 256 + 2 * 64))),
        (layers.MultiHeadAttention(256, 4), "w_o", math.sqrt(1 / 256)),
        (layers.MultiHeadAttention(256, 4, initializer="glorot_uniform"), "w_q", math.sqrt(6 / 512)),
        (layers.MultiHeadAttention(256, 4, initializer="glorot_uniform"), "w_o", math.sqrt(6 / 512)),
        (layers.AdditiveAttention(64, 192), "w_q", math.sqrt(6 / 256)),
        (layers.AdditiveAttention(64, 4095), "v", math.sqrt(6 / 4096)),
    ],
)
def test_fan_in_and_fan_out_are_those_of_the_linear_map(kind: layers.Layer, name: str, limit: float) -> None:
    x = np.asarray(kind.init(0, like=np.zeros(()))[name])
    assert abs(x).max() < limit
    assert abs((x**2).mean() - limit**2 / 3) < 6 * limit**2 * math.sqrt((1 / 5 - 1 / 9) / x.size)


def test_the_scoring_vector_of_additive_attention_is_a_map_to_one_number() -> None:
    layer = layers.AdditiveAttention(8, 2)
    drawn = np.concatenate([layer.init(seed, like=np.zeros(()))["v"] for seed in range(64)])
    assert math.sqrt(6 / (2 + 2)) < np.abs(drawn).max() < math.sqrt(6 / (2 + 1))


def test_biases_begin_at_zero_and_scales_at_one() -> None:
    params = layers.EncoderBlock.preset("torch", 8, 2, 16).init(0, like=np.zeros(()))
    assert not any(params["attention"][f"b_{x}"].any() for x in "qkvo")
    assert not params["mlp"]["b_in"].any()
    assert (params["norm_1"]["scale"] == 1).all()
    assert not params["norm_1"]["bias"].any()
    assert (Constant(0.5).draw((3,), 0, 0, np.zeros(())) == 0.5).all()


def test_every_parameter_has_a_stream_of_its_own() -> None:
    params = layers.Encoder(layers.EncoderBlock.preset("keras", 8, 2, 32), 2).init(0, like=np.zeros(()))
    drawings = [x.ravel() / x.std() for x in flat(params) if x.std() > 0]
    assert len(drawings) == 2 * (4 + 2)
    for i, a in enumerate(drawings):
        for b in drawings[:i]:
            n = min(a.size, b.size)
            assert abs((a[:n] * b[:n]).mean()) < 6 / math.sqrt(n)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_every_seed_of_64_bits_gives_numbers_of_its_own(seed: int) -> None:
    x = drawn("glorot_uniform", seed, inputs=8, outputs=8)
    assert np.array_equal(x, drawn("glorot_uniform", seed, inputs=8, outputs=8))
    assert not (x == drawn("glorot_uniform", (seed + 2**33) % 2**64, inputs=8, outputs=8)).any()


def test_init_takes_dtype_and_device_from_like() -> None:
    device = array_api_strict.Device("device1")
    params = EVERYTHING.init(
        0, like=array_api_strict.zeros((), dtype=array_api_strict.float32, device=device)
    )
    assert {x.device for x in flat(params)} == {device}
    assert {x.dtype for x in flat(params)} == {array_api_strict.float32}
    made = EVERYTHING.init(0, like=torch.zeros((), dtype=torch.bfloat16))
    assert {x.dtype for x in flat(made)} == {torch.bfloat16}


def test_init_inside_a_compiled_function_gives_the_same_bits() -> None:
    layer = layers.Linear(4, 4, initializer="lecun_normal")
    traced = jax.jit(lambda x: layer.init(0, like=x)["w"])(jax.numpy.zeros(()))
    assert np.array_equal(traced, layer.init(0, like=jax.numpy.zeros(()))["w"])


def test_shapes_are_those_of_the_arrays() -> None:
    params = EVERYTHING.init(0, like=np.zeros(()))
    assert EVERYTHING.shapes() == mapped(np.shape, params)
