"""polyattn on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

try:
    import torch
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
    advice = "install it, pip install 'polyattn[torch]'" if missing else "mend that installation"
    raise type(error)(
        f"polyattn_torch: expected the package torch, got: {error}; {advice}", name=error.name
    ) from error
import array_api_compat.torch as xp
from torch.utils.checkpoint import checkpoint

from polyattn.arrays import Array, Backend, TileSizes
from polyattn.arrays.interchange import copied
from polyattn.arrays.random import threefry2x32
from polyattn.implementations import BLOCKWISE, REFERENCE
from polyattn_torch.flex_kernel import FLEX
from polyattn_torch.fused import FUSED
from polyattn_torch.native import FLASH, SDPA
from polyattn_torch.once import seal
from polyattn_torch.reasons import passed_over_blockwise, why_not_blockwise, why_not_definition
from polyattn_torch.state import can_read, derives_again, may_write_into, precisely

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
    implementations = (
        SDPA,
        FLASH,
        FLEX,
        FUSED,
        replace(
            BLOCKWISE,
            why_not=why_not_blockwise,
            passed_over=passed_over_blockwise,
            transforms=frozenset({"grad", "compile"}),
        ),
        replace(REFERENCE, why_not=why_not_definition),
    )

    def unfit(self, x: Array, plain: bool) -> str | None:
        if isinstance(x, torch.fx.Proxy):
            return (
                "a tensor, got a Proxy of torch.fx.symbolic_trace; trace with torch.export or torch.compile, or keep "
                "the call whole, torch.fx.wrap of a function that makes it"
            )
        if x.is_nested and not (plain and x.layout == torch.jagged):
            return (
                "a tensor with one length for all items (nested ones of layout torch.jagged go to PyTorch's kernel, "
                "where no other argument is given), got a nested tensor; pad it, torch.nested.to_padded_tensor, and "
                "say masks.key_lengths(lengths), or lay the items end to end and say masks.segments(ids)"
            )
        if x.layout not in (torch.strided, torch.jagged):
            return f"a dense tensor, got one of layout {x.layout}; call its to_dense()"
        return None

    def compute_dtype(self, dtype: Any) -> Any:
        return _COMPUTE.get(dtype)

    def astype(self, x: Array, dtype: Any) -> Array:
        return x.to(dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        with precisely(a):
            return torch.matmul(a, b)

    def linear(self, x: Array, w: Array) -> Array:
        return torch.matmul(x, w)

    def cumulative_sum(self, x: Array, axis: int) -> Array:
        return torch.cumsum(x, axis)  # array_api_compat's looks at types, which Dynamo warns of

    def erf(self, x: Array) -> Array:
        return torch.erf(x)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def autocast(self, *arrays: Array) -> tuple[Array, ...]:
        # Of one dtype they stay as they are, so that autocast does not take the scores in half precision.
        kind = arrays[0].device.type
        if len({x.dtype for x in arrays}) == 1 or kind == "meta" or not torch.is_autocast_enabled(kind):
            return arrays
        narrow = (torch.float16, torch.bfloat16, torch.float32)
        to = torch.get_autocast_dtype(kind)
        return tuple(x.to(to) if x.dtype in narrow else x for x in arrays)

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
        x = copied(x)
        bits = x.view("int16") if x.dtype.name == "bfloat16" else x
        try:
            made = torch.from_numpy(bits).to(like.device)
        except TypeError as error:
            raise TypeError(
                f"polyattn: expected an array of a dtype that PyTorch has, got {x.dtype}; cast it first"
            ) from error
        return made.view(torch.bfloat16) if bits is not x else made

    def tile_sizes(self, p: Any) -> TileSizes:
        # All heads at once: every tile is one batched product (measured 2026-11-21).
        return TileSizes(rows=256, keys=256, kv_heads=None)

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        if isinstance(start, torch.Tensor):  # of a tile that is traced once for all places
            return x.index_select(axis, torch.arange(size, device=x.device) + start)
        return x.narrow(axis, start, size)

    def summed_at(self, x: Array, index: Array, count: int) -> Array:
        if x.device.type != "cpu":  # there the order of the sum is another one at every call
            return super().summed_at(x, index, count)
        index = torch.where((index >= 0) & (index < count), index, count).long()[:, None]
        return x.new_zeros((*x.shape[:2], count + 1)).scatter_add(2, index.expand(x.shape), x)[..., :count]

    def put(self, x: Array, start: Any, tile: Array, axis: int, *, over: bool = False) -> Array:
        if over and x.is_contiguous() and may_write_into(x, tile):
            x.narrow(axis, start, tile.shape[axis]).copy_(tile)
            return x
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

    def recomputed(self, f: Callable[..., Any]) -> Callable[..., Any]:
        def again(*arrays: Any) -> Any:
            tensors = [x for x in arrays if isinstance(x, torch.Tensor)]
            if torch.compiler.is_compiling() or any(map(derives_again, tensors)):
                return f(
                    *arrays
                )  # a compiler decides by itself; torch.func and forward mode have no checkpoints
            return checkpoint(f, *arrays, use_reentrant=False, preserve_rng_state=False)

        return again

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


def _backward_once(ctx: Any, *cotangents: Array) -> Any:
    with torch.no_grad():
        _, _, *gradients = _backward(ctx, *cotangents)
    return None, None, *seal(gradients, (*ctx.saved_tensors, *cotangents))


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

    backward = staticmethod(_backward_once)


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
