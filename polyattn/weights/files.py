"""Params in files: safetensors, or .npz without pickles."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyattn.backend import Array, backend_of
from polyattn.layers import Layer, Params
from polyattn.weights.tree import check_params, convert, flatten, unflatten


def save(params: Params, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes nested params to a .safetensors or .npz file, names joined by dots; replaces the file as a whole.

    metadata: strings for the header of a safetensors file.
    """
    path = Path(path)
    arrays = {name: _contiguous(backend_of(x).to_numpy(x)) for name, x in flatten(params).items()}
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".npz":
            import numpy as np

            if metadata is not None:
                raise ValueError(
                    "polyattn.weights.save: expected no metadata for .npz, got some; use .safetensors"
                )
            strange = [name for name, x in arrays.items() if x.dtype.kind not in "biuf"]
            if strange:
                raise TypeError(
                    f"polyattn.weights.save: expected dtypes that NumPy itself has, got others for {', '.join(strange)}; "
                    "use .safetensors"
                )
            with part.open("wb") as file:
                np.savez(file, **arrays)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, part, metadata=None if metadata is None else dict(metadata))
        else:
            raise _unknown("save", path)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, like: Array, layer: Layer | None = None) -> dict[str, Any]:
    """Nested params from a .safetensors or .npz file, in the library and on the device of `like`.

    layer: the one they are for; ValueError if a name is missing, unexpected, or of another shape. ValueError
    too for a file that is damaged or of another kind; nothing in a file is ever executed.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {".safetensors": _safetensors, ".npz": _npz}
    if path.suffix not in readers:
        raise _unknown("load", path)
    params = convert(unflatten(readers[path.suffix](path)), like=like)
    if layer is not None:
        check_params(f"polyattn.weights.load({path.name!r}) for {layer.name}", layer, params)
    return params


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(
            f"polyattn.weights.load: expected a whole safetensors file, got {path.name!r}, of which the reader says: "
            f"{error}; was it cut short, or is it of another kind?"
        ) from error


def _npz(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"polyattn.weights.load: expected a whole .npz file of plain arrays, got {path.name!r}, of which NumPy "
            f"says: {error}; was it cut short, or does it hold pickled objects?"
        ) from error


def _contiguous(x: Any) -> Any:
    """safetensors writes the memory of an array as it lies, whatever its strides."""
    import numpy as np

    return np.ascontiguousarray(x).reshape(x.shape)


def _unknown(function: str, path: Path) -> ValueError:
    return ValueError(
        f"polyattn.weights.{function}: expected a file name that ends in .safetensors or .npz, got {path.name!r}; "
        "other formats may hold code"
    )
