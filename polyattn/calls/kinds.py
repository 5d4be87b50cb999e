"""The kinds of argument: what is one, and the sentence for what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.arrays import Backend, backend_of, is_array
from polyattn.arrays.discovery import NotPlain

__all__ = [
    "array",
    "check_dtype",
    "flag",
    "integer",
    "integral",
    "is_traced",
    "number",
    "real",
    "shown",
    "size",
]

MOST = 2**31 - 1  # of anything that is counted
LONGEST = 60  # of what is repeated to the caller


def shown(value: Any) -> str:
    """A value in a sentence: arrays by shape and dtype, mappings by their keys, whatever is long cut short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = with_article(type(value).__name__)
    if is_array(value) and hasattr(value, "shape"):
        if is_traced(value):
            return f"a traced value of dtype {value.dtype} and shape {tuple(value.shape)}"
        if tuple(value.shape) or "\n" in repr(value):
            return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:4])) + ", ..." * (len(value) > 4)
        return f"{kind} of {keys or 'nothing'}"
    text = repr(value)
    if callable(value) and text.startswith("<"):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    if " at 0x" in text.lower() or "\n" in text:
        return kind
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 3]}..." if isinstance(value, (str, bytes, list, tuple, int)) else kind


def with_article(name: str) -> str:
    """A name with a or an before it, as it is spoken."""
    spoken = name[:1] in "AEIOUaeio" or name.startswith(("MLP", "RMS"))
    return f"{'an' if spoken else 'a'} {name}"


def is_traced(value: Any) -> bool:
    """Whether a value is an array that a compiler traces, whose numbers nobody knows yet."""
    if not is_array(value):
        return False
    try:
        return not backend_of(value).is_concrete(value)
    except TypeError:  # no array after all
        return False


def array(who: str, name: str, value: Any, what: str = "") -> Backend:
    """The backend of an array of an array API library."""
    if is_array(value):
        try:
            return backend_of(value)
        except NotPlain as error:
            raise TypeError(f"{who}: expected {name} to be {error.wanted}") from None
        except TypeError:
            pass
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    raise TypeError(
        f"{who}: expected {name} to be an array of an array API library (NumPy, JAX, PyTorch, ...)"
        f"{what and f', {what}'}, got {'the class ' if isinstance(value, type) else ''}{kind}; "
        "convert it, for example with numpy.asarray"
    )


def real(who: str, name: str, value: Any, what: str = "") -> Backend:
    """The backend of an array of a real floating dtype."""
    backend = array(who, name, value, what)
    if backend.compute_dtype(value.dtype) is None:
        raise TypeError(f"{who}: expected {name} of a real floating dtype, got {value.dtype}; cast it")
    return backend


def integral(who: str, name: str, value: Any, what: str = "") -> Backend:
    """The backend of an array of integers."""
    backend = array(who, name, value, what)
    if not backend.isdtype(value.dtype, "integral"):
        raise TypeError(f"{who}: expected {name} of an integer dtype, got {value.dtype}; cast it")
    return backend


def check_dtype(who: str, backend: Backend, dtype: Any) -> None:
    """A TypeError unless a dtype is one of the library's real floating ones, or None."""
    if dtype is None:
        return
    try:
        right = backend.compute_dtype(backend.xp.asarray(0.0, dtype=dtype).dtype) is not None
    except Exception:  # whatever a library says of what is none
        right = False
    if not right:
        raise TypeError(
            f"{who}: expected a real floating dtype of {backend.name}, got {shown(dtype)}; write x.dtype"
        )


def integer(
    who: str, name: str, value: Any, least: int | None = None, advice: str = "", *, most: int | None = None
) -> int:
    """A Python integer, from `least` to `most`."""
    if is_traced(value):
        raise TypeError(
            f"{who}: expected {name} to be an integer that is known while a compiler traces, got {shown(value)}; "
            "make it a static argument, for example jax.jit(f, static_argnames=...)"
        )
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, type):
        raise TypeError(
            f"{who}: expected {name} to be an integer, got {shown(value)}; {advice or 'pass a Python int'}"
        )
    try:
        found = int(value.__index__())
    except TypeError:  # an array that is not one integer
        raise TypeError(
            f"{who}: expected {name} to be an integer, got {shown(value)}; {advice or 'pass a Python int'}"
        ) from None
    if least is not None and found < least:
        raise ValueError(
            f"{who}: expected {name} >= {least}, got {value!r}; {advice or 'pass a larger number'}"
        )
    if most is not None and found > most:
        raise ValueError(
            f"{who}: expected {name} <= {most}, got {shown(value)}; {advice or 'pass a smaller number'}"
        )
    return found


def size(who: str, name: str, value: Any, least: int = 0, advice: str = "") -> int:
    """The size of an axis."""
    return integer(who, name, value, least, advice, most=MOST)


def number(who: str, name: str, value: Any, advice: str = "pass a Python float") -> float:
    """A Python number, or one of NumPy's, as a float."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if is_array(value) and type(value).__module__ == "numpy" and hasattr(value, "item") and not value.ndim:
        return number(who, name, value.item(), advice)
    if is_traced(value):
        advice = f"it is static: jax.jit(f, static_argnames={name!r})"
    elif is_array(value) and hasattr(value, "shape") and tuple(value.shape) == ():
        advice = f"write {name}=float({name})"
    raise TypeError(f"{who}: expected {name} to be a Python number, got {shown(value)}; {advice}")


def flag(who: str, name: str, value: Any, advice: str = "pass one of these", static: str = "") -> bool:
    """True or False, or NumPy's. static: the argument that is to be static, if not of that name."""
    if isinstance(value, bool):
        return value
    if is_array(value) and type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if is_traced(value):
        raise TypeError(
            f"{who}: expected {name} to be True or False while a compiler traces, got {shown(value)}; "
            f"make it a static argument: jax.jit(f, static_argnames={static or name!r})"
        )
    if type(value) is int and value in (0, 1):
        advice = f"write {name}={bool(value)}"
    elif is_array(value) and hasattr(value, "shape") and tuple(value.shape) == ():
        advice = f"write {name}=bool({name})"
    raise TypeError(f"{who}: expected {name} to be True or False, got {shown(value)}; {advice}")
