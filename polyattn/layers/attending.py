"""What layers of attention have in common: a call gives the array, `run` gives all there is."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

from polyattn._attention import AttentionAux, AuxRequest, attend
from polyattn.arrays import Array
from polyattn.arrays.numbers import SameArray
from polyattn.calls import shown
from polyattn.layers.layer import Layer, LayerResult, Params

__all__ = ["AttentionLayer", "Memory", "OneAttention"]


class Memory(NamedTuple):
    """The keys and values that a layer makes of a context, once for all calls that look at it.

    >>> import numpy as np
    >>> from polyattn.layers import MultiHeadAttention
    >>> layer, x, context = MultiHeadAttention(8, 2), np.ones((5, 8)), np.ones((7, 8))
    >>> params = layer.init(0, like=x)
    >>> memory = layer.remember(params, context)
    >>> memory.key.shape, bool((layer(params, x, memory) == layer(params, x, context)).all())
    ((2, 7, 4), True)
    """

    key: Array  # (..., Hkv, S, D), before rotation
    value: Array  # (..., Hkv, S, D)


class AttentionLayer(Layer):
    """A layer that attends, once or often: `layer(...)` is `layer.run(...).out`.

    A call always returns the array. What else there is, a longer cache and what the attention saw, comes in the
    `LayerResult` of `run`, the only one that takes cache and return_aux.

    >>> import numpy as np
    >>> from polyattn import AuxRequest
    >>> from polyattn.layers import MultiHeadAttention
    >>> layer, x = MultiHeadAttention(8, 2), np.ones((5, 8))
    >>> out, cache, aux = layer.run(layer.init(0, like=x), x, return_aux=AuxRequest(weights=True))
    >>> out.shape, cache, aux.weights.shape
    ((5, 8), None, (2, 5, 5))
    """

    embed_dim: int  # of x
    dropout_rate: float = 0.0

    @property
    def window(self) -> int | None:
        """How many of the latest keys a token sees at most, itself among them; None = all, or as the call says."""
        return None

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> Any:
        """A cache for this layer with room for so many tokens, without any."""
        raise TypeError(
            f"{self.name}: expected a layer that keeps keys and values, got one without a cache; compute all"
        )

    def remember(self, params: Params, context: Array) -> Any:
        """What calls take in place of this context: made of it once (`Memory`) where a layer can, or the context itself."""
        return context

    @overload
    def __call__(self, params: Params, x: SameArray, *others: Any, **options: Any) -> SameArray: ...
    @overload
    def __call__(self, params: Params, **options: Any) -> Array: ...
    def __call__(self, params: Params, *inputs: Any, **options: Any) -> Array:
        if asked := [name for name in ("cache", "return_aux") if name in options]:
            line = ", ".join(f"{name}=..." for name in asked)
            raise TypeError(
                f"{self.name}: expected neither cache nor return_aux in a call, which returns an array alone, got "
                f"{' and '.join(asked)}; write out, cache, aux = layer.run(params, x, ..., {line})"
            )
        return self.run(params, *inputs, **options).out

    def run(self, params: Params, *inputs: Any, **options: Any) -> LayerResult:
        """The call with cache and return_aux, as a `LayerResult`."""
        raise NotImplementedError

    def check_heads(self, num_heads: int, head_dim: int | None, kv_heads: int = 1) -> None:
        """A ValueError unless heads have a width, and kv heads serve equally many of them."""
        if head_dim is None and self.embed_dim % num_heads:
            raise ValueError(
                f"{self.name}: expected num_heads to divide embed_dim, got embed_dim={self.embed_dim} and "
                f"num_heads={num_heads}; change one of them, or give head_dim"
            )
        if num_heads % kv_heads:
            raise ValueError(
                f"{self.name}: expected num_kv_heads to divide num_heads, got num_heads={num_heads} and "
                f"num_kv_heads={kv_heads}; each kv head serves equally many query heads"
            )

    def check_cache(self, cache: Any) -> None:
        """A TypeError unless this is a cache, by what it has: whether it is a `Cache` costs its arrays."""
        if not all(hasattr(type(cache), name) for name in ("append", "in_order", "mask")):
            raise TypeError(
                f"{self.name}: expected a cache such as KVCache, got {shown(cache)}; write "
                "cache=layer.empty_cache(batch, capacity, like=x)"
            )

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        *,
        dropout_seed: int | Array | None,
        return_aux: AuxRequest | None,
        **options: Any,
    ) -> tuple[Array, AttentionAux | None]:
        """`attention` in the name of this layer, which drops weights only where there is a seed; aux or None too."""
        rate = 0.0 if dropout_seed is None else self.dropout_rate
        given: dict[str, Any] = {"dropout_rate": rate, "dropout_seed": dropout_seed, "return_aux": return_aux}
        found = attend(self.name, query, key, value, **given, **options)
        return (found, None) if return_aux is None else found

    def attend_by(
        self,
        cache: Any,
        query: Array,
        *_: Array,
        dropout_seed: int | Array | None,
        return_aux: AuxRequest | None,
        **options: Any,
    ) -> tuple[Array, AttentionAux | None]:
        """`attend` to what a cache holds that reads it in a way of its own, the new keys and values among it."""
        rate = 0.0 if dropout_seed is None else self.dropout_rate
        given: dict[str, Any] = {"dropout_rate": rate, "dropout_seed": dropout_seed, "return_aux": return_aux}
        found = cache.attend(query, **given, **options)
        return (found, None) if return_aux is None else found


class OneAttention(AttentionLayer):
    """A layer in which x (..., L, embed_dim) looks once at a context (..., S, context_dim)."""

    embed_dim: int
    context_dim: int | None

    @property
    def source_dim(self) -> int:
        """The width of what keys and values are made from."""
        return self.embed_dim if self.context_dim is None else self.context_dim

    def source(self, params: Params, x: Array, context: Array | None) -> Array:
        """What keys and values are made from: the context, or x itself; everything checked."""
        self.check(params, self.embed_dim, x=x, context=context)
        source = x if context is None else context
        if source.shape[-1] != self.source_dim:
            raise ValueError(
                f"{self.name}: expected context of shape (..., length, {self.source_dim}), got {tuple(source.shape)}; "
                "context_dim declares its width"
            )
        return source
