"""GGUF, the files of llama.cpp: what they say of a model, and its arrays, dequantised on NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from polyattn.weights.untrusted import path_of, to_read

__all__ = ["Gguf", "read_gguf"]


class Gguf(NamedTuple):
    """What a GGUF file holds."""

    metadata: Mapping[str, Any]  # "general.architecture" -> "llama", ...: numbers, strings, lists of them
    tensors: Mapping[str, Any]  # name -> NumPy array, float32 where it was quantised


def read_gguf(path: str | os.PathLike[str]) -> Gguf:
    """The metadata and the tensors of a .gguf file; matrices are (out, in), as in PyTorch.

    The package `gguf` reads and dequantises. llama.cpp keeps rotary pairs interleaved: `Rotary(interleaved=True)`, or
    `polyattn.weights.interleaved_to_half`. ValueError for a file that is damaged, cut short, of another kind, or
    quantised in a way that the package cannot undo; nothing in a file is ever executed.

    from_format(model, read_gguf("model.gguf").tensors, "gguf")
    """
    import numpy as np

    who = "polyattn.weights.read_gguf"
    path = path_of(who, path)
    to_read(who, path)
    try:
        gguf = import_module("gguf")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{who}: expected the package gguf for a .gguf file, got none; pip install 'polyattn[chat]'"
        ) from error

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        """A reader that does not take what lies behind the end of a file for something empty."""

        @property
        def data(self) -> Any:
            return self._bytes

        @data.setter
        def data(self, mapped: Any) -> None:
            self._bytes = np.asarray(mapped)  # a slice of a memmap costs ten of an array

        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **options: Any) -> Any:
            found = super()._get(offset, dtype, count, *more, **options)
            if len(found) != int(count):
                raise ValueError("it ends too early")
            return found

    try:
        reader = Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {x.name: _values(gguf, x) for x in reader.tensors}
    except NotImplementedError as error:
        raise ValueError(
            f"{who}: expected tensors that the package gguf reads, got: {error}; convert it"
        ) from error
    except (
        Exception
    ) as error:  # NumPy and the reader raise many kinds where bytes are not what they should be
        raise ValueError(
            f"{who}: expected a whole GGUF file, got {path.name!r}, of which the reader says: "
            f"{error or type(error).__name__}; was it cut short, or is it of another kind?"
        ) from error
    return Gguf(metadata, tensors)


def _values(gguf: Any, tensor: Any) -> Any:
    """The numbers of a tensor, copied out of the file."""
    quantised = tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F64)
    values = gguf.dequantize(tensor.data, tensor.tensor_type) if quantised else tensor.data.copy()
    return values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
