"""polyattn on JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import array_api_compat
import jax
import jax.numpy as jnp

from polyattn._attention import AttentionAux
from polyattn.arrays import Array, Backend, Schedule
from polyattn.implementations.choice import Output
from polyattn.masks import causal

xp = array_api_compat.array_namespace(jnp.zeros(()))


class JaxBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:
            return None
        return jnp.promote_types(dtype, jnp.float32)

    def matmul(self, a: Array, b: Array) -> Array:
        # The default precision of an accelerator rounds float32 to TF32 or bfloat16.
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def linear(self, x: Array, w: Array) -> Array:
        return jnp.matmul(x, w)

    def erf(self, x: Array) -> Array:
        return jax.lax.erf(x)

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def is_concrete(self, x: Array) -> bool:
        return not isinstance(x, jax.core.Tracer)

    def eager(self) -> Any:
        return jax.ensure_compile_time_eval()

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def device(self, x: Array) -> Any:
        return None  # uncommitted: JAX moves it to the other operand

    def native(self, p: Any, needs_lse: bool, *, by_name: bool = False) -> Any:
        if jax.default_backend() != "gpu":
            return "there is no GPU, and on other devices jax.nn.dot_product_attention is no fused kernel"
        reasons = {
            "q, k and v are neither float16 nor bfloat16": p.q.dtype not in (jnp.float16, jnp.bfloat16),
            "there is a score_mod, bias, sink or dropout": p.score_mod is not None
            or p.bias is not None
            or p.sinks is not None
            or p.dropout_rate > 0.0,
            "lse is wanted, which the kernel gives without its gradient": needs_lse,
            "scale is an array": not isinstance(p.scale, float),
            "the widths differ or exceed 128": p.q.shape[3] != p.v.shape[3] or p.q.shape[3] > 128,
            "the mask is not plain causal with L == S": p.mask is not None
            and not (
                p.mask == causal()
                and p.frame.rows == p.frame.keys
                and isinstance(p.offset, int)
                and p.offset == 0
            ),
            "there is nothing to compute": 0 in (*p.scores_shape, p.q.shape[3]),
        }
        return next((reason for reason, holds in reasons.items() if holds), _cudnn)

    def prefer(self, p: Any) -> tuple[str, str]:
        if not isinstance(p.scores_bytes, int):  # as when Keras asks for the shape of a result
            return "reference", "the sizes are symbols of jax.export"
        if jax.default_backend() == "gpu":
            return "native", "cuDNN is the fastest where it is exact"
        return self.prefer_without_native(p)

    def prefer_without_native(self, p: Any) -> tuple[str, str]:
        rows = p.frame.rows * p.frame.heads // max(p.k.shape[1], 1)
        if rows <= 64 and p.scores_bytes <= 2**28:
            return "reference", "a few query rows: one product per kv head, K and V read once"
        return super().prefer_without_native(p)

    def schedule(self, p: Any) -> Schedule:
        group = max(p.frame.heads // max(p.k.shape[1], 1), 1)
        if jax.default_backend() != "cpu":
            return Schedule(rows=256, keys=256, heads=0)
        # Two query heads at once, tiles of 512 x 512: measured 2026-11-21.
        return Schedule(rows=512, keys=512, heads=max(2 // group, 1))

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        if n == 1:
            return tuple(x[None] for x in f(0))
        return jax.lax.map(f, jnp.arange(n, dtype=jnp.int32))

    def fold(self, n: Any, step: Callable[[Any, Any], Any], state: Any) -> Any:
        if isinstance(n, int) and n == 1:
            return step(0, state)
        axes = _varying(lambda state: step(jnp.int32(0), state), state)
        return jax.lax.fori_loop(0, n, lambda i, state: _vary(step(i, state), axes), _vary(state, axes))

    def scan(self, n: int, step: Any, state: Any) -> Any:
        if n == 1:
            state, output = step(0, state)
            return state, output[None]
        axes = _varying(lambda state: step(jnp.int32(0), state)[0], state)

        def varied(state: Any, i: Any) -> Any:
            state, output = step(i, state)
            return _vary(state, axes), output

        return jax.lax.scan(varied, _vary(state, axes), jnp.arange(n, dtype=jnp.int32))

    def table(self, numbers: Any, like: Array) -> Any:
        return jnp.asarray(numbers, jnp.int32)

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        return x if x.shape[axis] == size else jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    def put(self, x: Array, start: Any, tile: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, tile, start, axis)

    def add_at(self, x: Array, start: Sequence[Any], tile: Array) -> Array:
        start = tuple(jnp.asarray(i, jnp.int32) for i in start)
        return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, start, tile.shape) + tile, start)

    def compiled(self, f: Callable[..., Any], static: Any, arrays: Sequence[Any]) -> Any:
        if all(self.is_concrete(x) for x in arrays):
            return _compiled(f, static)(arrays)
        return f(static, arrays)

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        return jax.vjp(f, x)[1](cotangent)[0]

    def custom_vjp(self, forward: Any, backward: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        @jax.custom_vjp
        def run(arrays: list[Array]) -> tuple[Array, ...]:
            return forward(arrays)

        def save(arrays: list[Array]) -> Any:
            outputs = forward(arrays)
            return outputs, (arrays, outputs)

        def pull(saved: Any, cotangents: Any) -> Any:
            return (list(backward(*saved, cotangents)),)

        run.defvjp(save, pull)
        arrays = list(arrays)
        # The gradient of an array must vary as the array does; that of `pcast` sums it over the devices.
        return run(_vary(arrays, _varying(forward, arrays)))


def _varying(step: Callable[[Any], Any], state: Any) -> frozenset[str]:
    """The mesh axes along which `step` makes a state vary: none outside `jax.shard_map`.

    There a loop begins with zeros, the same on every device, and ends with sums that are not; JAX wants the type
    of the one to be that of the other.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return frozenset()
    return _axes(jax.tree.leaves(jax.eval_shape(step, state)))


def _axes(leaves: Sequence[Any]) -> frozenset[str]:
    types = [x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x) for x in leaves]
    # Older JAX has the axes as `vma`; with check_vma=False there are none.
    kinds = [getattr(t, "manual_axis_type", None) for t in types]
    axes = [
        getattr(t, "vma", None) if kind is None else kind.varying
        for t, kind in zip(types, kinds, strict=True)
    ]
    return frozenset[str]().union(*(some or () for some in axes))


def _vary(state: Any, axes: frozenset[str]) -> Any:
    """`state` with every array of the type that varies along `axes`; the numbers stay what they are."""
    if not axes:
        return state
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(axes - _axes([x]))), to="varying"), state)


def _cudnn(p: Any) -> Output:
    q, k, v = (
        jnp.swapaxes(jnp.broadcast_to(x, (p.frame.batch, *x.shape[1:])), 1, 2) for x in (p.q, p.k, p.v)
    )
    out = jax.nn.dot_product_attention(
        q, k, v, scale=p.scale, is_causal=p.mask is not None, implementation="cudnn"
    )
    return Output(jnp.swapaxes(out, 1, 2), None)


@lru_cache(maxsize=256)
def _compiled(f: Callable[..., Any], static: Any) -> Callable[..., Any]:
    """An eager call is compiled once for what it has static; `jit` keeps the shapes apart."""
    return jax.jit(partial(f, static))


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
