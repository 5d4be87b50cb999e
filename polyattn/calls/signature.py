"""A call that does not fit the signature of a function, answered in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

from polyattn.arrays import is_array
from polyattn.arrays.discovery import RECORDING
from polyattn.calls.fields import check_fields
from polyattn.calls.foreign import Table, words_of

__all__ = ["Speaking", "answers", "unknown"]

F = TypeVar("F", bound=Callable[..., Any])


class Form(NamedTuple):
    """What a function can be called with."""

    positional: tuple[str, ...]
    most: int | None  # of positional arguments; None for any number
    required: tuple[str, ...]
    names: tuple[str, ...] | None  # that may be said; None for any


def form_of(f: Callable[..., Any], skip: int = 0) -> Form:
    """The form of a function, without its first parameters."""
    parameters = list(inspect.signature(f).parameters.values())[skip:]
    kinds = {p.kind for p in parameters}
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
    return Form(
        positional,
        None if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional),
        tuple(p.name for p in named if p.default is p.empty),
        None if inspect.Parameter.VAR_KEYWORD in kinds else tuple(p.name for p in named),
    )


def answers(who: str, words: Table = "attention", *, line: str | None = None) -> Callable[[F], F]:
    """A function, or a class that is made of its arguments, that says in a sentence what it cannot be called with.

    words: what other libraries call its arguments. line: how a call is written, for a method, whose first argument
    is left out then.
    """

    def speak(f: F) -> F:
        if isinstance(f, type):
            made = "__new__" if issubclass(f, tuple) else "__init__"
            setattr(f, made, method(getattr(f, made), who, words))
            return f
        return method(f, who, words, line) if line is not None else function(f, who, words)

    return speak


def function(f: F, who: str, words: Table) -> F:
    form = form_of(f)

    @wraps(f)
    def asked(*arguments: Any, **options: Any) -> Any:
        if _unfit(form, len(arguments), options):
            raise _sentence(who, _written(who), form, words, arguments, options)
        if RECORDING:
            arguments, options = _together(arguments, options)
        return f(*arguments, **options)

    return asked  # type: ignore[return-value]


def method(f: F, who: str | Callable[[Any], str], words: Table = "attention", line: str | None = None) -> F:
    """who: the name in which it speaks, or how an instance says it."""
    form = form_of(f, 1)

    @wraps(f)
    def asked(self: Any, *arguments: Any, **options: Any) -> Any:
        if _unfit(form, len(arguments), options):
            name = who if isinstance(who, str) else who(self)
            raise _sentence(name, line or _written(name), form, words, arguments, options)
        if RECORDING:
            arguments, options = _together(arguments, options)
        return f(self, *arguments, **options)

    return asked  # type: ignore[return-value]


def _together(arguments: Any, options: Any) -> Any:
    """Plain arrays beside recorded ones as constants."""
    from polyattn.gradients.together import together  # a room that waits for the first derivative

    return together((arguments, options))


class Speaking(type):
    """Classes of which the making and some methods do so, in the name that an instance has for itself."""

    #: The methods, and how a call of them is written.
    METHODS: Mapping[str, str] = {
        "__call__": "layer",
        "run": "layer",
        "init": "layer.init",
        "empty_cache": "layer.empty_cache",
    }

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **options: Any) -> Speaking:
        for called, line in cls.METHODS.items():
            if inspect.isfunction(f := body.get(called)):
                body[called] = method(f, partial(_own_name, called), "layers", line)
        if isinstance(preset := body.get("preset"), classmethod):
            who = f"polyattn.layers.{name}.preset"
            body["preset"] = classmethod(method(preset.__func__, who, "settings", f"{name}.preset"))
        return super().__new__(cls, name, bases, body, **options)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        form = form_of(cls.__init__, 1)  # type: ignore[misc]
        who = f"polyattn.layers.{cls.__name__}"
        if _unfit(form, len(arguments), options):
            raise _sentence(who, _written(who), form, "settings", arguments, options)
        check_fields(who, cls, dict(zip(form.positional, arguments, strict=False)) | options)
        return super().__call__(*arguments, **options)


def _own_name(method: str, self: Any) -> str:
    return str(self.name) if method in ("__call__", "run") else f"{self.name}.{method}"


def _unfit(form: Form, count: int, options: Mapping[str, Any]) -> bool:
    if form.most is not None and count > form.most:
        return True
    if form.names is not None:
        for name in options:
            if name not in form.names:
                return True
    given = form.positional[:count]
    for name in form.required:
        if (name in given) == (name in options):
            return True
    return any(name in options for name in given)  # said twice


def _sentence(
    who: str, call: str, form: Form, words: Table, arguments: Sequence[Any], options: Mapping[str, Any]
) -> TypeError:
    count = len(arguments)
    given = form.positional[:count]
    for name in options:
        if form.names is not None and name not in form.names:
            return unknown(who, name, form.names, words)
    line = f"{call}({_signature(form)})"
    if form.most is not None and count > form.most:
        came = f"{count} arguments" if count > 1 else "1 argument"
        some = f"{', '.join(form.positional)} by position" if form.positional else "nothing by position"
        rest = ", the others by name" if form.names is None or len(form.names) > form.most else ""
        extra = next((n for n in form.names or () if n not in form.positional), None)
        line = line if extra is None or extra in form.required else line.replace("...", f"{extra}=...")
        return TypeError(f"{who}: expected {some}{rest}, got {came} by position; write {line}")
    for name in given:
        if name in options:
            return TypeError(f"{who}: expected {name} once, got it by position and by name; write {line}")
    missing = [name for name in form.required if name not in given and name not in options]
    if missing == ["x"] and given == ("params",) and is_array(arguments[0]):
        return TypeError(
            f"{who}: expected params and x, got one array; write params = layer.init(seed, like=x) once, and {line}"
        )
    said = ", ".join([*given, *options]) or "nothing"
    wanted = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
    return TypeError(f"{who}: expected {wanted} too, got {said}; write {line}")


def _written(who: str) -> str:
    """The name of a function as it is written in a program."""
    parts = who.split(".")
    return ".".join(parts[-2:] if parts[1:2] in (["masks"], ["mods"], ["layers"]) else parts[-1:])


def _signature(form: Form) -> str:
    """The call as it is written: what is required, and whether there is more."""
    required = [name if name in form.positional else f"{name}=..." for name in form.required]
    more = form.names is None or len(form.names) > len(required)
    return ", ".join([*required, *(["..."] if more else [])])


def unknown(who: str, name: str, names: Sequence[str], words: Table = "attention") -> TypeError:
    """The answer to a name that is not among the names of the arguments of a function."""
    for answer in words_of(words).get(name, ()):
        if answer.fits(names):
            return TypeError(f"{who}: expected {answer.here}, got {name}=, {answer.said}; {answer.line}")
    if close := _closest(name, names):
        return TypeError(
            f"{who}: expected arguments among {', '.join(names)}, got {name}=; did you mean {close}=?"
        )
    return TypeError(f"{who}: expected arguments among {', '.join(names)}, got {name}=; leave it out")


def _closest(name: str, names: Iterable[str]) -> str | None:
    found = get_close_matches(name, names, 1, 0.65)
    return found[0] if found else None
