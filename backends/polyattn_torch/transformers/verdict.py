"""Whether a model computes with polyattn, and the same as eager attention."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from polyattn_torch.transformers.interface import NAME, attend, register

__all__ = ["Checked", "check"]


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
    if mask is not None and 0 < len(mask) < len(like) and len(like) % len(mask) == 0:
        mask = mask.repeat_interleave(len(like) // len(mask), dim=0)  # several rows an item, as codebooks are
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
