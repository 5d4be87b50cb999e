"""What goes through a pipe: a line of JSON and arrays behind it. Nothing that is read here is ever executed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

__all__ = ["receive", "send"]

KINDS = ("<f8", "|b1")
LIMIT = 2**24  # bytes of a frame: much more than any call or answer has


def send(pipe: IO[bytes], said: Mapping[str, Any]) -> None:
    """Writes a mapping whose values are arrays of float64 or bool, or what JSON has."""
    arrays = {name: np.ascontiguousarray(x) for name, x in said.items() if isinstance(x, np.ndarray)}
    plain = {name: x for name, x in said.items() if name not in arrays}
    kinds = {name: [x.dtype.newbyteorder("<").str, list(said[name].shape)] for name, x in arrays.items()}
    head = json.dumps({"plain": plain, "arrays": kinds}).encode()
    pipe.write(len(head).to_bytes(8, "little") + head)
    for x in arrays.values():
        pipe.write(x.astype(x.dtype.newbyteorder("<")).tobytes())
    pipe.flush()


def receive(pipe: IO[bytes]) -> dict[str, Any]:
    """What was sent; EOFError at the end, ValueError for anything that `send` does not write.

    >>> import io
    >>> pipe = io.BytesIO()
    >>> send(pipe, {"x": np.eye(2), "causal": True})
    >>> _ = pipe.seek(0)
    >>> receive(pipe)["x"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    try:
        head = json.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, 8), "little")))
        found = dict(head["plain"])
        for name, (kind, shape) in head["arrays"].items():
            if kind not in KINDS or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError("an array of a kind that is never sent")
            size = math.prod(shape)
            found[name] = np.frombuffer(
                _exactly(pipe, size * np.dtype(kind).itemsize), np.dtype(kind)
            ).reshape(shape)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no frame") from error
    return found


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    if count > LIMIT:
        raise ValueError("a frame that is too long")
    found = pipe.read(count)
    if len(found) < count:
        raise EOFError
    return found
