"""A record from a file, which is believed only where its arrays are as its manifest says (see `golden.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from polyattn.parity.models.golden import FORMAT, VERSION
from polyattn.parity.models.records import Record, Tap, Trial
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats
from polyattn.weights.untrusted import path_of, read_npz

__all__ = ["load"]


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
    file = _File(who, path.name, entries)
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
