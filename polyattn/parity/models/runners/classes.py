"""Models whose components are objects, watched by their classes' `__call__`; those of JAX without its compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

from polyattn.parity.models.trees import Traced, first
from polyattn.parity.models.watching import Leave, Site, Watch, patched

__all__ = ["Calls", "no_tracers", "uncompiled"]


def uncompiled(run: Callable[[], Any]) -> Any:
    """run(), and once more without JAX's compiler where tracers were met: they hold no values."""
    try:
        return run()
    except Traced:
        with sys.modules["jax"].disable_jit():
            return run()


def no_tracers(x: Any) -> None:
    """Traced, if the first array is one."""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(first(x), jax.core.Tracer):
        raise Traced


class Calls:
    """What nnx and Keras share: components found by identity, their classes' `__call__` wrapped for a while."""

    names: dict[int, str]  # id of a component -> its name
    classes: tuple[type, ...]
    model: Any

    def context(self) -> AbstractContextManager[Any]:
        """In which everything runs."""
        return nullcontext()

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        """The whole model."""

        def once() -> Any:
            with self.context(), self._patched(Watch(leave)):
                return self.model(*args, **kwargs)

        return uncompiled(once)

    def again(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave | None = None
    ) -> Any:
        """One component alone."""

        def once() -> Any:
            watch = Watch(leave or (lambda inner: inner.output), site.counts)
            with self.context(), self._patched(watch):
                return site.module(*args, **kwargs)

        return uncompiled(once)

    @contextmanager
    def _patched(self, watch: Watch) -> Iterator[None]:
        def make(method: Any) -> Any:
            if type(method).__module__.startswith("flax."):  # nnx.jit, which would call a copy of the module
                method = method.__wrapped__

            @wraps(method)
            def call(module: Any, *args: Any, **kwargs: Any) -> Any:
                name = self.names.get(id(module))
                if name is None or watch.inside(module):
                    return method(module, *args, **kwargs)
                no_tracers((args, kwargs))
                entered = watch.enter(name, module, args, kwargs)
                return watch.finish(entered, module, method(module, *args, **kwargs), self.again)

            return call

        with patched(self.classes, "__call__", make):
            yield
