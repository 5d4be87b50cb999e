"""Dialects as users have them: the record of a library, and its translators."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array
from polyattn.dialects.from_polyattn import from_polyattn
from polyattn.dialects.record import Record
from polyattn.dialects.to_polyattn import to_polyattn

__all__ = ["Dialect"]


class Dialect(Record):
    """The calling convention of one library, and translators in both directions.

    >>> import numpy as np
    >>> from polyattn.dialects import DIALECTS
    >>> q = np.ones((1, 1, 2, 4), np.float32)
    >>> sorted(DIALECTS["jax.nn"].from_polyattn(q, q, q, is_causal=True))
    ['is_causal', 'key', 'query', 'value']
    >>> sorted(DIALECTS["torch.sdpa"].to_polyattn(q, q, q, is_causal=True))
    ['is_causal', 'key', 'query', 'value']
    """

    def to_polyattn(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of `polyattn.attention` that mean what a call in this dialect says.

        query, key and value come in layout BHLD. ValueError, TypeError: what attention does not have, or what
        the library itself would refuse or documents as an error.
        """
        return to_polyattn(self, args, kwargs).arguments

    def from_polyattn(
        self, query: Array, key: Array, value: Array, *, repair: bool = True, **options: Any
    ) -> dict[str, Any]:
        """The keyword arguments of this dialect that mean what arguments of `polyattn.attention` say.

        What has no parameter is expressed by others: causality of another alignment by a mask, a scale by the
        query, sinks by one more key; ValueError: what nothing there can express. repair: where the library would
        still return something else for these very arrays (rows that see nothing, NaN in hidden keys), they are
        changed so that it does not, or the call is refused; False says the call plainly, whatever the library
        makes of it. Values are looked at only where they are concrete.
        """
        return from_polyattn(self, query, key, value, repair, options)

    def attention(self, *args: Any, **kwargs: Any) -> Any:
        """This dialect's function, computed by `polyattn.attention` on arrays of any library.

        The result has the foreign layout and form; its numbers are those of the contract.
        """
        return to_polyattn(self, args, kwargs, "attention").run()
