"""What every layer of a mechanism goes through besides its formula: compilers, half precision, modules, a seed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, polyattn_torch, torch
from shared.running import drawn, mapped, normal

from polyattn import layers
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary

LATENTS = {"kv_lora_rank": 4, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 3, "q_lora_rank": 5}
LAYERS: list[Any] = [
    layers.LatentAttention(8, 2, **LATENTS, epsilon=1e-6, rotary=Rotary(interleaved=True), is_causal=True),
    layers.DifferentialAttention(8, 2, lambda_init=0.2, epsilon=1e-5, rotary=Rotary(), is_causal=True),
    layers.TalkingHeadsAttention(8, 2, is_causal=True),
    layers.MultiTokenAttention(8, 2, query_width=2, key_width=3, group_size=2, is_causal=True),
    layers.TensorProductAttention(8, 2, q_rank=2, k_rank=2, v_rank=2, rotary=Rotary(), is_causal=True),
    layers.ForgettingAttention(8, 2, rotary=Rotary()),
    layers.MixtureOfBlockAttention(8, 2, num_kv_heads=1, block_size=2, count=2, rotary=Rotary()),
    layers.NativeSparseAttention(8, 2, block_size=2, count=2, window_size=2, local=1, rotary=Rotary()),
]
X = normal(2, 5, 8, seed=1)
each = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


@each
def test_a_layer_is_a_value(layer: Any) -> None:
    again = copy.deepcopy(layer)
    assert again == layer
    assert hash(again) == hash(layer)
    assert pickle.loads(pickle.dumps(layer)) == layer


@pytest.mark.parametrize(
    "layer", LAYERS[:3], ids=lambda layer: type(layer).__name__
)  # with norms, and without
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Dynamo, of array_api_compat
def test_the_module_of_torch_compiles_whole(layer: Any) -> None:
    module, x = polyattn_torch.Module(layer, seed=0), torch.tensor(X, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    ours, eager = (f(x).detach().double() for f in (compiled, module))
    true = module.double()(x.double()).detach()
    error = max((eager - true).abs().max(), UNIT_ROUNDOFF["float32"] * true.abs().max())
    assert (ours - true).abs().max() <= 4 * error  # as eta has it, beside what eager float32 is off


@each
def test_vmap_over_the_batch_is_the_batch(layer: Any) -> None:
    params = drawn(layer, size=0.25)
    one_by_one = jax.jit(jax.vmap(layer, in_axes=(None, 0)))(mapped(jnp.float32, params), jnp.float32(X))
    whole = layer(params, X)
    assert np.abs(whole - one_by_one).max() <= 64 * UNIT_ROUNDOFF["float32"] * np.abs(whole).max()


@each
def test_half_precision_comes_out_as_it_went_in(layer: Any) -> None:
    """Six roundings to bfloat16 on the way, of numbers of about the size of the largest result."""
    params = mapped(lambda w: torch.tensor(w, dtype=torch.bfloat16), drawn(layer, size=0.25))
    x = torch.tensor(X, dtype=torch.bfloat16)
    found = layer(params, x)
    assert found.dtype == torch.bfloat16
    true = layer(mapped(lambda w: w.double().numpy(), params), x.double().numpy())
    assert np.abs(found.double().numpy() - true).max() <= 8 * 2.0**-8 * np.abs(true).max()


@pytest.mark.parametrize(
    "layer",
    [layer for layer in LAYERS if "dropout_rate" in vars(layer)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_dropped_is_a_function_of_the_seed(layer: Any) -> None:
    dropping, params = replace(layer, dropout_rate=0.5), drawn(layer)
    one, same, other = (dropping(params, X, dropout_seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(dropping(params, X), layer(params, X))
