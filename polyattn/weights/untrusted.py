"""Paths and archives that anyone may have made: what is asked of them before a byte is believed."""

from __future__ import annotations

import json
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

__all__ = [
    "check_names_of_file",
    "names_of_safetensors",
    "path_of",
    "read_npz",
    "to_read",
    "to_write",
    "twice",
]

#: What NumPy, zipfile and their decompressors raise where bytes are not what they should be.
_DAMAGED: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TokenError,  # NumPy reads a header as Python would
    zipfile.BadZipFile,
    zlib.error,
)
with suppress(ImportError):  # not every Python has it
    from lzma import LZMAError

    _DAMAGED = (*_DAMAGED, LZMAError)
#: An archive that grows beyond both is no file of weights: it was made to fill the memory.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 100


def path_of(who: str, path: Any) -> Path:
    """A path that the system can have; TypeError or ValueError for anything else."""
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
        raise TypeError(f"{who}: expected a path, got {type(path).__name__}; pass a string or a pathlib.Path")
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{who}: expected a path, got {os.fsdecode(path)!r}, with a zero in it; take it out")
    return Path(path)


def to_read(who: str, path: Path) -> None:
    """FileNotFoundError if there is nothing, ValueError for what is no regular file: a pipe would be waited for."""
    try:
        _check_kind(who, path, path.stat().st_mode, "name a file")
    except FileNotFoundError:
        link = f", a link to {os.readlink(path)!r}" if path.is_symlink() else ""
        raise FileNotFoundError(
            f"{who}: expected a file, got {str(path)!r}{link}, which is not there; check the path"
        ) from None
    except OSError as error:
        raise _unusable(who, path, error) from None


def to_write(who: str, path: Path) -> Path:
    """The file that a path names, through links; ValueError where no file can come to lie."""
    try:
        real = Path(os.path.realpath(path))
        if not real.parent.is_dir():
            raise ValueError(
                f"{who}: expected an existing folder for {path.name!r}, got {str(path.parent)!r}; make it first"
            )
        with suppress(FileNotFoundError):  # a new one
            _check_kind(who, path, real.stat().st_mode, "name a new file, or one to be replaced")
        return real
    except OSError as error:
        raise _unusable(who, path, error) from None


def _check_kind(who: str, path: Path, mode: int, advice: str) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{who}: expected a regular file, got {str(path)!r}, {kind}; {advice}")


def _unusable(who: str, path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{who}: expected a path that leads to a file, got {str(path)!r}, of which the system says: "
        f"{error.strerror}; check the path"
    )


def check_names_of_file(who: str, names: Iterable[str]) -> None:
    """ValueError for names that would not come back from a file as they went in."""
    for name in names:
        if "\0" in name or name == "__metadata__" or len(name.encode("utf-8", "replace")) > 60_000:
            why = "without zeros, shorter than 60000 bytes, and other than '__metadata__'"
        elif name.encode("utf-8", "ignore").decode() != name:
            why = "that UTF-8 can write"
        else:
            continue
        shown = f"{name[:40]!r}{'...' if len(name) > 40 else ''}"
        raise ValueError(f"{who}: expected names {why}, got {shown}; rename it")


def read_npz(who: str, path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name; ValueError for one that is damaged, holds pickled objects, or is a bomb."""
    import numpy as np

    to_read(who, path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            whole, size = sum(member.file_size for member in members), path.stat().st_size
            if whole > max(_BOMB_BYTES, _BOMB_RATIO * size):
                raise ValueError(f"its {size} bytes become {whole}, as those of weights do not")
            if again := twice(names):
                raise ValueError(f"it has {', '.join(again)} more than once")
            arrays = {}
            for name, member in zip(names, members, strict=True):
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays
    except _DAMAGED as error:
        raise ValueError(
            f"{who}: expected a whole .npz file of plain arrays, got {path.name!r}, of which the reader says: "
            f"{_first(error)}; was it cut short, or does it hold pickled objects?"
        ) from error


def _first(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def twice(names: Iterable[str]) -> list[str]:
    """The names that come more than once."""
    return [name for name, n in Counter(names).items() if n > 1]


def names_of_safetensors(path: Path) -> list[str]:
    """The names in the header of a whole safetensors file, as often as they come."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        pairs: list[tuple[str, Any]] = json.loads(file.read(length), object_pairs_hook=list)
    return [name for name, _ in pairs]
