"""Random models of `transformers`, small, and ours from their configs: the same logits, gradients and texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import weights
from polyattn.generation import generate
from polyattn.models.families import FAMILIES, language_model
from polyattn.testing import load_bench

Floats = np.ndarray[Any, Any]

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WINDOW = {"sliding_window": 5}
LATENT = {"kv_lora_rank": 6, "q_lora_rank": 5, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 5e5,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
#: What makes each family what it is, beside SMALL.
OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {"num_attention_heads": 8},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "olmo2": {"head_dim": None},
    "gemma2": WINDOW | {"query_pre_attn_scalar": 6},
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": WINDOW | {"num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": YARN | {"truncate": False}},
    "deepseek_v3": LATENT | EXPERTS | {
        "n_routed_experts": 6, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": None,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    },
    "qwen3_next": EXPERTS | {
        "num_experts": 5, "shared_expert_intermediate_size": 10, "mlp_only_layers": [1], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "kimi_linear": {key: x for key, x in LATENT.items() if key != "q_lora_rank"} | {
        "num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 12, "num_expert_group": 2,
        "num_key_value_heads": 4, "head_dim": None, "linear_head_dim": 8, "linear_num_heads": 2,
        "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
}  # fmt: skip


#: A result in float64 may be off by so many roundings of its largest entry.
ROUNDINGS = 2.0**12 * 2.0**-53
TOKENS = np.random.default_rng(1).integers(0, 61, (2, 13))
ALONG = np.random.default_rng(2).normal(size=(2, 13, 61))


class Wide:
    """torch, whose float32 is float64: what transformers computes in float32 whatever the model's dtype."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextmanager
def wide() -> Iterator[None]:
    """Inside, transformers computes in float64 throughout."""
    from transformers import AutoModelForCausalLM

    for family in OWN:  # whose modules are there then
        AutoModelForCausalLM._model_mapping[type(config_of(family))]
    rooms = ("models.", "modeling_", "masking_", "integrations.")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith(tuple(f"transformers.{room}" for room in rooms)) and hasattr(module, "torch"):
                patch.setattr(module, "torch", Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def config_of(family: str) -> Any:
    from transformers import AutoConfig

    changes = {
        name: x for name, x in (SMALL | OWN[family]).items() if x is not None or name == "eos_token_id"
    }
    return AutoConfig.for_model(family, **changes)


def theirs(family: str) -> Any:
    """A model of the family in float64 with random weights, norms and biases too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {
        name: x for name, x in (SMALL | OWN[family]).items() if x is not None or name == "eos_token_id"
    }
    config = AutoConfig.for_model(family, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        corrections = (x for x in model.named_buffers() if "correction" in x[0])
        for _, x in (*model.named_parameters(), *corrections):
            x.copy_(torch.randn_like(x) * 0.3)
    return model


def tensors(model: Any) -> dict[str, Any]:
    found = dict(model.state_dict(keep_vars=True))
    if model.config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


@cache
def told(family: str) -> tuple[dict[str, Floats], Floats, dict[str, Floats], list[int]]:
    """By transformers in float64: weights, logits, gradients of sum(logits * ALONG), and a text that goes on greedily."""
    with wide():
        model = theirs(family)
        logits = model(torch.from_numpy(TOKENS)).logits
        (logits * torch.from_numpy(ALONG)).sum().backward()
        named = tensors(model)
        gradients = {name: x.grad.numpy() for name, x in named.items() if x.grad is not None}
        text = TOKENS[:1].tolist()
        with torch.no_grad():
            for _ in range(9):
                text[0].append(int(model(torch.tensor(text)).logits[0, -1].argmax()))
    return (
        {name: x.detach().numpy() for name, x in named.items()},
        logits.detach().numpy(),
        gradients,
        text[0],
    )


def test_every_family_is_tried() -> None:
    assert OWN.keys() == FAMILIES.keys()


@pytest.mark.parametrize("library", ["autograd", "jax", "torch"])
@pytest.mark.parametrize("family", OWN)
def test_logits_and_gradients_are_those_of_transformers(family: str, library: str) -> None:
    bench = load_bench(library)
    named, logits, gradients, _ = told(family)
    model, format = language_model(config_of(family))

    def run(given: dict[str, Any]) -> tuple[Any, Any]:
        out = model(weights.from_format(model, {n: given[n] for n in named}, format), tokens)
        return out, out

    arrays = {name: bench.array(x, "float64") for name, x in named.items()}
    tokens = bench.array(TOKENS)
    along = (
        None if library == "jax" else bench.array(ALONG, "float64")
    )  # the layers' own tests derive there too
    out, _, found = bench.run(run, arrays, along)
    assert np.abs(bench.numpy(out) - logits).max() <= ROUNDINGS * np.abs(logits).max()
    for name, gradient in gradients.items() if along is not None else ():
        assert np.abs(bench.numpy(found[name]) - gradient).max() <= ROUNDINGS * np.abs(gradient).max(), name


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
@pytest.mark.parametrize("family", OWN)
def test_the_text_that_a_model_goes_on_with_is_that_of_transformers(family: str, library: str) -> None:
    bench = load_bench(library)
    named, *_, text = told(family)
    model, format = language_model(config_of(family))
    params = weights.from_format(model, {n: bench.array(x, "float32") for n, x in named.items()}, format)
    n = TOKENS.shape[1]
    found = list(generate(model, params, text[:n], length=len(text) - n, piece=1))
    assert [token.number for token in found] == text[n:]
    assert min(token.margin for token in found) > 1e-4  # far from any other text
