"""The files of CTranslate2 (`model.bin`): the name of a model, its arrays, and those that have two names."""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from polyattn.weights.untrusted import path_of, to_read

__all__ = ["CTranslate2", "read_ctranslate2"]

_WHO = "polyattn.weights.read_ctranslate2"
#: The one layout that is known here, and the dtypes by their numbers in it.
VERSION, DTYPES = 6, ("float32", "int8", "int16", "int32", "float16")


class CTranslate2(NamedTuple):
    """What such a file holds."""

    spec: str  # "WhisperSpec", "TransformerSpec", ...
    revision: int  # of the spec
    tensors: Mapping[str, Any]  # name -> NumPy array as it was stored, settings of the model among them
    aliases: Mapping[str, str]  # another name -> the name of the tensor


def read_ctranslate2(path: str | os.PathLike[str]) -> CTranslate2:
    """The arrays of a `model.bin` of CTranslate2, version 6; matrices are (out, in), as in PyTorch.

        u32 version, text spec, u32 revision
        u32 count, count * (text name, u8 rank, rank * u32 size, u8 dtype, u32 bytes, the numbers)
        u32 count, count * (text alias, text name)            text: u16 bytes, the last of them 0

    All little-endian. Quantised arrays come as the integers they are, beside their scales. ValueError for a file that
    is damaged, cut short, or of another kind or version; nothing in a file is ever executed.

    from_format(encoder, read_ctranslate2("model.bin").tensors, "ctranslate2", prefix="encoder/")
    """
    path = path_of(_WHO, path)
    to_read(_WHO, path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).whole()
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{_WHO}: expected a whole model.bin of CTranslate2, version {VERSION}, got {path.name!r}, of which the reader "
            f"says: {error}; was it cut short, or is it of another kind?"
        ) from None


class _Reader:
    """A place in the bytes of a file, none of which is believed; ValueError says what is wrong."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise ValueError("it ends too early")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, kind: str) -> int:
        (found,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))
        return int(found)

    def text(self) -> str:
        content = self.take(self.number("H"))
        if not content.endswith(b"\0") or b"\0" in content[:-1]:
            raise ValueError("a text in it does not end with a zero")
        return content[:-1].decode()  # a UnicodeDecodeError is a ValueError

    def tensor(self) -> Any:
        import numpy as np

        shape = tuple(self.number("I") for _ in range(self.number("B")))
        kind, size = self.number("B"), self.number("I")
        if kind >= len(DTYPES):
            raise ValueError(
                f"it has an array of dtype {kind}, where {', '.join(DTYPES)} are 0 to {len(DTYPES) - 1}"
            )
        dtype = np.dtype(DTYPES[kind]).newbyteorder("<")
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"it has an array of shape {shape} and {DTYPES[kind]} in {size} bytes")
        return np.frombuffer(self.take(size), dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def whole(self) -> CTranslate2:
        if (version := self.number("I")) != VERSION:
            raise ValueError(f"it is of version {version}")
        spec, revision = self.text(), self.number("I")
        tensors: dict[str, Any] = {}
        for _ in range(self.number("I")):
            if (name := self.text()) in tensors:
                raise ValueError(f"it has {name!r} more than once")
            tensors[name] = self.tensor()
        aliases = {self.text(): self.text() for _ in range(self.number("I"))}
        if lost := [name for alias, name in aliases.items() if name not in tensors or alias in tensors]:
            raise ValueError(
                f"it has another name for {lost[0]!r}, which is not there, or a name for two arrays"
            )
        if self.at != len(self.content):
            raise ValueError(f"it has {len(self.content) - self.at} bytes behind its end")
        return CTranslate2(spec, revision, tensors, aliases)
