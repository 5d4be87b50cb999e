"""A record as a file: an .npz of plain arrays, and a manifest in JSON that says what each is.

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
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.parity.models.fingerprints import fingerprint
from polyattn.parity.models.record import Record, Tap, Trial
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats
from polyattn.weights.untrusted import check_names_of_file, path_of, read_npz, to_write

__all__ = ["FORMAT", "VERSION", "load", "save"]

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


class _File:
    """What a file says, believed only where its arrays are so."""

    def __init__(self, who: str, name: str, entries: dict[str, Floats]) -> None:
        self.who, self.name, self.entries = who, name, entries

    def wrong(self, what: str, got: str) -> ValueError:
        return ValueError(
            f"{self.who}: expected {what} in the golden file {self.name!r}, got {got}; record it again"
        )

    def check(self, manifest: Mapping[str, Any]) -> None:
        """Every array is as the manifest says, and there is no other."""
        told: Mapping[str, Mapping[str, Any]] = manifest["arrays"]
        if lost := sorted(told.keys() - self.entries.keys()):
            raise self.wrong("every array that its manifest names", f"it without {', '.join(lost[:5])}")
        if more := sorted(self.entries.keys() - told.keys()):
            raise self.wrong("the arrays of its manifest alone", f"{', '.join(more[:5])} besides")
        for name, said in told.items():
            x = self.entries[name]
            if list(x.shape) != said["shape"] or x.dtype.name != said["dtype"] or x.dtype.kind not in "fiub":
                expected = f"{name} of shape {tuple(said['shape'])} and dtype {str(said['dtype'])[:20]}"
                raise self.wrong(expected, f"{x.shape} and {x.dtype}")
            if said["finite"] and not np.isfinite(x).all():
                raise self.wrong(f"finite numbers in {name}", "NaN or infinity")

    def array(self, name: Any) -> Floats:
        if name not in self.entries:
            raise self.wrong("the array of every entry", f"none for {str(name)[:40]!r}")
        return self.entries[name]

    def unit(self, name: Any, value: Floats) -> Floats:
        """A unit: a number that is not negative for each row."""
        x = self.array(name)
        rows = (*np.atleast_1d(value).shape[:-1], 1)
        if x.shape != rows or x.dtype.kind != "f" or not np.isfinite(x).all() or (x < 0).any():
            raise self.wrong(f"a unit of shape {rows}, finite and not negative", f"{x.shape} of {x.dtype}")
        return x

    def tree(self, said: Any) -> Any:
        ((kind, part),) = said.items()
        if kind == "array":
            return self.array(part)
        if kind == "dict":
            return {str(name): self.tree(x) for name, x in part.items()}
        if kind in ("tuple", "list"):
            made = [self.tree(x) for x in part]
            return tuple(made) if kind == "tuple" else made
        if kind == "value" and (part is None or isinstance(part, bool | int | float | str)):
            return part
        raise self.wrong("a batch of arrays and plain values", str(kind)[:40])

    def tap(self, said: Mapping[str, Any]) -> Tap:
        value = self.array(said["value"])
        given, facts = said["input_unit"], said["facts"]
        inputs = [[self.array(x) for x in t["inputs"]] for t in said["trials"]]
        trials = tuple(
            Trial(str(t["label"]), tuple(x), y := self.array(t["expected"]), self.unit(t["unit"], y))
            for t, x in zip(said["trials"], inputs, strict=True)
        )
        first = None if given is None or not inputs or not inputs[0] else inputs[0][0]
        if facts is not None:
            made = import_module("polyattn.parity.components").Facts
            arrays = {str(name): self.array(x) for name, x in facts["arrays"].items()}
            if not all(isinstance(x, bool | int | float | str) for x in facts["numbers"].values()):
                raise self.wrong("facts that are numbers or words", "something else")
            facts = made(facts["kind"], arrays, dict(facts["numbers"]))
        if said["alone"] and not trials:
            raise self.wrong(f"what {str(said['name'])[:40]} gave alone", "none")
        if said["dtype"] not in UNIT_ROUNDOFF and str(said["dtype"]).startswith(("float", "bfloat")):
            raise self.wrong(f"a dtype among {', '.join(UNIT_ROUNDOFF)}", repr(str(said["dtype"])[:20]))
        return Tap(
            str(said["name"]),
            str(said["kind"]),
            None if said["parent"] is None else str(said["parent"]),
            str(said["dtype"]),
            value,
            self.unit(said["unit"], value),
            None if first is None else self.unit(given, first),
            tuple(map(str, said["paths"])),
            trials,
            facts,
            bool(said["alone"]),
        )


def load(who: str, path: Any) -> Record:
    """The record in a file; ValueError for one that is damaged, of another version, or says what is not so."""
    path = path_of(who, path)
    entries = read_npz(who, path)
    file = _File(who, os.path.basename(path), entries)
    manifest = _manifest(file, entries)
    try:
        file.check(manifest)
        taps = [file.tap(said) for said in manifest["taps"]]
        args, kwargs = file.tree(manifest["batch"])
        weights = {
            str(name): {
                "shape": [int(n) for n in said["shape"]],
                "hash": str(said["hash"]),
                "sorted": str(said["sorted"]),
                "rms": float(said["rms"]),
            }
            for name, said in manifest["weights"].items()
        }
        if len({tap.name for tap in taps}) != len(taps) or not taps:
            raise file.wrong("taps with different names", f"{len(taps)}, some twice" if taps else "none")
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise file.wrong("a batch of arguments and keywords", type(args).__name__)
        return Record(
            {tap.name: tap for tap in taps},
            (args, kwargs),
            {},
            str(manifest["library"]),
            str(manifest["measured"]),
            bool(manifest["deterministic"]),
            tuple(map(str, manifest["notes"])),
            weights,
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise file.wrong(
            f"the manifest of version {VERSION}", f"one that lacks or mistakes {str(error)[:80]}"
        ) from None


def _manifest(file: _File, entries: dict[str, Floats]) -> dict[str, Any]:
    text = entries.pop("manifest", None)
    if text is None or text.dtype != np.uint8 or text.ndim != 1:
        raise file.wrong("a manifest", "none")
    try:
        manifest = json.loads(text.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise file.wrong("a manifest in JSON", str(error)[:80]) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise file.wrong(f"the format {FORMAT!r}", "another")
    if manifest.get("version") != VERSION:
        raise file.wrong(f"version {VERSION}", f"version {str(manifest.get('version'))[:20]}")
    return manifest
