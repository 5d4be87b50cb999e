"""polyattn on JAX."""

from __future__ import annotations

from typing import Any

import array_api_compat
import jax
import jax.numpy as jnp

from polyattn.attention import AttentionAux
from polyattn.backend import Array, Backend

xp = array_api_compat.array_namespace(jnp.zeros(()))


class JaxBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:
            return None
        return jnp.promote_types(dtype, jnp.float32)

    def matmul(self, a: Array, b: Array) -> Array:
        # The default precision of an accelerator rounds float32 to TF32 or bfloat16.
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def is_concrete(self, x: Array) -> bool:
        return not isinstance(x, jax.core.Tracer)

    def to_list(self, x: Array) -> Any:
        return x.tolist()

    def device(self, x: Array) -> Any:
        return None  # uncommitted: JAX moves it to the other operand


# Results of `attention` may leave a jitted function: the name of the implementation is static.
jax.tree_util.register_dataclass(
    AttentionAux,
    data_fields=["lse", "weights", "scores", "max_scores"],
    meta_fields=["implementation"],
)

backend = JaxBackend("jax", xp)
