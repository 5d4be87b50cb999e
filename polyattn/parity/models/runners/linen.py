"""A module of Flax's Linen with its variables, watched by an interceptor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from polyattn.parity.models.runners.classes import no_tracers, uncompiled
from polyattn.parity.models.trees import is_float, to_numpy
from polyattn.parity.models.watching import OUTPUT, Leave, Site, Watch
from polyattn.truth.spec import Floats

__all__ = ["LinenRunner"]


class LinenRunner:
    """Every module that is called by `__call__` is a component, named by its path; nothing is mutable."""

    library = "jax"
    training = False  # what Linen does in training is an argument of the call

    def __init__(self, module: Any, variables: Any, wide: bool = False) -> None:
        self.module, self.wide = module, wide
        self.variables = variables if "params" in variables or not variables else {"params": variables}

    def _context(self) -> AbstractContextManager[Any]:
        import jax

        return jax.enable_x64(True) if self.wide else nullcontext()

    def _applied(
        self, module: Any, variables: Any, args: Any, kwargs: Any, watch: Watch | None, root: str
    ) -> Any:
        from flax import linen

        def see(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            inner = context.module
            if watch is None or context.method_name != "__call__" or watch.inside(inner):
                return method(*args, **kwargs)
            no_tracers((args, kwargs))
            path = ".".join(inner.path)
            name = path if root == OUTPUT else ".".join(part for part in (root, path) if part)
            entered = watch.enter(name or OUTPUT, inner, args, kwargs)
            output = method(*args, **kwargs)
            alone, held = inner.unbind()
            return watch.finish(entered, inner, output, self.again, hold=_Bound(alone, held, name or OUTPUT))

        def once() -> Any:
            with self._context(), linen.intercept_methods(see):
                return module.apply(variables, *args, **kwargs)

        return uncompiled(once)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        return self._applied(self.module, self.variables, args, kwargs, Watch(leave), OUTPUT)

    def again(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave | None = None
    ) -> Any:
        """One component alone."""
        held: _Bound = site.module
        watch = None if leave is None else Watch(leave, site.counts)
        return self._applied(held.alone, held.variables, args, kwargs, watch, held.path)

    def given(self, x: Any) -> Any:
        import jax.numpy as jnp

        with self._context():
            made = jnp.asarray(to_numpy(x) if not hasattr(x, "devices") else x)
            return made.astype(jnp.float64) if self.wide and is_float(made) else made

    def weights(self) -> dict[str, Floats]:
        from flax import linen, traverse_util

        flat = traverse_util.flatten_dict(dict(self.variables.get("params", {})), sep=".")
        return {name: to_numpy(linen.meta.unbox(x)) for name, x in flat.items()}

    def doubled(self) -> LinenRunner | None:
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: x.astype(jnp.float64) if is_float(x) else x, self.variables)
        return LinenRunner(self.module, wide, wide=True)


class _Bound:
    """A module that was called inside another, with its own variables, for calling it again."""

    def __init__(self, alone: Any, variables: Any, path: str) -> None:
        self.alone, self.variables, self.path = alone, variables, path

    def bound(self) -> Any:
        """The module with its variables, as facts are read from it."""
        return self.alone.bind(self.variables)
