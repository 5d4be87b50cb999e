"""The functions that transformers calls: polyattn's attention, and the masks for it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import reduce
from operator import and_
from typing import Any

import torch

from polyattn import AuxRequest, _attention, masks, mods

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import eager_mask, sdpa_mask
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
    advice = (
        "install it, pip install 'polyattn[transformers]'" if missing else "mend or upgrade that installation"
    )
    raise ImportError(
        f"polyattn_torch.transformers: expected the package transformers, version 5 or later, got: {error}; {advice}"
    ) from error

__all__ = ["NAME", "allowed", "attend", "register"]

NAME = "polyattn"
_WHO = "polyattn_torch.transformers"

#: Keywords that reach attention, and that concern others or say what query, key and mask hold already: query and key are
#: rotated, max_length follows from cu_seq_lens, deterministic is of FlashAttention's backward pass.
INFORMATIVE = {
    *("cache_position", "deterministic", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q"),
    *("num_items_in_batch", "output_hidden_states", "output_router_logits", "position_ids", "return_dict"),
    "use_cache",
}


def register() -> None:
    """Makes `attn_implementation="polyattn"` known to every model of transformers that lets attention be chosen.

    >>> from transformers import LlamaConfig, LlamaModel
    >>> register()
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, attn_implementation="polyattn", **sizes))
    >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
    torch.Size([1, 3, 8])
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, allowed)


def allowed(
    *, config: Any, q_length: int, kv_length: int, allow_is_causal_skip: bool = True, **options: Any
) -> torch.Tensor | None:
    """The mask that a model passes on to `attend`: bools (B, 1, L, S), True = may attend, or None.

    None stands for causal attention with L = S, for one query that sees every key, and for attention that is not
    causal, each without padding or window. With 1 < L < S it would leave open whether the queries are the first
    tokens (a static cache) or the last ones. A model that does not support SDPA, for which transformers has these
    masks, may take every mask for floats to be added, and its modules need not say that they are causal: it gets
    the floats that eager attention gets.
    """
    options |= {"config": config, "q_length": q_length, "kv_length": kv_length}
    mask: torch.Tensor | None
    kind: type = type(config)
    if _supports_sdpa(kind):
        mask = sdpa_mask(allow_is_causal_skip=allow_is_causal_skip and q_length in (1, kv_length), **options)
    else:
        mask = eager_mask(**options)
    return mask


_SUPPORTS_SDPA: dict[type, bool] = {}  # by the class of the config


def _supports_sdpa(config: type) -> bool:
    """Whether the models with such a config do, all that are loaded."""
    if config not in _SUPPORTS_SDPA:
        models = [PreTrainedModel]
        for model in models:  # grows as it goes
            models += model.__subclasses__()
        found = [bool(model._supports_sdpa) for model in models if model.config_class is config]
        _SUPPORTS_SDPA[config] = bool(found) and all(found)
    return _SUPPORTS_SDPA[config]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | torch.Tensor | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`polyattn.attention` as transformers calls it.

    query (B, Hq, L, D), key (B, Hkv, S, D), value (B, Hkv, S, E) -> out (B, L, Hq, E), and the weights
    (B, Hq, L, S) if output_attentions.

    attention_mask: for (B, Hq, L, S), bools, True = may attend, or floats to be added, -inf or the least of the
    dtype = hidden; causality and sliding_window are in it. None: causal if is_causal says so, or else
    module.is_causal. softcap: score -> softcap tanh(score / softcap). s_aux: sinks (Hq,). position_bias: is added
    to the scores. indices: (B, L, n), the keys that a query may attend to at most. cu_seq_lens_q, cu_seq_lens_k:
    where packed documents begin and end; seq_idx: (B, L), the document of each token. dropout: only while
    module.training, with a seed from PyTorch's generator. Any other keyword that has a value is refused, unless
    it is known not to change the result.
    """
    rows, keys = query.shape[2], key.shape[2]
    if unknown := sorted(name for name, x in others.items() if x is not None and name not in INFORMATIVE):
        raise _refusal(
            module,
            "keywords that it knows",
            ", ".join(f"{name} ({type(others[name]).__name__})" for name in unknown),
            "it could change the result, so take another attn_implementation for this model, such as 'eager'",
        )
    visible: list[masks.Mask] = []
    bias, causal = position_bias, False
    if attention_mask is None:
        says_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        causal = bool(says_causal) and rows > 1
        _check_without_mask(module, causal, rows, keys, sliding_window)
    elif attention_mask.dtype == torch.bool:
        visible.append(masks.from_array(attention_mask))
    elif attention_mask.dtype.is_floating_point:
        seen = attention_mask > torch.finfo(attention_mask.dtype).min / 2
        visible.append(masks.from_array(seen))
        added = torch.where(seen, attention_mask, 0.0)
        bias = added if bias is None else bias + added
    else:
        raise _refusal(
            module,
            "a mask of bools (True = may attend) or of floats that are added to the scores",
            f"{attention_mask.dtype}, which could be either",
            "compare it, mask != 0",
        )
    if indices is not None:
        chosen = torch.zeros((*indices.shape[:2], keys), dtype=torch.bool, device=indices.device)
        visible.append(masks.from_array(chosen.scatter(-1, indices.long(), True)[:, None]))
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        visible.append(_documents(module, query.shape[0], (rows, keys), (cu_seq_lens_q, cu_seq_lens_k)))
    if seq_idx is not None:
        visible.append(masks.segments(seq_idx))
    rate, seed = dropout if module.training else 0.0, None
    if rate:
        seed = torch.randint(2**31 - 1, (), dtype=torch.int32, device=query.device)
    with ExitStack() as stack:
        device = query.device.type
        if torch.is_autocast_enabled(device):  # rotated q and k are float32 beside a v in half precision
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
            stack.enter_context(torch.autocast(device, enabled=False))
        result = _attention.attend(
            _WHO,
            query,
            key,
            value,
            mask=reduce(and_, visible) if visible else None,
            bias=bias,
            score_mod=None if softcap is None else mods.softcap(softcap),
            is_causal=causal,
            query_offset=0,
            scale=scaling,
            sinks=s_aux,
            dropout_rate=rate,
            dropout_seed=seed,
            return_aux=AuxRequest(weights=True) if output_attentions else None,
        )
    out, weights = (result[0], result[1].weights.to(query.dtype)) if output_attentions else (result, None)
    return out.transpose(1, 2).contiguous(), weights


def _check_without_mask(
    module: torch.nn.Module, causal: bool, rows: int, keys: int, sliding_window: int | None
) -> None:
    if causal and rows != keys:
        raise _refusal(
            module,
            f"a mask for {rows} causal queries and {keys} keys",
            "None, which leaves open whether the queries are the first tokens or the last ones",
            "pass bools, True = may attend",
        )
    if sliding_window is not None and rows > 1 and keys > sliding_window:
        raise _refusal(
            module,
            "a mask that holds the window",
            f"None with sliding_window={sliding_window} and {keys} keys",
            "make it with transformers.masking_utils.create_sliding_window_causal_mask",
        )


def _documents(
    module: torch.nn.Module,
    batch: int,
    lengths: tuple[int, int],
    bounds: tuple[torch.Tensor | None, torch.Tensor | None],
) -> masks.Mask:
    """Queries and keys of the same document: document i is at the positions bounds[i] <= p < bounds[i + 1]."""
    ends = [None if x is None else int(x[-1]) for x in bounds]
    if batch != 1 or tuple(ends) != lengths or lengths[0] != lengths[1]:
        raise _refusal(
            module,
            "packed documents as one batch item, with cu_seq_lens_q and cu_seq_lens_k that end at its length",
            f"{batch} items of {lengths[0]} queries and {lengths[1]} keys, and ends {ends[0]} and {ends[1]}",
            "pass both, and no cache",
        )
    ids = (
        torch.searchsorted(x, torch.arange(n, device=x.device, dtype=x.dtype), right=True)
        for x, n in zip(bounds, lengths, strict=True)
        if x is not None
    )
    return masks.segments(*ids)


def _refusal(module: torch.nn.Module, expected: str, got: str, advice: str) -> ValueError:
    return ValueError(f"{_WHO}: expected {expected} from {type(module).__name__}, got {got}; {advice}")
