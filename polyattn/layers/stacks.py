"""Stacks of blocks: the trunk of an encoder, of a decoder, of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from polyattn._attention import AuxRequest
from polyattn.arrays import Array
from polyattn.calls import flag, seed_like, shown
from polyattn.dropout import fold_in
from polyattn.layers.attending import AttentionLayer, Memory
from polyattn.layers.blocks import EncoderBlock, EncoderDecoderAttention
from polyattn.layers.heads import Handed
from polyattn.layers.layer import Layer, LayerResult, Params
from polyattn.layers.norm import Norm
from polyattn.layers.sharing import sharing

__all__ = ["Decoder", "Encoder"]


@dataclass(frozen=True)
class _Stack(AttentionLayer):
    """`depth` blocks, each with parameters of its own, and a norm at the end if asked for."""

    block: Any
    depth: int
    _: KW_ONLY
    final_norm: Norm | None = None

    def __post_init__(self) -> None:
        self.check_sizes(depth=self.depth)
        if isinstance(self.block, tuple) and not 1 <= len(self.block) <= self.depth:
            raise ValueError(
                f"{self.name}: expected a pattern of 1 to depth={self.depth} blocks, got {len(self.block)}; the "
                "blocks take turns"
            )

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The block of every place: those of a pattern take turns."""
        pattern = self.block if isinstance(self.block, tuple) else (self.block,)
        return tuple(pattern[i % len(pattern)] for i in range(self.depth))

    @property
    def sources(self) -> tuple[int | None, ...]:
        """Of every place the one whose keys and values it attends to, None where they are its own."""
        return (None,) * self.depth

    def parameters(self) -> Mapping[str, Layer]:
        blocks = {f"block_{i}": block for i, block in enumerate(self.blocks)}
        return blocks if self.final_norm is None else blocks | {"norm": self.final_norm}

    def empty_cache(
        self, batch: int, capacity: int, *, like: Array, circular: bool = False
    ) -> tuple[Any, ...]:
        """A cache for each block, without tokens; None for one that shares keys and values.

        circular: those of blocks with a window have no more slots than that (`CircularCache`).
        """
        circular = flag(self.name, "circular", circular)
        windows = [circular and block.window is not None for block in self.blocks]
        if circular and not any(windows):
            raise ValueError(
                f"{self.name}: expected a block with a window with circular=True, such as one with "
                "mask=masks.sliding_window(n), got none; leave circular out"
            )
        return tuple(
            None
            if source is not None
            else block.empty_cache(batch, capacity, like=like, **({"circular": True} if near else {}))
            for block, source, near in zip(self.blocks, self.sources, windows, strict=True)
        )

    def run(
        self,
        params: Params,
        x: Array,
        *context: Any,
        cache: Sequence[Any] | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
        **options: Any,
    ) -> LayerResult:
        self.check_params(params, x)
        if cache is not None:
            self.check_cache(cache)
        if dropout_seed is not None:
            dropout_seed = seed_like(self.name, "dropout_seed", dropout_seed)
        contexts = [context] * self.depth
        if context and isinstance(context[0], tuple) and not isinstance(context[0], Memory):
            contexts = [(remembered,) for remembered in self._of_each("memory", context[0])]
        left: list[Any] = []  # by each block: its longer cache, or what others share of this call
        aux = []
        for i, (block, source) in enumerate(zip(self.blocks, self.sources, strict=True)):
            if source is not None:
                earlier = left[source]
            elif cache is None:
                earlier = Handed() if i in self.sources else None
            else:
                earlier = cache[i]
            own = {"cache": earlier, "return_aux": return_aux}
            seed = None if dropout_seed is None else fold_in(dropout_seed, i)
            found = block.run(params[f"block_{i}"], x, *contexts[i], dropout_seed=seed, **own, **options)
            x = found.out
            left.append(None if source is not None else found.cache)
            aux.append(found.aux)
        if self.final_norm is not None:
            x = self.final_norm(params["norm"], x)
        return LayerResult(
            x, None if cache is None else tuple(left), None if return_aux is None else tuple(aux)
        )

    def check_cache(self, cache: Any) -> None:
        """A TypeError or ValueError unless these are caches, one for each block."""
        if not isinstance(cache, (tuple, list)):
            raise TypeError(
                f"{self.name}: expected a tuple of caches, got {shown(cache)}; write "
                "cache=layer.empty_cache(batch, capacity, like=x)"
            )
        self._of_each("cache", cache)
        for i, source in enumerate(self.sources):
            if source is not None and cache[i] is not None:
                raise ValueError(
                    f"{self.name}: expected None as the cache of block {i}, which shares the keys and values of block "
                    f"{source}, got {shown(cache[i])}; make them with empty_cache"
                )

    def _of_each(self, what: str, given: Sequence[Any]) -> Sequence[Any]:
        """One for each block, or a ValueError."""
        if len(given) != self.depth:
            raise ValueError(
                f"{self.name}: expected a {what} for each of the {self.depth} blocks, got {len(given)}; "
                f"make them with {'empty_cache' if what == 'cache' else 'remember'}"
            )
        return given


@dataclass(frozen=True)
class Encoder(_Stack):
    """`depth` encoder blocks one after the other, then final_norm if there is one.

    block: one for all places, or a tuple of blocks that take turns, as the kinds of today's models do: five with a
    window and one without (Gemma 3), three with linear attention and one with softmax (Qwen3-Next). Params:
    "block_0", ..., and "norm". The call is that of `EncoderBlock`; cache and aux are tuples with an entry for each
    block. With causal attention it is the trunk of GPT and Llama.

    kv_from: for each block the number of the earlier one to whose keys and values it attends, None = its own; then it has
    neither w_k nor w_v, and None in place of a cache (Gemma 3n; YOCO, arXiv:2405.05254; cross-layer attention,
    arXiv:2405.12981). empty_cache(..., circular=True): blocks with a window keep no more than that.

    >>> import numpy as np
    >>> encoder = Encoder(EncoderBlock.preset("torch", 8, 2, 32), 2)
    >>> encoder(encoder.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    block: EncoderBlock | tuple[EncoderBlock, ...]
    _: KW_ONLY
    kv_from: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.blocks  # refuses what cannot be shared

    @cached_property  # made with the stack, as compilers make none
    def blocks(self) -> tuple[EncoderBlock, ...]:
        """The block of every place; one that shares has no projections to keys and values."""
        return sharing(self.name, super().blocks, self.kv_from)

    @property
    def sources(self) -> tuple[int | None, ...]:
        """`kv_from`, written out."""
        return super().sources if self.kv_from is None else self.kv_from


@dataclass(frozen=True)
class Decoder(_Stack):
    """`depth` decoder blocks one after the other, then final_norm if there is one.

    Params: "block_0", ..., and "norm". The call is that of `DecoderBlock`; cache and aux are tuples with an
    entry for each block, and so is what `remember` makes of a context.

    >>> import numpy as np
    >>> from polyattn.layers import DecoderBlock
    >>> decoder = Decoder(DecoderBlock.preset("torch", 8, 2, 32), 2)
    >>> decoder(decoder.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    block: EncoderDecoderAttention | tuple[EncoderDecoderAttention, ...]

    def remember(self, params: Params, context: Array) -> tuple[Any, ...]:
        """What each block makes of the context, which calls take in its place."""
        self.check_params(params, context)
        return tuple(block.remember(params[f"block_{i}"], context) for i, block in enumerate(self.blocks))
