"""polyattn as the attention of Flax: `nnx.MultiHeadAttention(..., attention_fn=nnx_attention)`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from polyattn import AuxRequest
from polyattn._attention import Wish, attend
from polyattn.arrays import Array, is_array
from polyattn.calls import answers
from polyattn.mods import ScoreMod

try:
    from flax import nnx
    from flax.nnx.nn.dtypes import promote_dtype as _promote_dtype
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "flax"
    advice = "install it, pip install flax" if missing else "mend that installation"
    raise ImportError(
        f"polyattn_jax.nnx_attention: expected the package flax, got: {error}; {advice}"
    ) from error

__all__ = ["nnx_attention"]

_WHO = "polyattn_jax.nnx_attention"
_NO_WISH, _FULL = ("default", jax.lax.Precision.DEFAULT), ("highest", "float32", jax.lax.Precision.HIGHEST)
_PRECISE = (None, *_NO_WISH, *_FULL)


@answers("polyattn_jax.nnx_attention")
def nnx_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Any = _promote_dtype,
    is_causal: bool = False,
    *,
    query_offset: int | Array | None = None,
    score_mod: ScoreMod | None = None,
    scale: float | Array | None = None,
    sinks: float | Array | None = None,
    implementation: Wish = "auto",
) -> Array:
    """`polyattn.attention` with the arguments of `flax.nnx.dot_product_attention`.

        out = dropout(softmax(Q K^T / sqrt(D) + bias, over the keys that the mask shows)) V

    query (..., L, Hq, D), key (..., S, Hkv, D), value (..., S, Hkv, E) -> (..., L, Hq, E), any number of batch
    axes; Hkv divides Hq. bias and mask broadcast to (..., Hq, L, S). mask: an array, nonzero = may attend; or what
    `polyattn.attention` takes, such as `polyattn.masks.sliding_window(64)`. is_causal: query i sees keys 0 to i, as
    in Flax. dropout_rng: a key of JAX, from which a seed is made unless deterministic; polyattn draws other weights
    than Flax, and independently, so broadcast_dropout=True is refused. dtype, promote_dtype: as in Flax; scores and
    sums are at least float32. precision: None, DEFAULT or HIGHEST. module: the weights before dropout, (..., Hq, L, S), are
    sown into it as nnx.Intermediate "attention_weights". The others are those of `polyattn.attention`, which
    `functools.partial` gives; query_offset is 0 for is_causal.

    A row that sees nothing gives 0; in Flax it gives the mean of the values. Errors: ValueError for what is refused
    and for wrong shapes, TypeError for wrong dtypes and for what is no key.

    >>> layer = nnx.MultiHeadAttention(4, 32, decode=False, attention_fn=nnx_attention, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 10, 32)), is_causal=True).shape
    (2, 10, 32)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    if not all(p in _PRECISE for p in (precision if isinstance(precision, tuple) else (precision,))):
        raise _refusal(
            "precision None or jax.lax.Precision.HIGHEST",
            repr(precision),
            "polyattn multiplies in full precision; in nnx.MultiHeadAttention the argument is that of the projections, too",
        )
    if is_causal is True and query_offset is None:
        if min(query.ndim, key.ndim) > 2 and query.shape[-3] == 1 < key.shape[-3]:
            raise _refusal(
                "is_causal=False for one query",
                f"is_causal=True with {key.shape[-3]} keys, of which the first alone would be seen",
                "with decode=True the mask is causal already; otherwise pass query_offset, the position of the query",
            )
        query_offset = 0
    dropping = not deterministic and dropout_rate > 0.0
    if dropping and broadcast_dropout:
        raise _refusal(
            "broadcast_dropout=False where dropout is active",
            f"broadcast_dropout={broadcast_dropout!r} with dropout_rate={dropout_rate!r}",
            "polyattn drops the weights of each batch item and head independently; say so to nnx.MultiHeadAttention",
        )
    out, aux = attend(
        _WHO,
        query,
        key,
        value,
        bias=jnp.asarray(bias) if is_array(bias) else bias,
        mask=jnp.asarray(mask) != 0 if is_array(mask) else mask,
        is_causal=is_causal,
        query_offset=query_offset,
        dropout_rate=0.0 if deterministic else dropout_rate,
        dropout_seed=_seed(dropout_rng) if dropping else None,
        layout="BLHD",
        score_mod=score_mod,
        scale=scale,
        sinks=sinks,
        implementation=implementation,
        return_aux=AuxRequest(weights=module is not None),
    )
    if module is not None:
        module.sow(nnx.Intermediate, "attention_weights", jnp.astype(aux.weights, query.dtype))
    return out


def _seed(key: Any) -> Array:
    """32 random bits of a JAX key, under jit too."""
    try:
        return jax.random.bits(key, dtype=jnp.uint32)
    except (TypeError, ValueError) as error:
        got = f"{key.dtype} of shape {key.shape}" if isinstance(key, jax.Array) else type(key).__name__
        raise TypeError(
            f"{_WHO}: expected dropout_rng to be one key of JAX, got {got}; pass "
            "jax.random.key(...), another one for each step, or deterministic=True outside training"
        ) from error


def _refusal(expected: str, got: str, advice: str) -> ValueError:
    return ValueError(f"{_WHO}: expected {expected}, got {got}; {advice}")
