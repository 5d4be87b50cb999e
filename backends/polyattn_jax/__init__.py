"""polyattn on JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

try:
    import jax
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name in ("jax", "jaxlib")
    advice = "install it, pip install 'polyattn[jax]'" if missing else "mend that installation"
    raise type(error)(
        f"polyattn_jax: expected the package jax, got: {error}; {advice}", name=error.name
    ) from error
import array_api_compat
import jax.numpy as jnp

from polyattn import mods
from polyattn._attention import AttentionAux
from polyattn.arrays import Array, Backend, TileSizes
from polyattn.implementations import BLOCKWISE, REFERENCE, Implementation, Output
from polyattn.implementations.blockwise import few_rows, symbols
from polyattn_jax.eager import captures_derived, platform, run_eagerly
from polyattn_jax.fused import FUSED
from polyattn_jax.linear import with_pullback
from polyattn_jax.sharding import axes_of, vary

xp = array_api_compat.array_namespace(jnp.zeros(()))


class JaxBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:
            return None
        return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)

    def matmul(self, a: Array, b: Array) -> Array:
        if half := next((x.dtype for x in (a, b) if jnp.dtype(x.dtype).itemsize == 2), None):
            # In a kernel: multiplied as they are, which is exact, and summed in float32.
            return jnp.matmul(a.astype(half), b.astype(half), preferred_element_type=jnp.float32)
        # The default precision of an accelerator rounds float32 to TF32 or bfloat16.
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def linear(self, x: Array, w: Array) -> Array:
        return jnp.matmul(x, w)

    def erf(self, x: Array) -> Array:
        # XLA's, compiled, stops at 1 - 2^-23 before JAX 0.10.2, and gelu multiplies what is missing by x.
        edge = 6.0 if x.dtype == jnp.float64 else 4.0
        return jnp.where(jnp.abs(x) < edge, jax.lax.erf(x), jnp.sign(x))

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def is_concrete(self, x: Array) -> bool:
        return not isinstance(x, jax.core.Tracer)

    def eager(self) -> Any:
        return jax.ensure_compile_time_eval()

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def symbol(self, size: Any) -> Any:
        return jnp.asarray(size, jnp.int32)

    def device(self, x: Array) -> Any:
        return None  # uncommitted: JAX moves it to the other operand

    def tile_sizes(self, p: Any) -> TileSizes:
        group = max(p.frame.heads // max(p.k.shape[1], 1), 1)
        if platform(p.q) != "cpu":
            return TileSizes(rows=256, keys=256, kv_heads=None)
        # Two query heads at once, tiles of 512 x 512: measured 2026-11-21.
        return TileSizes(rows=512, keys=512, kv_heads=max(2 // group, 1))

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        if n == 1:
            return tuple(x[None] for x in f(0))
        return jax.lax.map(f, jnp.arange(n, dtype=jnp.int32))

    def fold(self, n: Any, step: Callable[[Any, Any], Any], state: Any) -> Any:
        if isinstance(n, int) and n == 1:
            return step(0, state)
        axes = _varying(lambda state: step(jnp.int32(0), state), state)
        return jax.lax.fori_loop(0, n, lambda i, state: vary(step(i, state), axes), vary(state, axes))

    def scan(self, n: int, step: Any, state: Any) -> Any:
        if n == 1:
            state, output = step(0, state)
            return state, output[None]
        axes = _varying(lambda state: step(jnp.int32(0), state)[0], state)

        def varied(state: Any, i: Any) -> Any:
            state, output = step(i, state)
            return vary(state, axes), output

        return jax.lax.scan(varied, vary(state, axes), jnp.arange(n, dtype=jnp.int32))

    def table(self, numbers: Any, like: Array) -> Any:
        return jnp.asarray(numbers, jnp.int32)

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        return x if x.shape[axis] == size else jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    def put(self, x: Array, start: Any, tile: Array, axis: int, *, over: bool = False) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, tile, start, axis)

    def add_at(self, x: Array, start: Sequence[Any], tile: Array) -> Array:
        start = tuple(jnp.asarray(i, jnp.int32) for i in start)
        return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, start, tile.shape) + tile, start)

    def compiled(self, f: Callable[..., Any], static: Any, arrays: Sequence[Any]) -> Any:
        if all(self.is_concrete(x) for x in arrays):
            return run_eagerly(f, static, arrays)
        return f(static, arrays)

    jits = True

    def jit(self, f: Callable[..., Any], *, given_up: int | None = None) -> Callable[..., Any]:
        return jax.jit(f, donate_argnums=() if given_up is None else given_up)

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        return jax.vjp(f, x)[1](cotangent)[0]

    def recomputed(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.checkpoint(f)

    def kernels(self) -> Any:
        from polyattn_jax.fused.kernels import KERNELS  # for commands alone

        return KERNELS

    def custom_vjp(self, forward: Any, backward: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        # The gradient of an array must vary as the array does; that of `pcast` sums it over the devices.
        return with_pullback(forward, backward, vary(list(arrays), _varying(forward, arrays)))


def _varying(step: Callable[[Any], Any], state: Any) -> frozenset[str]:
    """The mesh axes along which `step` makes a state vary: none outside `jax.shard_map`.

    There a loop begins with zeros, the same on every device, and ends with sums that are not; JAX wants the type
    of the one to be that of the other.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return frozenset()
    return axes_of(jax.tree.leaves(jax.eval_shape(step, state)))


def _why_not_cudnn(p: Any) -> str | None:
    if platform(p.q) != "gpu":
        return "there is no GPU, and on other devices jax.nn.dot_product_attention is no fused kernel"
    if p.q.dtype not in (jnp.float16, jnp.bfloat16):
        return "q, k and v are neither float16 nor bfloat16"
    if p.q.shape[3] != p.v.shape[3] or p.q.shape[3] > 128:
        return "the widths differ or exceed 128"
    return "there is nothing to compute" if 0 in (*p.scores_shape, p.q.shape[3]) else _no_cudnn()


@cache
def _no_cudnn() -> str | None:
    """Why JAX has no cuDNN here: the library may be missing beside its own."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x)
    except (RuntimeError, NotImplementedError) as error:
        return f"JAX says: {str(error).rstrip('.')}"
    return None


def _cudnn(p: Any, settings: Any) -> Output:
    q, k, v = (
        jnp.swapaxes(jnp.broadcast_to(x, (p.frame.batch, *x.shape[1:])), 1, 2) for x in (p.q, p.k, p.v)
    )  # (B, L, H, D)
    out = jax.nn.dot_product_attention(
        q, k, v, scale=p.scale, is_causal=p.mask is not None, implementation="cudnn"
    )
    return Output(jnp.swapaxes(out, 1, 2))


def _why_not_blockwise(p: Any) -> str | None:
    """Why the engine cannot run, or would lose a gradient, which it must not."""
    if reason := symbols(p):
        return reason
    score, place = jnp.zeros((1, 1, 1, 1), p.compute_dtype), jnp.zeros((1, 1, 1, 1), jnp.int32)
    for f in mods.functions(p.score_mod):
        if captures_derived(f, score, *[place] * 4):
            return "score_mod captures an array that a derivative is taken by, which the engine cannot see"
    return None


CUDNN = Implementation(
    name="native",
    title="cuDNN through jax.nn.dot_product_attention",
    accepts=frozenset({"causal"}),
    run=_cudnn,
    why_not=_why_not_cudnn,
    why="cuDNN is the fastest where it is exact",
    transforms=frozenset({"grad", "vmap", "compile"}),
)
JaxBackend.implementations = (
    CUDNN,
    FUSED,
    replace(
        BLOCKWISE,
        why_not=_why_not_blockwise,
        passed_over=few_rows(64),
        transforms=BLOCKWISE.transforms | {"jvp"},
    ),
    REFERENCE,
)


# Results of `attention` may leave a jitted function: the name of the implementation is static.
jax.tree_util.register_dataclass(
    AttentionAux,
    data_fields=["lse", "weights", "scores", "max_scores"],
    meta_fields=["implementation"],
)

backend = JaxBackend("jax", xp)


def __getattr__(name: str) -> Any:
    if name in ("nnx_module", "equinox_module"):  # the layers load with them, not with every array
        from polyattn_jax import modules

        return getattr(modules, name)
    if name == "nnx_attention":  # loads Flax
        from polyattn_jax.flax import nnx_attention

        return nnx_attention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
