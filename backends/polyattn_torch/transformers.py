"""polyattn as an attention of Hugging Face's transformers: `attn_implementation="polyattn"`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import torch

from polyattn import AuxRequest, attention, masks, mods

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import eager_mask, sdpa_mask
except ImportError as error:
    raise ImportError(
        "polyattn_torch.transformers: expected the package transformers, version 5 or later, but it cannot be "
        "imported; install polyattn with its extra, pip install 'polyattn[transformers]'"
    ) from error

NAME = "polyattn"

#: Keywords that reach attention, and that concern others or say what query, key and mask hold already.
INFORMATIVE = frozenset(
    {
        "cache_position",
        "deterministic",  # of FlashAttention's backward pass
        "layer_idx",
        "logits_to_keep",
        "max_length_k",  # follow from cu_seq_lens
        "max_length_q",
        "num_items_in_batch",  # of the loss
        "output_hidden_states",
        "output_router_logits",
        "position_ids",  # query and key are rotated already
        "return_dict",
        "use_cache",
    }
)


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
        models, found = [PreTrainedModel], []
        while models:
            models += (model := models.pop()).__subclasses__()
            if model.config_class is config:
                found.append(bool(model._supports_sdpa))
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
    run: Any = attention  # its overloads want to know return_aux beforehand
    with ExitStack() as stack:
        device = query.device.type
        if torch.is_autocast_enabled(device):  # rotated q and k are float32 beside a v in half precision
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
            stack.enter_context(torch.autocast(device, enabled=False))
        result = run(
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
    return ValueError(
        f"polyattn_torch.transformers: expected {expected} from {type(module).__name__}, got {got}; {advice}"
    )


@dataclass(frozen=True)
class Checked:
    """What `check` found; as a string, its sentence."""

    calls: int  # of polyattn, in one forward pass
    layers: int  # attention layers that ran
    ignored: tuple[str, ...]  # those of them that did not call it
    deviation: float  # largest, of the result with polyattn from the truth
    bound: float  # largest that is accepted
    ok: bool
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def check(model: PreTrainedModel, batch: Mapping[str, Any]) -> Checked:
    """Whether model(**batch) computes its attention with polyattn, and the same as eager attention.

    Some models ignore `attn_implementation`, without a word. So the calls are counted: every attention layer that
    runs (the innermost modules whose class is named so) must call polyattn. And the logits are compared (the
    last hidden state of a model that has none), except at places that attention_mask or decoder_attention_mask
    calls padding:

        deviation = max |polyattn - truth| <= bound = 4 max(max |eager - truth|, max |perturbed - truth|)

    truth is eager attention with the model in float64, eager the same in the model's own dtype, and perturbed the
    truth with every parameter off by one rounding, w (1 +- u), u that of the dtype, or of float32 where that is
    coarser, because eager attention takes its softmax in float32 whatever the dtype. So the bound is 4 times what
    rounding does to this model on this batch, which leaves room for rounding otherwise. A model that cannot run in
    float64, or gives NaN there, has its eager result in its own dtype for truth.

    Works in eval mode on copies, so the model stays as it is; they take three times its memory. Nothing is raised
    for a model that ignores polyattn or deviates: `ok` and `sentence` say so.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            "polyattn_torch.transformers.check: expected a transformers.PreTrainedModel, got "
            f"{type(model).__name__}; pass the model itself"
        )
    if not isinstance(batch, Mapping) or "past_key_values" in batch:
        raise TypeError(
            "polyattn_torch.transformers.check: expected a batch to call the model with, model(**batch), without "
            f"past_key_values, got {', '.join(batch) if isinstance(batch, Mapping) else type(batch).__name__}; "
            "pass what the tokenizer or processor gives"
        )
    ours = copy.deepcopy(model).eval()
    register()
    ours.set_attn_implementation(NAME)
    with torch.no_grad(), _counting(ours) as (ran, called):
        found, kind = _output(ours, batch)
    ours.set_attn_implementation("eager")
    for part in ours.modules():  # a part may have a config of its own that nobody told
        config: Any = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) == NAME:
            config._attn_implementation = "eager"
    with torch.no_grad():
        eager, _ = _output(ours, batch)
    real = _real(ours, batch, eager)
    unit = max(torch.finfo(dtype).eps for dtype in (model.dtype, torch.float32)) / 2
    against = "eager attention in float64"
    try:
        truth, perturbed = _in_float64(ours, batch, unit)
        usable = not torch.where(real, truth, 0.0).isnan().any()
    except (RuntimeError, TypeError, ValueError):  # quantized, say, or cast to float32 on the way
        usable = False
    if not usable:
        against = "eager attention"
        truth, perturbed = eager, _perturbed(ours, batch, unit)
    deviation, *noise = (_distance(x, truth, real) for x in (found, eager, perturbed))
    ignored = tuple(name for name in ran if not any(_on_one_path(name, other) for other in called))
    said = _on_calls(type(model).__name__, called, ignored)
    close = deviation <= (bound := 4 * max(noise))
    verdict = f"{'agree with' if close else 'DEVIATE from'} {against}: off by {deviation:.2g}, accepted up to {bound:.2g}"
    if bound != bound:
        verdict = f"CANNOT BE COMPARED with {against}, which gives NaN by itself"
    return Checked(
        calls=len(called),
        layers=len(set(called)) + len(ignored),
        ignored=ignored,
        deviation=deviation,
        bound=bound,
        ok=close and bool(called) and not ignored,
        sentence=f"{said}; its {kind} {verdict}",
    )


def _on_calls(model: str, called: list[str], ignored: tuple[str, ...]) -> str:
    reached, names = len(set(called)), ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
    if not ignored and not called:
        return f"{model} has no attention layer that ran"
    if not ignored:
        return f"{model} computes attention with polyattn: {len(called)} calls from {reached} layers"
    if not called:
        return f"{model} IGNORES attn_implementation='polyattn': {len(ignored)} attention layers never call it ({names})"
    return f"{model} uses polyattn in {reached} layers, but {len(ignored)} attention layers never call it ({names})"


_NOT_SOFTMAX = ("Linear", "Lightning")  # ...Attention without a softmax over keys, in the names of classes


@contextmanager
def _counting(model: PreTrainedModel) -> Iterator[tuple[list[str], list[str]]]:
    """The names of the attention layers that run, and of the modules that call polyattn, as they do."""
    names = {module: name for name, module in model.named_modules()}
    layers = {
        module
        for module in names
        if "Attention" in (kind := type(module).__name__) and not any(word in kind for word in _NOT_SOFTMAX)
    }
    ran: list[str] = []
    called: list[str] = []

    def count(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        called.append(names.get(module, type(module).__name__))
        return attend(module, *args, **options)

    def note(module: torch.nn.Module, _: Any) -> None:
        if names[module] not in ran:
            ran.append(names[module])

    with ExitStack() as stack:
        for layer in layers:
            if layers.isdisjoint(set(layer.modules()) - {layer}):
                stack.callback(layer.register_forward_pre_hook(note).remove)
        AttentionInterface.register(NAME, count)
        stack.callback(register)
        yield ran, called


@contextmanager
def _masks_in_float32() -> Iterator[None]:
    """Eager attention hides with the least number of its dtype, and takes its softmax in float32: -inf, for float64,
    which makes a row that sees nothing NaN."""
    AttentionMaskInterface.register(
        "eager", lambda **options: eager_mask(**options | {"dtype": torch.float32})
    )
    try:
        yield
    finally:
        AttentionMaskInterface.register("eager", eager_mask)


def _on_one_path(a: str, b: str) -> bool:
    """Whether one of two modules is, or holds, the other."""
    return "" in (a, b) or f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _output(model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[torch.Tensor, str]:
    """The logits, or else the last hidden state, or else the first floats that the model gives; and their name."""
    given = {
        name: x.to(model.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in batch.items()
    }
    out = model(**given, return_dict=True)
    floats = {name: x for name, x in out.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    kind = next(name for name in ("logits", "last_hidden_state", *floats) if name in floats)
    return floats[kind], kind.replace("_", " ")


def _real(model: PreTrainedModel, batch: Mapping[str, Any], like: torch.Tensor) -> torch.Tensor:
    """Where the output is that of a token, not of padding: bools (B, L, 1, ...), or () if that is not known."""
    mask = batch.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
    if (
        mask is not None
        and mask.ndim == 2
        and like.shape[0] > mask.shape[0] > 0 == like.shape[0] % mask.shape[0]
    ):
        mask = mask.repeat_interleave(
            like.shape[0] // mask.shape[0], dim=0
        )  # several rows an item, as codebooks are
    if mask is None or mask.ndim != 2 or mask.shape != like.shape[:2]:
        return torch.ones((), dtype=torch.bool, device=like.device)
    return (mask != 0).reshape(*mask.shape, *(1,) * (like.ndim - 2))


def _in_float64(
    model: PreTrainedModel, batch: Mapping[str, Any], unit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the model in float64, and with its parameters perturbed."""
    model = copy.deepcopy(model).double()
    model.set_experts_implementation("eager")  # the others have no float64
    with torch.no_grad(), _masks_in_float32():
        truth, _ = _output(model, batch)
        return truth, _perturbed(model, batch, unit)


def _perturbed(model: PreTrainedModel, batch: Mapping[str, Any], unit: float) -> torch.Tensor:
    """The output of the model, whose parameters it changes: each is off by a relative `unit`, up or down."""
    signs = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in model.parameters():
            if w.is_floating_point():
                sign = 2 * torch.randint(2, w.shape, generator=signs).to(w.device) - 1
                w.copy_(w.double() * (1 + unit * sign))
        return _output(model, batch)[0]


def _distance(x: torch.Tensor, truth: torch.Tensor, real: torch.Tensor) -> float:
    """max |x - truth| over what is real; NaN if either has one there."""
    x = x.to(truth.dtype)
    return float(torch.where(real & (x != truth), (x - truth).abs(), 0.0).max())
