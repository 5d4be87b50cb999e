"""Parameters without their numbers: enough to say which are others, and not to carry a model about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["Differing", "differences", "fingerprint"]

Print = Mapping[str, Any]


@dataclass(frozen=True)
class Differing:
    """A parameter that is another in the port."""

    name: str
    port_name: str | None
    sentence: str


def fingerprint(x: Floats) -> dict[str, Any]:
    """Shape, a hash of the numbers in float32, one of the same numbers sorted, and their root mean square.

    >>> fingerprint(np.ones(2))["shape"]
    [2]
    """
    plain = np.ascontiguousarray(x, np.float32) + np.float32(0)  # -0 is 0
    hashed = [hashlib.sha256(y.tobytes()).hexdigest()[:32] for y in (plain, np.sort(plain, axis=None))]
    rms = float(np.sqrt(np.mean(plain.astype(np.float64) ** 2))) if plain.size else 0.0
    return {
        "shape": list(plain.shape),
        "hash": hashed[0],
        "sorted": hashed[1],
        "rms": rms if np.isfinite(rms) else 0.0,
    }


def differences(
    reference: Mapping[str, Print], port: Mapping[str, Floats], names: Mapping[str, str]
) -> list[Differing]:
    """Parameters of the reference that the port has in another form, or not at all.

    Where names say nothing the port's own parameters are searched for the same numbers.
    """
    here = {name: fingerprint(x) for name, x in port.items()}
    same = {one["hash"] for one in here.values()}
    moved = {one["sorted"]: name for name, one in here.items()}
    found = []
    for name, one in reference.items():
        other = names.get(name, name if name in here else None)
        if other is None:
            if one["hash"] in same or one["sorted"] in moved:
                continue
            found.append(Differing(name, None, f"{name}: no parameter of the port has its numbers"))
        elif (sentence := _apart(name, one, other, here[other])) is not None:
            found.append(Differing(name, other, sentence))
    return found


def _apart(name: str, one: Print, other: str, two: Print) -> str | None:
    if one["hash"] == two["hash"] and one["shape"] == two["shape"]:
        return None
    if one["sorted"] == two["sorted"]:
        shapes = f"shape {tuple(one['shape'])}, in the port {tuple(two['shape'])}"
        return f"{name}: {other} has the same numbers in another order ({shapes})"
    if one["shape"] != two["shape"]:
        return (
            f"{name}: {other} has shape {tuple(two['shape'])}, where the reference has {tuple(one['shape'])}"
        )
    return f"{name}: {other} has other numbers (rms {two['rms']:.3g}, in the reference {one['rms']:.3g})"
