"""polyattn on PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch

from polyattn.backend import Array, Backend
from polyattn.dropout import threefry2x32

_OPAQUE: dict[Callable[..., Any], Callable[..., Any]] = {}


def _opaque_threefry() -> None:
    # Inductor inlines every use of an intermediate value: twenty rounds that use each value twice
    # would take it 2^20 steps, so the generator is an operator of its own.
    @torch.library.custom_op("polyattn::threefry2x32", mutates_args=())  # type: ignore[untyped-decorator]
    def threefry(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return threefry2x32(a, b, c, d)

    @threefry.register_fake  # type: ignore[untyped-decorator]
    def _(a: Any, b: Any, c: Any, d: Any) -> Any:
        shape = torch.broadcast_shapes(a.shape, b.shape, c.shape, d.shape)
        return c.new_empty(shape), c.new_empty(shape)

    _OPAQUE[threefry2x32] = threefry


_opaque_threefry()

_COMPUTE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class TorchBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        return _COMPUTE.get(dtype)

    def astype(self, x: Array, dtype: Any) -> Array:
        return x.to(dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        return torch.matmul(a, b)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def is_concrete(self, x: Array) -> bool:
        return not (torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(x))

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def opaque(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return _OPAQUE[f] if torch.compiler.is_compiling() else f

    def block_mask(
        self, mask: Any, b: int | None, h: int | None, rows: int, keys: int, **options: Any
    ) -> Any:
        """A polyattn mask as FlexAttention's BlockMask."""
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(mask.mask_mod, b, h, rows, keys, **options)

    def device(self, x: Array) -> Any:
        return x.device


backend = TorchBackend("torch", xp)
