"""An observed output and what was meant, from an .npz file: the input of `polyattn diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyattn import masks, mods
from polyattn.weights.untrusted import read_npz

__all__ = ["read"]

ARRAYS = ("output", "query", "key", "value")
OPTIONS = ("mask", "bias", "sinks", "scale", "is_causal", "query_offset", "softcap", "window", "embed_dim", "layout")  # fmt: skip


def read(path: Path) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """(output, query, key, value) and the context for `diagnose`.

    Other names that the file may have: mask (bool), bias, sinks, scale, is_causal, query_offset (a number, or "end"),
    softcap, window (left, right; -1 = unbounded), embed_dim, layout ("BHLD" or "BLHD"). ValueError for anything
    else, for a file that is damaged, and for pickled objects, which are never loaded.
    """
    found = read_npz("polyattn diagnose", path)
    missing = [name for name in ARRAYS if name not in found]
    unknown = sorted(set(found) - {*ARRAYS, *OPTIONS})
    if missing or unknown:
        raise ValueError(
            f"polyattn diagnose: expected the arrays {', '.join(ARRAYS)} and maybe {', '.join(OPTIONS)} in "
            f"{path.name!r}, got it without {', '.join(missing) or 'none of them'} and with {', '.join(unknown) or 'nothing'} unknown; rename them"
        )
    context: dict[str, Any] = {name: found[name] for name in ("mask", "bias", "sinks") if name in found}
    for name, kind in (("scale", float), ("is_causal", bool), ("embed_dim", int), ("layout", str)):
        if name in found:
            context[name] = kind(_one(name, found[name]))
    if "query_offset" in found:
        offset = _one("query_offset", found["query_offset"])
        context["query_offset"] = str(offset) if found["query_offset"].dtype.kind == "U" else int(offset)
    if "softcap" in found:
        context["score_mod"] = mods.softcap(float(_one("softcap", found["softcap"])))
    if "window" in found:
        sides = [None if side < 0 else int(side) for side in np.atleast_1d(found["window"]).tolist()]
        if len(sides) != 2:
            raise ValueError(
                f"polyattn diagnose: expected window to be two numbers, left and right, got {len(sides)}; write -1 for a side without bound"
            )
        band = masks.window(*sides)
        context["mask"] = band & masks.from_array(context["mask"]) if "mask" in context else band
    output, query, key, value = (found[name] for name in ARRAYS)
    return (output, query, key, value), context


def _one(name: str, x: Any) -> Any:
    if x.size != 1:
        raise ValueError(
            f"polyattn diagnose: expected {name} to be one value, got shape {x.shape}; store a number"
        )
    return x.reshape(()).item()
