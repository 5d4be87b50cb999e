"""Native sparse attention: compressed blocks, selected blocks and a window, weighed by gates."""

from __future__ import annotations

from typing import Any

from polyattn import _attention, masks
from polyattn._attention import AuxRequest
from polyattn.arrays import Array, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, real, size
from polyattn.problem import pose
from polyattn.selection.choosing import top
from polyattn.selection.gathered import attend

__all__ = ["nsa_attention"]


@answers("polyattn.selection.nsa_attention")
def nsa_attention(
    query: SameArray,
    key: Array,
    value: Array,
    compressed_key: Array,
    compressed_value: Array,
    gates: Array,
    *,
    block_size: int,
    count: int,
    window: int,
    initial: int = 1,
    local: int = 2,
    query_offset: Any = None,
    scale: float | Array | None = None,
) -> SameArray:
    """Causal attention in three ways at once: g_1 compressed + g_2 selected + g_3 window.

        compressed   to one key and value for each block of block_size keys that is complete
        selected     to the keys of `count` blocks: the first `initial` ones and the last `local` ones up to the row's
                     own (the earliest of these, if count is smaller), and then those of most weight in the compressed
                     attention, summed over the query heads of a kv head
        window       to the last `window` keys, the row's own among them

    Shapes: those of `attention`; compressed_key (..., Hkv, N, D) and compressed_value (..., Hkv, N, E) with N =
    ceil(S / block_size), by whatever map of a block is learned (`pooled_keys` is the mean); gates (..., Hq, L, 3).
    query_offset, scale: as `attention` has them. Compression and selection have the same blocks, which do not
    overlap, and selected keys and those of the window are the same: the paper allows others. No gradient goes
    through the selection. Memory O(L N) for the weights of blocks.

    Source: Yuan 2025, arXiv:2502.11089, section 3.3.

    >>> import numpy as np
    >>> x, gates = np.ones((4, 1)), np.array([[0.0, 0.25, 0.5]] * 4)
    >>> blocks = x[:2, :]
    >>> nsa_attention(x, x, x, blocks, blocks, gates, block_size=2, count=1, window=2)[3]
    array([0.75])
    """
    who = "polyattn.selection.nsa_attention"
    counts = {"block_size": block_size, "count": count, "window": window}
    block_size, count, window = (size(who, name, n, 1) for name, n in counts.items())
    initial, local = size(who, "initial", initial), size(who, "local", local)
    options = {"is_causal": True, "query_offset": query_offset, "scale": scale}
    p = pose(who, query, key, value, **options)
    xp, backend, blocks = p.backend.xp, p.backend, -(-key.shape[-2] // block_size)
    for name, x in (("gates", gates), ("compressed_key", compressed_key)):
        real(who, name, x)
    if tuple(gates.shape) != (*query.shape[:-1], 3) or backend_of(gates) is not backend:
        raise ValueError(
            f"{who}: expected gates of {backend.name} and of shape {(*query.shape[:-1], 3)}, got {tuple(gates.shape)}; one for "
            "each row, and each of compressed, selected and window"
        )
    if compressed_key.ndim < 2 or compressed_key.shape[-2] != blocks:
        raise ValueError(
            f"{who}: expected compressed_key (..., {blocks}, D) for {key.shape[-2]} keys in blocks of {block_size}, got "
            f"{tuple(compressed_key.shape)}; the last block counts even if it is not complete"
        )
    at = p.positions().q  # (B|1, 1, L, 1)
    rows = at[0, 0, :, 0] if at.shape[0] == 1 else at[:, 0, :, 0]
    first = backend.arange(0, blocks, p.q) * block_size
    stand: dict[str, Any] = {"query_positions": rows, "scale": scale}
    compressed, aux = _attention.attend(
        who,
        query,
        compressed_key,
        compressed_value,
        is_causal=True,
        key_positions=first + (block_size - 1),  # that of its last key: seen by whoever sees them all
        return_aux=AuxRequest(weights=True),
        **stand,
    )
    kv_heads = p.k.shape[1]
    weights = xp.reshape(aux.weights, (p.frame.batch, kv_heads, -1, p.frame.rows, blocks))
    always = (first < initial * block_size) | ((first <= at) & (at < first + local * block_size))
    chosen = top(xp.sum(weights, axis=2), count, first <= at, always)
    chosen = xp.reshape(chosen, (*p.axes.lead, *chosen.shape[1:])) if query.ndim > 2 else chosen[0, 0, :, :]
    selected = attend(who, query, key, value, chosen, block_size, options)
    near = _attention.attend(who, query, key, value, mask=masks.sliding_window(window), **stand)
    return gates[..., 0:1] * compressed + gates[..., 1:2] * selected + gates[..., 2:3] * near
