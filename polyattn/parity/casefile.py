"""An observed output and what was meant, from an .npz file: the input of `polyattn diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyattn import masks, mods
from polyattn.weights.untrusted import read_npz

__all__ = ["read"]

ARRAYS = ("output", "query", "key", "value")
OPTIONS = ("mask", "bias", "sinks", "scale", "is_causal", "query_offset", "softcap", "window", "embed_dim", "layout")  # fmt: skip
_KINDS = {"a number": "fiu", "an integer": "iu", "a bool": "b", "a word": "U"}


def read(path: Path) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """(output, query, key, value) and the context for `diagnose`.

    Other names that the file may have: mask (bool), bias, sinks, scale, is_causal, query_offset (a number, or "end"),
    softcap, window (left, right; -1 = unbounded), embed_dim, layout ("BHLD" or "BLHD"). ValueError for anything
    else, for a file that is damaged or none, and for pickled objects, which are never loaded.
    """
    found = read_npz("polyattn diagnose", path)
    missing = [name for name in ARRAYS if name not in found]
    unknown = sorted(set(found) - {*ARRAYS, *OPTIONS})
    if missing or unknown:
        raise ValueError(
            f"polyattn diagnose: expected the arrays {', '.join(ARRAYS)} and maybe {', '.join(OPTIONS)} in "
            f"{path.name!r}, got it without {', '.join(missing) or 'none of them'} and with "
            f"{', '.join(unknown)[:200] or 'nothing'} unknown; rename them"
        )
    for name in (*ARRAYS, "bias", "sinks"):
        if name in found and found[name].dtype.kind != "f":
            kept = found[name].dtype
            raise ValueError(
                f"polyattn diagnose: expected {name} to be an array of floats, got {kept}; "
                + (
                    "NumPy keeps bfloat16 so: store it as float32, and say --dtype bfloat16"
                    if kept.kind == "V"
                    else "convert it"
                )
            )
    context: dict[str, Any] = {name: found[name] for name in ("mask", "bias", "sinks") if name in found}
    for name, what in (("scale", "a number"), ("is_causal", "a bool"), ("embed_dim", "an integer"), ("layout", "a word")):  # fmt: skip
        if name in found:
            context[name] = _one(name, found[name], what)
    if "query_offset" in found:
        word = found["query_offset"].dtype.kind == "U"
        context["query_offset"] = _one(
            "query_offset", found["query_offset"], "a word" if word else "an integer"
        )
        given = context["query_offset"]
        if given != "end" and (word or abs(given) >= 2**31):
            raise ValueError(
                f"polyattn diagnose: expected query_offset to be an integer below 2**31 or 'end', got "
                f"{str(given)[:40]!r}; store the position of query row 0"
            )
    if "softcap" in found:
        context["score_mod"] = mods.softcap(float(_one("softcap", found["softcap"], "a number")))
    if "window" in found:
        band = _window(found["window"])
        if "mask" in context and context["mask"].dtype != bool:
            raise ValueError(
                f"polyattn diagnose: expected mask to be of bools, True = may attend, got {context['mask'].dtype}; "
                "additive values are called bias"
            )
        context["mask"] = band & masks.from_array(context["mask"]) if "mask" in context else band
    output, query, key, value = (found[name] for name in ARRAYS)
    return (output, query, key, value), context


def _one(name: str, x: Any, what: str) -> Any:
    """The only value of an array, of that kind."""
    if x.size != 1:
        raise ValueError(
            f"polyattn diagnose: expected {name} to be one value, got shape {x.shape}; store a number"
        )
    if x.dtype.kind not in _KINDS[what]:
        raise ValueError(
            f"polyattn diagnose: expected {name} to be {what}, got {str(x.reshape(()).item())[:40]!r} of dtype "
            f"{x.dtype}; store it as that"
        )
    return x.reshape(()).item()


def _window(x: Any) -> masks.Mask:
    if x.shape != (2,) or x.dtype.kind not in "iu":
        raise ValueError(
            f"polyattn diagnose: expected window to be two integers, left and right, got shape {x.shape} of {x.dtype}; "
            "write -1 for a side without bound"
        )
    return masks.window(*(None if side < 0 else int(side) for side in x.tolist()))
