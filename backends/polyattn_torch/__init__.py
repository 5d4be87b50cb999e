"""polyattn on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

try:
    import array_api_compat.torch as xp
    import torch
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
    advice = "install it, pip install torch" if missing else "mend that installation"
    raise ImportError(f"polyattn_torch: expected the package torch, got: {error}; {advice}") from error

from polyattn.arrays import Array, Backend, TileSizes
from polyattn.arrays.random import threefry2x32
from polyattn_torch.native import IMPLEMENTATIONS
from polyattn_torch.state import can_read, precisely

_OPAQUE: dict[Callable[..., Any], Callable[..., Any]] = {}


def _opaque_threefry() -> None:
    # Inductor inlines every use of an intermediate value: twenty rounds that use each value twice
    # would take it 2^20 steps, so the generator is an operator of its own.
    @torch.library.custom_op("polyattn::threefry2x32", mutates_args=())
    def threefry(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return threefry2x32(a, b, c, d)

    @threefry.register_fake
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
    array_types = (torch.Tensor, torch.nn.Parameter)
    implementations = IMPLEMENTATIONS

    def compute_dtype(self, dtype: Any) -> Any:
        return _COMPUTE.get(dtype)

    def astype(self, x: Array, dtype: Any) -> Array:
        return x.to(dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        with precisely(a):
            return torch.matmul(a, b)

    def linear(self, x: Array, w: Array) -> Array:
        return torch.matmul(x, w)

    def erf(self, x: Array) -> Array:
        return torch.erf(x)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def is_concrete(self, x: Array) -> bool:
        return not (torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(x))

    def may_remember(self) -> bool:
        return not torch.compiler.is_compiling()

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def to_numpy(self, x: Array) -> Array:
        x = x.detach().cpu()
        if x.dtype != torch.bfloat16:
            return x.numpy()
        import ml_dtypes  # NumPy has no bfloat16 of its own

        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    def from_numpy(self, x: Array, like: Array) -> Array:
        if x.dtype.name == "bfloat16":
            return torch.tensor(x.view("int16"), device=like.device).view(torch.bfloat16)
        return torch.tensor(x, device=like.device)

    def tile_sizes(self, p: Any) -> TileSizes:
        # All heads at once: every tile is one batched product (measured 2026-11-21).
        return TileSizes(rows=256, keys=256, kv_heads=None)

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        return x.narrow(axis, start, size)

    def put(self, x: Array, start: Any, tile: Array, axis: int) -> Array:
        if isinstance(start, torch.Tensor):  # traced: what would lie outside lies at the edge, as in JAX
            start = start.clamp(0, x.shape[axis] - tile.shape[axis])
        return x.index_copy(axis, torch.arange(tile.shape[axis], device=x.device) + start, tile)

    def exp_of_difference(self, x: Array, y: Array) -> Array:
        if torch.is_grad_enabled() or not can_read(x):
            return torch.exp(x - y)
        return x.sub_(y).exp_()

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(f(x), x, cotangent, materialize_grads=True)
        return gradient

    def custom_vjp(self, forward: Any, backward: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        rule = _CompiledRule if torch.compiler.is_compiling() else _Rule
        return rule.apply(forward, backward, *arrays)

    def opaque(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return _OPAQUE[f] if torch.compiler.is_compiling() else f

    def block_mask(
        self, mask: Any, b: int | None, h: int | None, rows: int, keys: int, **options: Any
    ) -> Any:
        """A polyattn mask as FlexAttention's BlockMask."""
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(getattr(mask, "mask_mod", mask), b, h, rows, keys, **options)

    def device(self, x: Array) -> Any:
        return x.device


def _backward(ctx: Any, *cotangents: Array) -> Any:
    saved, rule = ctx.saved_tensors, ctx.rule  # Dynamo takes ctx.rule(...) for a method of the context
    return None, None, *rule(saved[: ctx.inputs], saved[ctx.inputs :], cotangents)


class _Rule(torch.autograd.Function):
    """Outputs with a derivative of their own as one step of autograd: saves inputs and outputs alone."""

    @staticmethod
    def forward(forward: Any, backward: Any, *arrays: Array) -> tuple[Array, ...]:
        return forward(arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.rule, *arrays = inputs
        ctx.inputs = len(arrays)
        ctx.save_for_backward(*arrays, *output)

    backward = staticmethod(torch.autograd.function.once_differentiable(_backward))


class _CompiledRule(torch.autograd.Function):
    """The same in the one form that Dynamo traces; torch.func wants the other."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, *arrays: Array) -> tuple[Array, ...]:
        outputs = forward(arrays)
        ctx.rule, ctx.inputs = backward, len(arrays)
        ctx.save_for_backward(*arrays, *outputs)
        return outputs

    backward = staticmethod(_backward)


backend = TorchBackend("torch", xp)


def __getattr__(name: str) -> Any:
    if name == "Module":  # the layers load with it, not with every tensor
        from polyattn_torch.module import Module

        return Module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
