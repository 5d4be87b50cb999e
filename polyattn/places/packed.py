"""Documents packed one behind the other: which one a token belongs to, and where it stands in it."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of, eagerly
from polyattn.calls import answers, integral, size

WHO = "polyattn.places.packed_positions"


@answers(WHO)
def packed_positions(cu_seqlens: Array, tokens: int) -> Array:
    """t - cu_seqlens[d] for the document d of each of the tokens t = 0, 1, ...: positions that begin anew in each document.

    cu_seqlens: integers (n + 1,), 0 and then where each of n documents ends, which may be traced; a token behind the last of
    them gets -1. The result has shape (tokens,), for a rotary embedding or a table of learned positions. ValueError for
    another shape.

    >>> import numpy as np
    >>> packed_positions(np.array([0, 3, 5]), 6)
    array([ 0,  1,  2,  0,  1, -1], dtype=int32)
    """
    backend = integral(WHO, "cu_seqlens", cu_seqlens)
    size(WHO, "tokens", tokens)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{WHO}: expected cu_seqlens of shape (n + 1,), n >= 1, got {tuple(cu_seqlens.shape)}; it is 0 and "
            "then the sums of the lengths"
        )
    with eagerly([cu_seqlens]):
        document, position = standing_in(cu_seqlens, tokens)
        return backend.xp.where(document < cu_seqlens.shape[0] - 1, position, -1)


def standing_in(cu_seqlens: Array, tokens: int) -> tuple[Array, Array]:
    """The document of each token, n behind the last of n, and its position in it: int32 (tokens,), memory O(tokens)."""
    backend = backend_of(cu_seqlens)
    xp = backend.xp
    bounds = backend.astype(cu_seqlens, xp.int32)
    token = backend.astype(backend.arange(0, tokens, bounds), xp.int32)
    document = backend.astype(xp.searchsorted(bounds[1:], token, side="right"), xp.int32)
    return document, token - bounds[(document,)]
