"""A call whose batch items have offsets of their own, item by item."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call

__all__ = ["one_by_one"]


def one_by_one(call: Call) -> list[Call]:
    """The call for each batch item with its own offset; the call itself where all have one.

    >>> x = np.zeros((2, 1, 3, 4))
    >>> [part.offset for part in one_by_one(Call(x, x, x, offsets=(0, 5)))]
    [0, 5]
    """
    if call.offsets is None:
        return [call]
    batch, parts = call.shape[0], ((f.name, getattr(call, f.name)) for f in fields(call))
    four = {name: x for name, x in parts if isinstance(x, np.ndarray) and x.ndim == 4}
    found = []
    for i, offset in enumerate(call.offsets):
        own: dict[str, Any] = {name: x[i : i + 1] for name, x in four.items() if x.shape[0] == batch}
        found.append(replace(call, **own, offset=offset, offsets=None))
    return found
