"""Params in files: safetensors, or .npz without pickles."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, Params
from polyattn.weights.tree import check_params, convert, flatten, unflatten
from polyattn.weights.untrusted import (
    check_names_of_file,
    names_of_safetensors,
    path_of,
    read_npz,
    to_read,
    to_write,
    twice,
)

__all__ = ["load", "save"]


T = TypeVar("T")


def save(params: Params, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes nested params to a .safetensors or .npz file, names joined by dots; replaces the file as a whole.

    metadata: strings for the header of a safetensors file. ValueError and TypeError for what a file cannot hold or
    where none can lie, OSError if the disk refuses; the old file, if there was one, is then as it was.
    """
    who = "polyattn.weights.save"
    path = path_of(who, path)
    write = _of_kind(who, path, {".safetensors": _write_safetensors, ".npz": _write_npz})
    arrays = {name: _contiguous(backend_of(x).to_numpy(x)) for name, x in flatten(params).items()}
    others = ("bfloat16",) if path.suffix == ".safetensors" else ()
    if strange := [
        f"{name} of {x.dtype}" for name, x in arrays.items() if not _plain(x) and x.dtype.name not in others
    ]:
        raise TypeError(
            f"{who}: expected bools, integers and floats (bfloat16 in .safetensors alone), got "
            f"{', '.join(strange)}; cast it first"
        )
    check_names_of_file(who, arrays)
    file = to_write(who, path)
    part = file.with_name(f".polyattn-{secrets.token_hex(8)}.part")
    try:
        write(part, arrays, metadata)
        part.replace(file)
    except OSError as error:
        raise OSError(
            f"{who}: expected a disk that takes {str(path)!r}, got: {error}; make room, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _write_npz(part: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None) -> None:
    import numpy as np

    if metadata is not None:
        raise ValueError("polyattn.weights.save: expected no metadata for .npz, got some; use .safetensors")
    with zipfile.ZipFile(part, "w") as archive:  # numpy.savez has arguments, which are no names then
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, x, allow_pickle=False)


def _write_safetensors(part: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None) -> None:
    texts = None if metadata is None else dict(metadata)
    if texts is not None and not all(isinstance(text, str) for pair in texts.items() for text in pair):
        raise TypeError(
            f"polyattn.weights.save: expected metadata of strings, got {texts!r}; write numbers as text"
        )
    whole = _package("save").numpy.save(dict(arrays), metadata=texts)
    part.write_bytes(whole)  # with the permissions of any new file


def load(path: str | os.PathLike[str], *, like: Array, layer: Layer | None = None) -> dict[str, Any]:
    """Nested params from a .safetensors or .npz file, in the library and on the device of `like`.

    layer: the one they are for; ValueError if a name is missing, unexpected, or of another shape. ValueError
    too for a file that is damaged or of another kind; nothing in a file is ever executed. A file holds arrays
    alone: a part without parameters has its empty dict only if `layer` is given.
    """
    who = "polyattn.weights.load"
    path = path_of(who, path)
    read = _of_kind(who, path, {".safetensors": _safetensors, ".npz": _npz})
    params = convert(unflatten(read(path)), like=like)
    if layer is not None:
        check_params(f"{who}({path.name!r}) for {layer.name}", layer, params)
        params = _complete(params, layer.shapes())
    return params


def _complete(params: Params, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The params, with an empty dict for every part that has no arrays."""
    return {
        name: _complete(params.get(name, {}), part) if isinstance(part, Mapping) else params[name]
        for name, part in shapes.items()
    }


def _safetensors(path: Path) -> dict[str, Any]:
    import numpy as np

    who = "polyattn.weights.load"
    package = _package("load")
    to_read(who, path)
    with suppress(ImportError):
        import ml_dtypes  # noqa: F401  # from then on NumPy knows bfloat16 by name
    try:
        np.empty(path.stat().st_size, np.uint8)  # a MemoryError, where the reader itself would panic
        arrays = dict(package.numpy.load_file(path))
        if again := twice(names_of_safetensors(path)):
            raise ValueError(f"it has {', '.join(again)} more than once")
        return arrays
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{who}: expected dtypes that NumPy has, or bfloat16 beside the package ml_dtypes, got "
            f"{path.name!r}, of which NumPy says: {error}; store it in another dtype"
        ) from error
    except (package.SafetensorError, OSError, MemoryError, ValueError) as error:
        raise ValueError(
            f"{who}: expected a whole safetensors file, got {path.name!r}, of which the reader says: "
            f"{error or type(error).__name__}; was it cut short, or is it of another kind?"
        ) from error


def _package(function: str) -> Any:
    """safetensors, with its module for NumPy."""
    try:
        import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"polyattn.weights.{function}: expected the package safetensors for a .safetensors file, got none; "
            "pip install safetensors, or name the file .npz"
        ) from error
    return import_module("safetensors")


def _npz(path: Path) -> dict[str, Any]:
    arrays = read_npz("polyattn.weights.load", path)
    if strange := [name for name, x in arrays.items() if not _plain(x)]:
        raise ValueError(
            f"polyattn.weights.load: expected arrays of numbers, got {path.name!r} with {', '.join(strange)} of other "
            "dtypes; store bools, integers and floats"
        )
    return arrays


def _plain(x: Any) -> bool:
    """Whether it is an array of bools, integers or floats of at most 64 bits, which every file can hold."""
    return hasattr(x, "dtype") and x.dtype.kind in "biuf" and x.dtype.itemsize <= 8


def _contiguous(x: Any) -> Any:
    """safetensors writes the memory of an array as it lies, whatever its strides."""
    import numpy as np

    return np.ascontiguousarray(x).reshape(x.shape)


def _of_kind(who: str, path: Path, kinds: Mapping[str, Callable[..., T]]) -> Callable[..., T]:
    """What is done with a file of that suffix."""
    if path.suffix not in kinds:
        raise ValueError(
            f"{who}: expected a file name that ends in .safetensors or .npz, got {path.name!r}; "
            "other formats may hold code"
        )
    return kinds[path.suffix]
