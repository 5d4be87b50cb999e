"""Who is called, inside whom, how often: what every way of watching a model shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyattn.parity.models.trees import first, mapped, snapshot
from polyattn.truth.spec import Floats

__all__ = ["OUTPUT", "Leave", "Runner", "Site", "Watch", "patched", "tap"]

OUTPUT = "output"  # the name of the whole model among its taps


@dataclass
class Site:
    """One finished call of a component."""

    name: str
    module: Any  # what facts are read from; None where there is no object
    kind: str  # the class, for whoever reads
    args: tuple[Any, ...]  # as they were given, in the arrays of the model
    kwargs: Mapping[str, Any]
    output: Any
    parent: str | None  # the component inside which it was called
    counts: Mapping[str, int] = field(default_factory=dict)  # of the calls before it
    again: Callable[..., Any] | None = None  # (site, args, kwargs, leave) -> output: this component alone


Leave = Callable[[Site], Any]  # sees a finished call; what it returns goes on in place of the output


class Runner(Protocol):
    """A model of some framework that can be watched."""

    library: str
    training: bool  # whether it says itself that it is being trained

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        """The whole model, every component of it seen by `leave`, the whole one last, as "output"."""

    def given(self, x: Any) -> Any:
        """An array of a batch in the library of the model."""

    def weights(self) -> dict[str, Floats]:
        """Its parameters by name."""

    def doubled(self) -> Runner | None:
        """The same model in float64, None where this cannot be made."""


class Watch:
    """The calls of one run: names those that come again, keeps who is inside whom."""

    def __init__(self, leave: Leave, counts: Mapping[str, int] | None = None) -> None:
        self.leave = leave
        self.counts: Counter[str] = Counter(counts or {})
        self.stack: list[tuple[str, Any]] = []

    def inside(self, key: Any) -> bool:
        """Whether that component is the one that runs now: a method of a base class calls it once more."""
        return bool(self.stack) and self.stack[-1][1] is key

    def enter(self, base: str, key: Any, args: Any, kwargs: Any) -> Any:
        """A component begins."""
        counts = dict(self.counts)
        self.counts[base] += 1
        n = self.counts[base]
        name = base if n == 1 else f"{base}#{n}"
        self.stack.append((name, key))
        return name, snapshot(args), snapshot(kwargs), counts

    def finish(
        self, entered: Any, module: Any, output: Any, again: Any, kind: str = "", hold: Any = None
    ) -> Any:
        """It ended; the output that goes on."""
        name, args, kwargs, counts = entered
        self.stack.pop()
        parent = self.stack[-1][0] if self.stack else None
        kind = kind or type(module).__name__
        site = Site(name, module if hold is None else hold, kind, args, kwargs, output, parent, counts, again)
        return self.leave(site)


@contextmanager
def patched(classes: Iterable[type], name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """A method of some classes replaced by make(method), and put back whatever happens."""
    old = [(cls, vars(cls)[name]) for cls in dict.fromkeys(classes) if name in vars(cls)]
    try:
        for cls, method in old:
            setattr(cls, name, make(method))
        yield
    finally:
        for cls, method in old:
            setattr(cls, name, method)


_WATCHED: ContextVar[Callable[[str, Any], Any] | None] = ContextVar("polyattn_taps", default=None)


def tap(name: str, x: Any) -> Any:
    """x; and where a model is recorded or compared, x under this name, or what the reference has there.

        def block(p, x):
            x = x + tap("attention", attention(p, norm(x)))
            return tap("block", x + mlp(p, norm(x)))

    Free where nothing records: it returns x itself. While a port is compared it may return the reference's array
    in the dtype of x, so what is to be judged must be computed from what `tap` returns. x may be a tuple, a mapping or
    a dataclass: its first array counts. A name that comes again gets "#2", "#3". TypeError for a name that is no
    string. Under jax.jit there are no values to record: a recorded function is run without it.

    >>> tap("attention", 3.0)
    3.0
    """
    if not isinstance(name, str):
        raise TypeError(
            f"polyattn.parity.tap: expected a name and an array, got {type(name).__name__} first; write tap('mlp', x)"
        )
    watched = _WATCHED.get()
    return x if watched is None else watched(name, x)


@contextmanager
def tapped(watch: Watch) -> Iterator[None]:
    """Inside, `tap` tells this watch."""

    def see(name: str, x: Any) -> Any:
        if first(x) is None:
            return x
        entered = watch.enter(name, object(), (), {})
        return watch.finish(entered, None, x, None, "tap")

    token = _WATCHED.set(see)
    try:
        yield
    finally:
        _WATCHED.reset(token)


def converted(runner: Runner, tree: Any) -> Any:
    """A batch with its arrays in the library of a model."""
    return mapped(lambda _, x: runner.given(x), tree)
