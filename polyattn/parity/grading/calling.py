"""A function of somebody else, called once: its answer as NumPy has it, or what came instead, in words."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polyattn.arrays import backend_of, is_array
from polyattn.parity.bench import Bench
from polyattn.parity.report import visible
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["OPTIONS", "Reply", "accepted", "call", "sentence_of", "short"]

#: What a function may take beside query, key and value, by keyword.
OPTIONS = ("mask", "is_causal", "scale")
LARGEST = 2**20  # numbers of an answer that are looked at
LONGEST = 160  # characters of what an exception says


class Reply(NamedTuple):
    """What one call gave: an output, or the trouble there was."""

    out: Floats | None
    trouble: str = ""  # what the function did instead of answering
    changed: tuple[str, ...] = ()  # inputs that it wrote to
    dtype: str = ""  # of the output, as it came


def accepted(function: Callable[..., Any]) -> frozenset[str]:
    """Those of OPTIONS that a function takes, as far as its signature tells."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except Exception:  # a signature may be computed by anybody's code
        return frozenset()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return frozenset(OPTIONS)
    by_keyword = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(OPTIONS) & by_keyword


def call(function: Callable[..., Any], bench: Bench, given: Mapping[str, Any]) -> Reply:
    """function(query, key, value, **the rest) with arrays of the library of a bench, floats in float32."""
    arrays = {
        name: bench.array(x, "float32") if isinstance(x, np.ndarray) else x for name, x in given.items()
    }
    rest = {name: x for name, x in arrays.items() if name not in ("query", "key", "value")}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = function(arrays["query"], arrays["key"], arrays["value"], **rest)
    except KeyboardInterrupt:
        raise
    except SystemExit:
        return Reply(None, "it ended the program, by sys.exit or the like; return the output instead")
    except BaseException as error:
        return Reply(None, f"it raised {sentence_of(error)}")
    try:
        changed = tuple(
            name
            for name, x in given.items()
            if isinstance(x, np.ndarray) and not np.array_equal(bench.numpy(arrays[name]), x, equal_nan=True)
        )
        return _read(found, bench)._replace(changed=changed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what came, or was left of the inputs, only looks like an array
        return Reply(
            None, f"it returned {_kind(found)}, which cannot be read as an array: {sentence_of(error)}"
        )


def _read(found: Any, bench: Bench) -> Reply:
    if isinstance(found, tuple):
        return Reply(None, f"it returned a tuple of {len(found)}; return the output alone")
    if found is None:
        return Reply(None, "it returned None; is there a return at its end?")
    if not is_array(found) or backend_of(found).name != bench.name:
        return Reply(None, f"it returned {_kind(found)}; return an array of {bench.name}")
    dtype = str(found.dtype).rpartition(".")[2]
    if dtype not in UNIT_ROUNDOFF:
        return Reply(None, f"it returned an array of {short(dtype)}; return real floats")
    if (size := int(np.prod(found.shape))) > LARGEST:
        return Reply(None, f"it returned {size} numbers, more than are looked at")
    return Reply(np.array(bench.numpy(found), np.float64), dtype=dtype)


def _kind(found: Any) -> str:
    kind = type(found)
    try:
        return short(f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", ""))
    except Exception:
        return "something without a name"


def sentence_of(error: BaseException) -> str:
    """An exception in one line that no terminal obeys."""
    try:
        return short(f"{type(error).__name__}: {error}".removesuffix(": "))
    except Exception:
        return "an exception whose text cannot be made"


def short(text: str, longest: int = LONGEST) -> str:
    """One line that no terminal obeys, and no longer than that."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= longest else line[:longest] + "..."
