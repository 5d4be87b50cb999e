"""Derivatives that are there once: whoever wants a second one is told so, rather than given none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyattn.arrays import Array
from polyattn_torch.state import can_read, wants_gradients

__all__ = ["given_once", "seal"]


def given_once(q: Array, *others: Array | None) -> tuple[Any, ...]:
    """The inputs of a kernel that has no second derivative."""
    given = (q, *others)
    if not wants_gradients(*given) or not can_read(q) or torch.jit.is_tracing():
        return given
    return tuple(_Input.apply(x) if x is not None and x.requires_grad else x for x in given)


def seal(gradients: Sequence[Array | None], sources: Sequence[Array]) -> tuple[Array | None, ...]:
    """Gradients that were made of `sources`; a derivative of them is an error in words, with create_graph too."""
    if not wants_gradients(*sources):
        return tuple(gradients)
    there = [x for x in gradients if x is not None]
    sealed = iter(_Sealed.apply(len(there), *there, *sources))
    return tuple(None if x is None else next(sealed) for x in gradients)


class _Input(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Array) -> Array:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        return seal([cotangent], [cotangent])[0]


class _Sealed(torch.autograd.Function):
    @staticmethod
    def forward(count: int, *given: Array) -> tuple[Array, ...]:
        return tuple(x.view_as(x) for x in given[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        raise NotImplementedError(
            "polyattn.attention: expected one derivative of a kernel of PyTorch or of the blockwise engine, got the "
            "derivative of a gradient; use implementation='reference', which has all orders"
        )
