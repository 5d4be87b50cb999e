"""Keys and values that layers share, beside those of Gemma 3n: which layer reads which, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch
from shared.running import Floats, mapped, normal

from polyattn import layers, masks
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

pytest.importorskip("transformers")

KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]  # fmt: skip
SHARED, N, W = 3, 9, 4
X = normal(2, N, 16)


def kv_from(kinds: list[str], shared: int) -> tuple[int | None, ...]:
    """Each of the last ones reads the last layer of its kind that is none of them."""
    own = len(kinds) - shared
    return tuple(
        None if i < own else max(j for j in range(own) if kinds[j] == kind) for i, kind in enumerate(kinds)
    )


def theirs() -> tuple[Floats, list[Any]]:
    """x + attention(x), layer by layer, and the attentions."""
    from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAttention

    config = Gemma3nTextConfig(
        hidden_size=16, num_hidden_layers=len(KINDS), layer_types=KINDS, num_kv_shared_layers=SHARED,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding_window=W, intermediate_size=8,
        activation_sparsity_pattern=None, attn_implementation="eager", rms_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    parts = [Gemma3nTextAttention(config, i).eval() for i in range(len(KINDS))]
    angle = torch.outer(torch.arange(N), 10000.0 ** (-torch.arange(2) / 2)).repeat(1, 2)[None]
    row, column = torch.arange(N)[:, None], torch.arange(N)
    kept: dict[str, Any] = {}
    with torch.no_grad():
        for part in parts:
            for w in part.parameters():
                w.copy_(torch.randn_like(w) * 0.5)
        x = torch.tensor(X, dtype=torch.float32)
        for part, kind in zip(parts, KINDS, strict=True):
            seen = (column <= row) & ((row - column < W) | (kind == "full_attention"))
            hidden = torch.where(seen, 0.0, -torch.inf)[None, None]
            x = x + part(x, (angle.cos(), angle.sin()), hidden, shared_kv_states=kept)[0]
    return x.double().numpy(), parts


def ours(kind: str) -> layers.MultiHeadAttention:
    norm, plain = (layers.RMSNorm(4, epsilon=1e-6, use_scale=scaled) for scaled in (True, False))
    mask = masks.sliding_window(W) if kind == "sliding_attention" else masks.causal()
    options = {"mask": mask, "rotary": Rotary(), "qk_norm": norm, "v_norm": plain, "scale": 1.0}
    return layers.MultiHeadAttention(16, 4, num_kv_heads=2, qkv_bias=False, out_bias=False, **options)


def read(part: Any, own: bool) -> dict[str, Any]:
    """The weights of an attention of theirs, by our names."""
    state = {name: w.detach().double().numpy() for name, w in part.state_dict().items()}
    names = "qkv" if own else "q"
    found: dict[str, Any] = {
        f"w_{name}": state.pop(f"{name}_proj.weight").T.reshape(16, -1, 4) for name in names
    }
    found["w_o"] = state.pop("o_proj.weight").T.reshape(4, 4, 16)
    found |= {f"{name}_norm": {"scale": state.pop(f"{name}_norm.weight")} for name in names if name != "v"}
    assert state == {}
    return found | {"v_norm": {}} if own else found


def test_layers_read_the_keys_and_values_that_those_of_gemma_3n_read() -> None:
    true, parts = theirs()
    sources = kv_from(KINDS, SHARED)
    assert sources == (None, None, None, 1, 2, 1)
    assert [part.is_kv_shared_layer for part in parts] == [source is not None for source in sources]
    stack, params = [], []
    for part, kind, source in zip(parts, KINDS, sources, strict=True):
        stack.append(ours(kind) if source is None else ours(kind).without_kv())
        params.append(read(part, source is None))

    def run(number: Callable[[Any], Any] = lambda x: x) -> Any:
        x, left = number(X), []
        for layer, p, source in zip(stack, params, sources, strict=True):
            cache = layer.empty_cache(2, N, like=X) if source is None else left[source]
            out, cache, _ = layer.run(mapped(number, p), x, cache=cache)
            left.append(cache)
            x = x + out
        return x

    assert np.abs(run() - true).max() <= 8 * noise(run) < 1e-3  # theirs is in float32
