"""Random models of `transformers`, small, and ours from their configs: the same logits, gradients and texts."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from shared.libraries import torch

from polyattn import weights
from polyattn.models.families import FAMILIES, language_model

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
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
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 6, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "gpt_oss": WINDOW | {"num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": YARN | {"truncate": False}},
    "deepseek_v3": LATENT | EXPERTS | {
        "n_routed_experts": 6, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    },
    "qwen3_next": EXPERTS | {
        "num_experts": 5, "shared_expert_intermediate_size": 10, "mlp_only_layers": [1], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
    },
    "kimi_linear": {key: x for key, x in LATENT.items() if key != "q_lora_rank"} | {
        "num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 12, "num_expert_group": 2,
        "num_key_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 2,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    },
}  # fmt: skip


#: A result in float64 may be off by so many roundings of its largest entry.
ROUNDINGS = 2.0**12 * 2.0**-53


class Wide:
    """torch, whose float32 is float64: what transformers computes in float32 whatever the model's dtype."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes in float64 throughout."""
    from transformers import AutoModelForCausalLM

    for family in OWN:
        AutoModelForCausalLM._model_mapping[type(config_of(family))]
    for name, module in list(sys.modules.items()):
        if name.startswith(
            (
                "transformers.models.",
                "transformers.modeling_",
                "transformers.masking_",
                "transformers.integrations.",
            )
        ) and hasattr(module, "torch"):
            monkeypatch.setattr(module, "torch", Wide())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def config_of(family: str) -> Any:
    from transformers import AutoConfig

    changes = {
        name: x for name, x in (SMALL | OWN[family]).items() if x is not None or name == "eos_token_id"
    }
    config = AutoConfig.for_model(family, **changes)
    config._experts_implementation = "eager"
    return config


def theirs(family: str) -> Any:
    """A model of the family in float64 with random weights, norms and biases too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {
        name: x for name, x in (SMALL | OWN[family]).items() if x is not None or name == "eos_token_id"
    }
    config = AutoConfig.for_model(family, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, x in (*model.named_parameters(), *model.named_buffers()):
            if "rotary" not in name and "inv_freq" not in name and x.is_floating_point():
                x.copy_(torch.randn_like(x) * 0.3)
    return model


def tensors(model: Any) -> dict[str, Any]:
    found = dict(model.state_dict(keep_vars=True))
    if model.config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def test_every_family_is_tried() -> None:
    assert OWN.keys() == FAMILIES.keys()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("family", OWN)
def test_logits_and_gradients_are_those_of_transformers(family: str) -> None:
    model = theirs(family)
    own, format = language_model(model.config)
    tokens = torch.randint(0, 61, (2, 13), generator=torch.Generator().manual_seed(1))
    logits = model(tokens).logits
    along = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    (logits * along).sum().backward()
    named = tensors(model)
    expected = {name: x.grad for name, x in named.items() if x.grad is not None}
    leaves = {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in named.items()}
    params = weights.from_format(own, leaves, format)
    found = own(params, tokens)
    print((found - logits).abs().max().item(), logits.abs().max().item())
    assert (found - logits).abs().max() <= ROUNDINGS * logits.abs().max()
    (found * along).sum().backward()
    for name, gradient in expected.items():
        got = leaves[name].grad
        assert (got - gradient).abs().max() <= ROUNDINGS * gradient.abs().max(), name
