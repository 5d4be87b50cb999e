"""Params in files: safetensors, or .npz without pickles."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, Params
from polyattn.weights.tree import check_params, convert, flatten, unflatten

__all__ = ["load", "save"]


#: What NumPy, zipfile and zlib raise where bytes are not what they should be.
_DAMAGED = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def save(params: Params, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes nested params to a .safetensors or .npz file, names joined by dots; replaces the file as a whole.

    metadata: strings for the header of a safetensors file.
    """
    path = Path(path)
    arrays = {name: _contiguous(backend_of(x).to_numpy(x)) for name, x in flatten(params).items()}
    others = ("bfloat16",) if path.suffix == ".safetensors" else ()
    if strange := [
        f"{name} of {x.dtype}" for name, x in arrays.items() if not _plain(x) and x.dtype.name not in others
    ]:
        raise TypeError(
            "polyattn.weights.save: expected bools, integers and floats (bfloat16 in .safetensors alone), got "
            f"{', '.join(strange)}; cast it first"
        )
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".npz":
            import numpy as np

            if metadata is not None:
                raise ValueError(
                    "polyattn.weights.save: expected no metadata for .npz, got some; use .safetensors"
                )
            with zipfile.ZipFile(part, "w") as archive:  # numpy.savez has arguments, which are no names then
                for name, x in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, x, allow_pickle=False)
        elif path.suffix == ".safetensors":
            to_bytes = _package("save").numpy.save
            whole = to_bytes(arrays, metadata=None if metadata is None else dict(metadata))
            part.write_bytes(whole)  # with the permissions of any new file
        else:
            raise _unknown("save", path)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, like: Array, layer: Layer | None = None) -> dict[str, Any]:
    """Nested params from a .safetensors or .npz file, in the library and on the device of `like`.

    layer: the one they are for; ValueError if a name is missing, unexpected, or of another shape. ValueError
    too for a file that is damaged or of another kind; nothing in a file is ever executed. A file holds arrays
    alone: a part without parameters has its empty dict only if `layer` is given.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {".safetensors": _safetensors, ".npz": _npz}
    if path.suffix not in readers:
        raise _unknown("load", path)
    params = convert(unflatten(readers[path.suffix](path)), like=like)
    if layer is not None:
        check_params(f"polyattn.weights.load({path.name!r}) for {layer.name}", layer, params)
        params = _complete(params, layer.shapes())
    return params


def _complete(params: Params, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The params, with an empty dict for every part that has no arrays."""
    return {
        name: _complete(params.get(name, {}), part) if isinstance(part, Mapping) else params[name]
        for name, part in shapes.items()
    }


def _safetensors(path: Path) -> dict[str, Any]:
    package = _package("load")
    with suppress(ImportError):
        import ml_dtypes  # noqa: F401  # from then on NumPy knows bfloat16 by name
    try:
        return dict(package.numpy.load_file(path))
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"polyattn.weights.load: expected dtypes that NumPy has, or bfloat16 beside the package ml_dtypes, got "
            f"{path.name!r}, of which NumPy says: {error}; store it in another dtype"
        ) from error
    except package.SafetensorError as error:
        raise ValueError(
            f"polyattn.weights.load: expected a whole safetensors file, got {path.name!r}, of which the reader says: "
            f"{error}; was it cut short, or is it of another kind?"
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
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if strange := [name for name, x in arrays.items() if not _plain(x)]:
            raise TypeError(f"{', '.join(strange)}: no array of numbers")
        return arrays
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise ValueError(
            f"polyattn.weights.load: expected a whole .npz file of plain arrays, got {path.name!r}, of which NumPy "
            f"says: {error}; was it cut short, or does it hold pickled objects?"
        ) from error


def _plain(x: Any) -> bool:
    """Whether it is an array of bools, integers or floats of at most 64 bits, which every file can hold."""
    return hasattr(x, "dtype") and x.dtype.kind in "biuf" and x.dtype.itemsize <= 8


def _contiguous(x: Any) -> Any:
    """safetensors writes the memory of an array as it lies, whatever its strides."""
    import numpy as np

    return np.ascontiguousarray(x).reshape(x.shape)


def _unknown(function: str, path: Path) -> ValueError:
    return ValueError(
        f"polyattn.weights.{function}: expected a file name that ends in .safetensors or .npz, got {path.name!r}; "
        "other formats may hold code"
    )
