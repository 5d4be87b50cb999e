"""What PyTorch is doing at the moment: autocast, compilers, transforms."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from polyattn.arrays import Array


def precisely(x: Array) -> AbstractContextManager[Any]:
    """Where torch.autocast is on, it takes products of float32 in half precision; inside, it does not."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def can_read(x: Array) -> bool:
    """Whether values can be read now, and no transform of `torch.func` looks on."""
    return not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x))


def wants_gradients(*given: Array | None) -> bool:
    """Whether autograd follows what is made of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)


def may_write_into(x: Array, tile: Array) -> bool:
    """Whether a part of `x` can be overwritten by `tile` without autograd, a transform or a compiler noticing."""
    frozen = x.is_inference() and not torch.is_inference_mode_enabled()
    return can_read(x) and can_read(tile) and not wants_gradients(x, tile) and not frozen


def derives_again(x: Array) -> bool:
    """Whether a transform of torch.func or forward mode looks on."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x) or torch.autograd.forward_ad._current_level >= 0
