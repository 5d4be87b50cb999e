"""Tile sizes that were measured on a chip: a file of them, and the calls that go by it."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from polyattn.calls import shown
from polyattn.implementations.fused.settings import PLATFORMS, unfit

__all__ = ["DTYPES", "Measured", "Tiles", "as_text", "measured_for", "preferring", "read", "tuned"]

WHO = "polyattn.implementations.tuned"
AGAIN = "write it anew with `polyattn tune --output FILE`"
DTYPES = ("bfloat16", "float16", "float32")
LARGEST = 2**20  # bytes of a file
MOST = 2**31 - 1
_KIND, _VERSION = "tile sizes", 1


@dataclass(frozen=True)
class Tiles:
    """The sides of a tile, and the seconds that a call took with it."""

    rows: int
    keys: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The best tiles of a chip for problems of a kind."""

    chip: str
    platform: str
    interpreted: bool  # on another machine: a trial, for interpreted kernels alone
    dtype: str
    width: int  # of q and v, the larger
    length: int  # rows of queries
    forward: Tiles
    backward: Tiles


_MEASURED: ContextVar[tuple[Measured, ...]] = ContextVar("polyattn_measured", default=())


@contextmanager
def tuned(path: str | os.PathLike[str]) -> Iterator[tuple[Measured, ...]]:
    """Within, fused kernels have the tile sizes of a file that `polyattn tune --output FILE` has written.

    Of the entries for the chip, the dtype and the width (the larger of those of q and v) that one counts whose length is
    the largest up to the rows of the queries, else the shortest. Where there is none, for decoding, and where a bias
    leaves no room for such tiles, sizes are those of polyattn's own table; `Fused(rows, keys)` wins over both. The file
    that is innermost counts alone. It is looked at where Python runs: a function of `jax.jit` keeps the sizes with which
    it was traced, and a new thread begins without a file.

    ValueError for a file that holds anything else, or sizes that the chip cannot have; FileNotFoundError without one.

        with polyattn.implementations.tuned("tiles.json"):
            out = polyattn.attention(q, k, v, is_causal=True)
    """
    found = read(path)
    with preferring(found):
        yield found


@contextmanager
def preferring(measured: Iterable[Measured]) -> Iterator[None]:
    """`tuned` without a file."""
    token = _MEASURED.set(tuple(measured))
    try:
        yield
    finally:
        _MEASURED.reset(token)


def measured_for(chip: str, interpreted: bool, dtype: str, width: int, length: int) -> Measured | None:
    """What counts for a problem; None where nothing does."""
    wanted = (chip, interpreted, dtype, width)
    known = [m for m in _MEASURED.get() if (m.chip, m.interpreted, m.dtype, m.width) == wanted]
    shorter = [m for m in known if m.length <= length]
    if shorter:
        return max(shorter, key=lambda m: m.length)
    return min(known, key=lambda m: m.length, default=None)


def as_text(measured: Iterable[Measured]) -> str:
    """The text of a file."""
    import json

    whole = {"polyattn": _KIND, "version": _VERSION, "measured": [asdict(m) for m in measured]}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def read(path: Any) -> tuple[Measured, ...]:
    """What a file holds; a sentence for what is none."""
    found = _parsed(path)
    whole = {"polyattn": _KIND, "version": _VERSION}
    _check_keys("the file", found, [*whole, "measured"])
    for key, value in whole.items():
        if found[key] != value or isinstance(found[key], bool):
            _refuse(f"{key!r} to be {value!r}", found[key])
    if not isinstance(found["measured"], list):
        _refuse("'measured' to be a list", found["measured"])
    entries = tuple(_entry(f"measured[{i}]", entry) for i, entry in enumerate(found["measured"]))
    seen: set[tuple[Any, ...]] = set()
    for i, m in enumerate(entries):
        key_ = (m.chip, m.interpreted, m.dtype, m.width, m.length)
        if key_ in seen:
            _refuse("one entry for a chip, dtype, width and length", f"a second one, measured[{i}]")
        seen.add(key_)
    return entries


def _parsed(path: Any) -> Any:
    import json

    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
        raise TypeError(f"{WHO}: expected a path, got {shown(path)}; pass a string or a pathlib.Path")
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{WHO}: expected a path, got {shown(str(path))}, with a zero in it; take it out")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError(f"{WHO}: expected a file, got {str(path)!r}, which is none; {AGAIN}")
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{WHO}: expected a file of tile sizes, got {str(path)!r}, where there is none; {AGAIN}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{WHO}: expected a file that can be read, of {str(path)!r} the system says: {error}; {AGAIN}"
        ) from None
    if len(data) > LARGEST:
        _refuse(f"at most {LARGEST} bytes", "more")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            _refuse("every key once", f"{shown(twice)} twice")
        return dict(pairs)

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("text of JSON in UTF-8", "other bytes")
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        _refuse("JSON", f"what is none in line {error.lineno}")
    except RecursionError:
        _refuse("JSON of three levels", "far more")


def _entry(where: str, found: Any) -> Measured:
    made: Measured = _made(Measured, where, found)
    if made.platform not in PLATFORMS:
        _refuse(f"{where}.platform to be one of {', '.join(map(repr, PLATFORMS))}", made.platform)
    if made.dtype not in DTYPES:
        _refuse(f"{where}.dtype to be one of {', '.join(map(repr, DTYPES))}", made.dtype)
    for way in ("forward", "backward"):
        tiles: Tiles = getattr(made, way)
        for name in ("rows", "keys"):
            reason = None if made.interpreted else unfit(made.platform, name, getattr(tiles, name))
            if reason is not None:
                _refuse(f"tiles that {made.chip} can have in {where}.{way}", reason)
    return made


def _made(kind: type, where: str, found: Any) -> Any:
    """A dataclass from an object of JSON, whose values are of the kinds of its fields."""
    _check_keys(where, found, [field.name for field in fields(kind)])
    values = {}
    for field in fields(kind):
        name, value = f"{where}.{field.name}", found[field.name]
        if field.type == "Tiles":
            value = _made(Tiles, name, value)
        elif field.type == "str" and not (isinstance(value, str) and value):
            _refuse(f"{name} to be a word", value)
        elif field.type == "bool" and not isinstance(value, bool):
            _refuse(f"{name} to be true or false", value)
        elif field.type == "int" and not (type(value) is int and 1 <= value <= MOST):
            _refuse(f"{name} to be a positive integer below 2**31", value)
        elif field.type == "float" and (type(value) not in (int, float) or not 0 <= value < math.inf):
            _refuse(f"{name} to be a number of seconds", value)
        values[field.name] = value
    return kind(**values)


def _check_keys(where: str, found: Any, names: list[str]) -> None:
    if not isinstance(found, dict):
        _refuse(f"{where} to be an object with {', '.join(names)}", found)
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    if missing or unknown:
        got = f"it without {missing[0]}" if missing else f"it with {shown(unknown[0])}"
        raise ValueError(f"{WHO}: expected {where} to have {', '.join(names)}, got {got}; {AGAIN}")


def _refuse(wanted: str, got: Any) -> NoReturn:
    raise ValueError(f"{WHO}: expected {wanted}, got {got if isinstance(got, str) else shown(got)}; {AGAIN}")
