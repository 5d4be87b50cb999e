"""A record as a file, written: an .npz of plain arrays, and a manifest in JSON that says what each is.

"manifest" holds the UTF-8 bytes of a JSON object, the other entries are called a0, a1, ...:

    format    "polyattn golden model"        version   1
    library, measured, deterministic, notes            as of the `Record`
    arrays    {"a0": {"shape": [2, 5], "dtype": "float32", "finite": true}, ...}: of every entry
    batch     [args, kwargs]; {"array": "a0"}, {"tuple": [...]}, {"list": [...]}, {"dict": {...}} or {"value": 3}
    taps      [{"name", "kind", "parent", "dtype", "alone", "paths", "value", "unit", "input_unit", "facts",
              "trials": [{"label", "inputs", "expected", "unit"}]}, ...], arrays by their entry
    weights   {name: {"shape", "hash", "sorted", "rms"}}: fingerprints, see `fingerprints.py`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.parity.models.fingerprints import fingerprint
from polyattn.parity.models.records import Record, Tap
from polyattn.truth.spec import Floats
from polyattn.weights.untrusted import check_names_of_file, path_of, to_write

__all__ = ["FORMAT", "VERSION", "save"]

FORMAT, VERSION = "polyattn golden model", 1


class _Kept:
    """Arrays on their way into a file, each once."""

    def __init__(self) -> None:
        self.arrays: dict[str, Floats] = {}
        self.known: dict[int, tuple[str, Floats]] = {}

    def __call__(self, x: Floats) -> str:
        if id(x) not in self.known:
            name = f"a{len(self.arrays)}"
            self.arrays[name] = np.asarray(x)
            self.known[id(x)] = name, x
        return self.known[id(x)][0]


def save(record: Record, path: Any) -> None:
    """Writes a new file."""
    who = "polyattn.parity.Record.save"
    path = to_write(who, path_of(who, path))
    if path.exists():
        raise FileExistsError(f"{who}: expected a new file, got {str(path)!r}, which is there; name another")
    check_names_of_file(who, record)
    keep = _Kept()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "library": record.library,
        "measured": record.measured,
        "deterministic": record.deterministic,
        "notes": list(record.notes),
        "batch": _packed(who, record.batch, keep),
        "taps": [_tap_out(tap, keep) for tap in record.taps.values()],
        "weights": dict(record.fingerprints) or {name: fingerprint(x) for name, x in record.weights.items()},
        "arrays": {name: _told(x) for name, x in keep.arrays.items()},
    }
    text = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    with Path(path).open("xb") as file:
        np.savez_compressed(file, manifest=text, **keep.arrays)  # type: ignore[arg-type]


def _told(x: Floats) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": x.dtype.name, "finite": bool(np.isfinite(x).all())}


def _tap_out(tap: Tap, keep: _Kept) -> dict[str, Any]:
    facts = tap.facts
    return {
        "name": tap.name,
        "kind": tap.kind,
        "parent": tap.parent,
        "dtype": tap.dtype,
        "alone": tap.alone,
        "paths": list(tap.paths),
        "value": keep(tap.value),
        "unit": keep(tap.unit),
        "input_unit": None if tap.input_unit is None else keep(tap.input_unit),
        "facts": None
        if facts is None
        else {
            "kind": facts.kind,
            "numbers": dict(facts.numbers),
            "arrays": {name: keep(x) for name, x in facts.arrays.items()},
        },
        "trials": [
            {
                "label": t.label,
                "inputs": [keep(x) for x in t.inputs],
                "expected": keep(t.expected),
                "unit": keep(t.unit),
            }
            for t in tap.trials
        ],
    }


def _packed(who: str, tree: Any, keep: _Kept) -> Any:
    """A batch in JSON; TypeError for what no file can keep."""
    if isinstance(tree, np.ndarray):
        return {"array": keep(tree)}
    if isinstance(tree, Mapping) and all(isinstance(name, str) for name in tree):
        return {"dict": {name: _packed(who, part, keep) for name, part in tree.items()}}
    if isinstance(tree, tuple | list):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [_packed(who, part, keep) for part in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(
        f"{who}: expected a batch of arrays, numbers, strings, tuples, lists and dicts, which a file can keep, got "
        f"{type(tree).__name__}; pass the arrays in it instead"
    )
