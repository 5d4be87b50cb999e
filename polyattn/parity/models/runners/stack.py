"""A layer of polyattn with its params."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np

from polyattn.layers.layer import Layer
from polyattn.parity.models.trees import first, is_float, library_of, mapped, native, to_numpy
from polyattn.parity.models.watching import OUTPUT, Leave, Site, Watch, patched
from polyattn.truth.spec import Floats

__all__ = ["StackRunner"]


class StackRunner:
    """Every part of a layer that is called with params is a component, named by where these lie: "trunk.block_0.mlp"."""

    training = False

    def __init__(self, layer: Layer, params: Any) -> None:
        self.layer, self.params = layer, params
        self.library = library_of(first(params)) or "numpy"
        self.names: dict[int, str] = {}
        self._name(layer, params, "")
        self.classes = tuple({base: None for part in layer.parts() for base in type(part).__mro__})

    def _name(self, layer: Layer, params: Any, path: str) -> None:
        """One layer may be of several places: params say which."""
        if params:
            self.names.setdefault(id(params), path or OUTPUT)
        for name, part in layer.parameters().items():
            if isinstance(part, Layer):
                self._name(part, params[name], f"{path}.{name}" if path else name)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        if not self.params:  # an attention without parameters: nothing says where it lies
            output = self.layer({}, *args, **kwargs)
            return leave(Site(OUTPUT, self.layer, type(self.layer).__name__, args, kwargs, output, None))
        with self._patched(Watch(leave)):
            return self.layer(self.params, *args, **kwargs)

    def again(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave | None = None
    ) -> Any:
        """One component alone."""
        layer, params, method = site.module
        with self._patched(Watch(leave or (lambda inner: inner.output), site.counts)):
            return getattr(layer, method)(params, *args, **kwargs)

    @contextmanager
    def _patched(self, watch: Watch) -> Iterator[None]:
        def make(name: str) -> Callable[[Any], Any]:
            def wrapped(method: Any) -> Any:
                @wraps(method)
                def call(layer: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
                    place = self.names.get(id(params))
                    if place is None or watch.inside(params):
                        return method(layer, params, *args, **kwargs)
                    entered = watch.enter(place, params, args, kwargs)
                    output = method(layer, params, *args, **kwargs)
                    return watch.finish(entered, layer, output, self.again, hold=(layer, params, name))

                return call

            return wrapped

        with patched(self.classes, "__call__", make("__call__")), patched(self.classes, "run", make("run")):
            yield

    def given(self, x: Any) -> Any:
        """In the library of the params, floats in their dtype."""
        like = first(self.params)
        if like is None or library_of(x) == self.library:
            return x
        plain = to_numpy(x)
        if is_float(plain):
            return native(plain, like)
        return plain if self.library == "numpy" else _whole(plain, like)

    def weights(self) -> dict[str, Floats]:
        flat: dict[str, Floats] = {}
        mapped(lambda path, x: flat.setdefault(path, to_numpy(x)), self.params)
        return flat

    def doubled(self) -> StackRunner | None:
        """In NumPy, whatever library it is of."""

        def wide(_: str, x: Any) -> Any:
            plain = to_numpy(x)
            return plain.astype(np.float64) if is_float(plain) else plain

        return StackRunner(self.layer, mapped(wide, self.params))


def _whole(x: Floats, like: Any) -> Any:
    """Integers and bools in the library of an array."""
    xp = like.__array_namespace__() if hasattr(like, "__array_namespace__") else None
    if xp is not None:
        return xp.asarray(x)
    import torch

    return torch.tensor(x, device=like.device)
