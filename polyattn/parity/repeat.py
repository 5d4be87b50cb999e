"""The program that makes a comparison again, and the arrays that it reads: what it prints runs as it stands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

import numpy as np

from polyattn.conventions.call import Call
from polyattn.parity.report import one_line
from polyattn.truth.spec import Floats

__all__ = ["Repeat", "meant_as_code", "origin_of"]


class Repeat(NamedTuple):
    """What it takes to compare again, beside the inputs."""

    calls: tuple[str, str]  # what f and g are called
    origins: tuple[
        tuple[str, str] | None, tuple[str, str] | None
    ]  # the module and the name, where both can be imported
    meant: Mapping[str, str]  # arguments of attention -> expressions
    kept: Mapping[str, Floats]  # the arrays in them, by their names in the file
    layouts: Sequence[str]
    gradients: bool
    seed: int

    def script(
        self,
        path: str,
        inputs: Sequence[str],
        sides: Sequence[tuple[str, str, str | None]],  # title, library, and why it could not be called
        dtype: str,
    ) -> str:
        """The program."""
        recorded = [origin is None for origin in self.origins]
        functions = [
            _function(letter, self.calls[i], self.origins[i], library, error, dtype)
            for i, (letter, (_, library, error)) in enumerate(zip("fg", sides, strict=True))
        ]
        layouts = tuple("BHLD" if old else layout for old, layout in zip(recorded, self.layouts, strict=True))
        options = [
            f"on={tuple(library for _, library, _ in sides)!r}",
            f"names={tuple(title for title, _, _ in sides)!r}",
            f"layouts={layouts!r}",
            f"dtype={dtype!r}",
            f"gradients={self.gradients and not any(recorded)}",
            f"seed={self.seed}",
        ]
        meant = ", ".join(f"{name!r}: {expression}" for name, expression in self.meant.items())
        return "\n".join(
            (
                "import numpy as np",
                "from polyattn import masks, mods, rotary",
                "from polyattn.parity import compare",
                "from polyattn.testing import load_bench",
                "",
                f"with np.load({path!r}, allow_pickle=False) as file:  # written beside the report, or by save()",
                "    kept = dict(file)",
                f"inputs = {{name: kept[name] for name in {list(inputs)!r}}}",
                *functions,
                f"meant = {{{meant}}}",
                f"print(compare(f, g, inputs, meant=meant, {', '.join(options)}))",
                "",
            )
        )


def _function(
    letter: str, call: str, origin: tuple[str, str] | None, library: str, error: str | None, dtype: str
) -> str:
    if origin is not None:
        module, name = origin
        return f"from {module} import {name.partition('.')[0]}\n{letter} = {name}"
    why = f"# {one_line(call)} cannot be imported: put it here; until then {letter} "
    if error is not None:
        return f"{why}fails as it did\ndef {letter}(*arrays):\n    raise RuntimeError({error!r})\n"
    return f"{why}returns what it returned\n{letter} = lambda *arrays: load_bench({library!r}).array(kept['{letter}.out'], {dtype!r})"


def origin_of(f: Callable[..., Any]) -> tuple[str, str] | None:
    """The module and the name by which another program can import a function; None if it cannot."""
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return None
    top = module.partition(".")[0]
    spec = PathFinder.find_spec(top)  # loaded modules may come from where nobody else looks
    if spec is None or spec.origin != getattr(sys.modules.get(top), "__file__", None):
        return None
    there: Any = sys.modules.get(module)
    try:
        found = reduce(getattr, name.split("."), there)
    except AttributeError:
        return None
    return (module, name) if found is f else None


def meant_as_code(call: Call, meant: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Floats]]:
    """What was meant as expressions, and the arrays in them; masks and modifications in the parts that `call_of` finds."""
    code: dict[str, str] = {name: repr(meant[name]) for name in ("layout", "embed_dim") if name in meant}
    kept: dict[str, Floats] = {}

    def keep(name: str, x: Floats) -> str:
        kept[f"meant.{name}"] = np.asarray(x)
        return f"kept['meant.{name}']"

    if call.is_causal:
        code["is_causal"] = "True"
    if call.window is not None:
        code["mask"] = f"masks.window{call.window!r}"
    if call.mask is not None:
        array = keep("mask", call.mask)
        code["mask"] = f"{code['mask']} & masks.from_array({array})" if "mask" in code else array
    if meant.get("query_offset") is not None:
        code["query_offset"] = repr(int(call.offset))
    if meant.get("scale") is not None:
        code["scale"] = repr(float(call.scale))
    mods = [] if call.softcap is None else [f"mods.softcap({float(call.softcap)!r})"]
    if call.shift is not None:
        added = f"{keep('shift', call.shift)}[b, h, q - {call.offset}, kv]"
        mods.append(f"lambda score, b, h, q, kv: score + {added}")
    if mods:
        code["score_mod"] = mods[0] if len(mods) == 1 else f"mods.compose({', '.join(mods)})"
    if call.bias is not None:
        code["bias"] = keep("bias", call.bias)
    if call.rotary is not None:
        code["rotary"] = f"rotary.{call.rotary!r}".replace("scaling=", "scaling=rotary.").replace(
            "scaling=rotary.None", "scaling=None"
        )
    if call.sinks is not None:
        code["sinks"] = keep("sinks", call.sinks)
    return code, kept
