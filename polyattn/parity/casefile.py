"""An observed output and what was meant, from an .npz file: the input of `polyattn diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyattn import masks, mods
from polyattn.rotary import Rotary
from polyattn.weights.untrusted import read_npz

__all__ = ["read", "read_bools"]

ARRAYS = ("output", "query", "key", "value")
OPTIONS = (
    "mask", "bias", "sinks", "scale", "is_causal", "query_offset", "softcap", "alibi", "window", "rotary_base",
    "rotary_width", "rotary_interleaved", "embed_dim", "layout", "rows", "heads", "where", "decimals",
)  # fmt: skip
_SINGLE = {
    "scale": "a number", "is_causal": "a bool", "embed_dim": "an integer", "layout": "a word", "decimals": "an integer",
}  # fmt: skip
_ROTARY = {"base": "a number", "width": "an integer", "interleaved": "a bool"}
_KINDS = {"a number": "fiu", "an integer": "iu", "a bool": "b", "a word": "U"}


def read(path: Path) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """(output, query, key, value) and the context for `diagnose`.

    Other names that the file may have: mask (bool), bias, sinks, scale, is_causal, query_offset (a number, one for each
    batch item, or "end"), softcap, alibi (slopes, or the number of heads), window (left, right; -1 = unbounded), rotary_base,
    rotary_width, rotary_interleaved, embed_dim, layout ("BHLD" or "BLHD"), and for a part of an output, or a printed
    one, rows, heads, where (bool) and decimals. ValueError for anything else, for a file that is damaged or none, and for
    pickled objects, which are never loaded.
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
    context: dict[str, Any] = {
        name: found[name] for name in ("mask", "bias", "sinks", "where") if name in found
    }
    for name, what in _SINGLE.items():
        if name in found:
            context[name] = _one(name, found[name], what)
    for name in ("rows", "heads"):
        if name in found:
            context[name] = _several(name, found[name])
    if "query_offset" in found:
        context["query_offset"] = _offset(found["query_offset"])
    parts = []
    if "softcap" in found:
        parts.append(mods.softcap(float(_one("softcap", found["softcap"], "a number"))))
    if "alibi" in found:
        slopes = found["alibi"]
        parts.append(mods.alibi(int(slopes) if slopes.ndim == 0 and slopes.dtype.kind in "iu" else slopes))
    if parts:
        context["score_mod"] = parts[0] if len(parts) == 1 else mods.compose(*parts)
    turning = {name: _one(f"rotary_{name}", found[f"rotary_{name}"], what) for name, what in _ROTARY.items() if f"rotary_{name}" in found}  # fmt: skip
    if turning:
        context["rotary"] = Rotary(**turning)
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


def read_bools(path: Path) -> Any:
    """The one array of an .npz file, of bools."""
    found = read_npz("polyattn diagnose", path)
    if len(found) != 1 or next(iter(found.values())).dtype != bool:
        kinds = ", ".join(f"{name} of {x.dtype}" for name, x in found.items())
        raise ValueError(
            f"polyattn diagnose: expected one array of bools in {path.name!r}, got {kinds[:200] or 'nothing'}; "
            "write numpy.savez(file, where=counts)"
        )
    return next(iter(found.values()))


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


def _several(name: str, x: Any) -> Any:
    """Indices."""
    if x.ndim > 1 or x.dtype.kind not in "iu":
        raise ValueError(
            f"polyattn diagnose: expected {name} to be integers, got shape {x.shape} of {x.dtype}; store their indices"
        )
    return x.reshape(-1)


def _offset(x: Any) -> Any:
    """The position of query row 0: a number, one for each batch item, or "end"."""
    word = x.dtype.kind == "U"
    if word or x.ndim == 0:
        given = _one("query_offset", x, "a word" if word else "an integer")
        if given != "end" and (word or abs(given) >= 2**31):
            raise ValueError(
                f"polyattn diagnose: expected query_offset to be an integer below 2**31 or 'end', got "
                f"{str(given)[:40]!r}; store the position of query row 0"
            )
        return given
    if x.ndim > 1 or x.dtype.kind not in "iu" or (abs(x.astype(float)) >= 2.0**31).any():
        raise ValueError(
            f"polyattn diagnose: expected query_offset to be integers below 2**31, one for each batch item, got shape "
            f"{x.shape} of {x.dtype}; store the position of query row 0"
        )
    return x


def _window(x: Any) -> masks.Mask:
    if x.shape != (2,) or x.dtype.kind not in "iu":
        raise ValueError(
            f"polyattn diagnose: expected window to be two integers, left and right, got shape {x.shape} of {x.dtype}; "
            "write -1 for a side without bound"
        )
    return masks.window(*(None if side < 0 else int(side) for side in x.tolist()))
