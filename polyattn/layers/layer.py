"""A layer is a value: a frozen configuration and pure functions, `init` and the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.calls import Speaking, array, members, number, shown
from polyattn.calls import seed as an_integer
from polyattn.layers.initializers import Distribution

__all__ = ["Layer", "LayerResult", "Parameter", "Params"]

Params = Mapping[str, Any]  # nested: name -> array, or name -> Params of a part


class Parameter(NamedTuple):
    """One array of a layer: its shape, and what its initial entries are drawn from."""

    shape: tuple[int, ...]
    initial: Distribution


class LayerResult(NamedTuple):
    """All that a layer has to say; None where it was not asked, or has nothing."""

    out: Array
    cache: Any = None  # what cache= became: a `KVCache`, of a stack a tuple of them
    aux: Any = None  # an `AttentionAux`, of a decoder block a `DecoderAux`, of a stack a tuple of them


class Layer(metaclass=Speaking):
    """What every layer has. Subclasses are frozen dataclasses with `parameters` and `__call__` (or `run`).

        params = layer.init(seed, like=array)          # a nested dict of arrays, in array's library and dtype
        out = layer(params, x, ...)                    # an array; pure: no state, no hidden randomness
        out, cache, aux = layer.run(params, x, ...)    # the same call, which may be asked for more

    The same seed gives the same numbers on every library. A layer is hashable, so that it may be a static
    argument of a compiled function; params are an ordinary pytree.
    """

    def __call__(self, params: Params, *inputs: Any, **options: Any) -> Array:
        raise NotImplementedError

    def run(self, params: Params, *inputs: Any, **options: Any) -> LayerResult:
        """The call, as a `LayerResult`."""
        return LayerResult(self(params, *inputs, **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        line = members().get(name, f"see dir(polyattn.layers.{type(self).__name__})")
        raise AttributeError(
            f"{self.name}: expected a layer to be a value without state, got .{name}; {line}"
        )

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        """The arrays and the parts of this layer, by name."""
        return {}

    def init(self, seed: int, like: Array) -> dict[str, Any]:
        """Initial parameters in the library, the dtype and on the device of the array `like`."""
        who = f"{self.name}.init"
        seed = an_integer(who, "seed", seed)
        backend = array(
            who, "like", like, "which gives the library, the dtype and the device of the parameters"
        )
        if backend.compute_dtype(like.dtype) is None:
            raise TypeError(
                f"{who}: expected `like` to be a real floating array, got {like.dtype}; it gives the "
                "library, the dtype and the device of the parameters"
            )
        stream = 0

        def draw(parameter: Parameter) -> Array:
            nonlocal stream
            stream += 1
            return parameter.initial.draw(parameter.shape, seed, stream, like)

        with backend.eager():
            return _map(draw, self)

    def shapes(self) -> dict[str, Any]:
        """The params with a shape in place of each array.

        >>> from polyattn.layers import LayerNorm
        >>> LayerNorm(3, epsilon=1e-5).shapes()
        {'scale': (3,), 'bias': (3,)}
        """
        return _map(lambda parameter: parameter.shape, self)

    def _repr_html_(self) -> str:
        """In a notebook: the tree of parts and parameters, and how many numbers they hold."""
        from polyattn.layers import tree  # nobody but a notebook asks

        return tree.table(self)

    def parts(self) -> Iterator[Layer]:
        """This layer and all that it is made of."""
        yield self
        for part in self.parameters().values():
            if isinstance(part, Layer):
                yield from part.parts()

    @property
    def has_dropout(self) -> bool:
        """Whether a call with a dropout_seed drops anything."""
        return any(vars(part).get("dropout_rate", 0.0) > 0.0 for part in self.parts())

    @property
    def name(self) -> str:
        """For sentences: polyattn.layers.<class>."""
        return f"polyattn.layers.{type(self).__name__}"

    def check_sizes(self, **sizes: int | None) -> None:
        """A ValueError unless each is a positive int (or None)."""
        for name, n in sizes.items():
            if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n < 2**31):
                advice = (
                    f"write {name}={n[0]}"
                    if isinstance(n, tuple) and len(n) == 1
                    else "give a size of at least 1"
                )
                raise ValueError(
                    f"{self.name}: expected {name} to be a positive int, got {shown(n)}; {advice}"
                )

    def check_rate(self, dropout_rate: float) -> None:
        """A ValueError unless a dropout rate is one."""
        dropout_rate = number(self.name, "dropout_rate", dropout_rate)
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(
                f"{self.name}: expected 0 <= dropout_rate < 1, got {dropout_rate!r}; it is the share of numbers "
                "dropped"
            )

    def check(self, params: Params, width: int, **inputs: Array | None) -> Backend:
        """The backend of the inputs, if they and the params are of one library and dtype and of the right shapes.

        inputs: by name, each (..., length, its width): `width` for the first one, any for the others.
        """
        first, x = next(iter(inputs.items()))
        if isinstance(x, Mapping) and is_array(params):
            raise TypeError(
                f"{self.name}: expected params before {first}, got an array and then {shown(x)}; write "
                f"layer(params, {first})"
            )
        if not is_array(x):
            raise TypeError(f"{self.name}: expected {first} to be an array, got {shown(x)}; convert it first")
        backend = array(self.name, first, x)
        if backend.compute_dtype(x.dtype) is None:
            raise TypeError(
                f"{self.name}: expected {first} of a real floating dtype, got {x.dtype}; convert it first"
            )
        if x.ndim < 2 or x.shape[-1] != width:
            raise ValueError(
                f"{self.name}: expected {first} of shape (..., length, {width}), got {tuple(x.shape)}; "
                "the last axis is the width that the layer was made for"
            )
        for name, other in inputs.items():
            if other is not None:
                self._same_kind(backend, x, name, other)
                if other.ndim < 2:
                    raise ValueError(
                        f"{self.name}: expected {name} of shape (..., length, width), got {tuple(other.shape)}; add the "
                        "axes that are missing"
                    )
        self.check_params(params, x)
        return backend

    def check_params(self, params: Params, x: Array) -> Backend:
        """The same for params alone, beside an array whose library they must be of."""
        backend = array(self.name, "x", x)
        expected = self.parameters()
        if is_array(params):
            raise TypeError(
                f"{self.name}: expected params, a dict of arrays, before the inputs, got {shown(params)}; write params = "
                "layer.init(seed, like=x) once, and layer(params, x)"
            )
        if not isinstance(params, Mapping) or params.keys() != expected.keys():
            given = set(params) if isinstance(params, Mapping) else set()
            missing, unexpected = sorted(expected.keys() - given), sorted(given - expected.keys())
            raise ValueError(
                f"{self.name}: expected params with the names {sorted(expected)}, got "
                f"{type(params).__name__} without {missing} and with unexpected {unexpected}; "
                "make them with layer.init(seed, like=x), or read them with polyattn.weights"
            )
        for name, parameter in expected.items():
            if isinstance(parameter, Parameter):
                held = params[name]
                self._same_kind(backend, x, f"params[{name!r}]", held)
                if tuple(held.shape) != parameter.shape:
                    raise ValueError(
                        f"{self.name}: expected params[{name!r}] of shape {parameter.shape}, got "
                        f"{tuple(held.shape)}; were they made for another layer?"
                    )
        return backend

    def _same_kind(self, backend: Backend, x: Array, name: str, other: Array) -> None:
        theirs = array(self.name, name, other) if is_array(other) else None
        if theirs is not backend:
            raise TypeError(
                f"{self.name}: expected {name} to be an array of {backend.name} like x, got "
                f"{theirs.name if theirs else type(other).__name__}; convert one of the two, "
                "for example with polyattn.weights.convert(params, like=x)"
            )
        if other.dtype != x.dtype and backend.compute_dtype(x.dtype) is not None:  # x may be tokens
            raise TypeError(
                f"{self.name}: expected {name} of the dtype of x, {x.dtype}, got {other.dtype}; cast one of the two"
            )


def _map(f: Callable[[Parameter], Any], layer: Layer) -> dict[str, Any]:
    """f of every parameter, in the nested dict of params."""
    return {
        name: f(part) if isinstance(part, Parameter) else _map(f, part)
        for name, part in layer.parameters().items()
    }


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """x @ w + b: (..., n) and (n, ...m) -> (..., ...m), one product whatever the number of axes."""
    backend = backend_of(x)
    xp = backend.xp
    rows, columns = math.prod(x.shape[:-1]), math.prod(w.shape[1:])
    flat = backend.linear(xp.reshape(x, (rows, x.shape[-1])), xp.reshape(w, (w.shape[0], columns)))
    out = xp.reshape(flat, (*x.shape[:-1], *w.shape[1:]))
    return out if b is None else out + b
