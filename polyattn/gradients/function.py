"""`vjp`: a function of arrays, and what pulls the gradient for its result back to its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.discovery import RECORDING
from polyattn.gradients.backend import over
from polyattn.gradients.tape import Node, walked
from polyattn.gradients.trees import mapped

__all__ = ["stop_gradient", "vjp"]

#: In how many derivatives Python is now, one inside the other: an inner one records on top of the outer ones.
_DEPTH: ContextVar[int] = ContextVar("how many derivatives are recorded", default=0)


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """f(*primals), and its pullback: d_out -> the gradients of sum(out * d_out), one for each of the primals.

        out, pullback = vjp(f, x, params, ...)
        d_x, d_params, ... = pullback(d_out)

    primals: arrays of any library, or dicts, lists, tuples and frozen dataclasses of arrays, at any depth. f: any
    function of them in the functions of polyattn, the operators, and those of the array API, as NumPy has them
    (numpy.exp(x)) or xp = x.__array_namespace__(). It returns an array, or a dict, list or tuple of arrays. Inside f
    the primals are `Recorded` arrays; arrays from elsewhere are constants, and nothing is written to.

    A gradient has the structure of its primal, in its shapes and dtypes, with None in place of integers, masks and
    what else has no derivative. d_out: as out, with a number for an array of shape () if you like, and None for what
    the loss does not see. The pullback may be called again; it holds what was computed until you let go of it. A
    vjp inside f gives second derivatives.

    Source: Griewank and Walther 2008, Evaluating Derivatives, chapter 3: the reverse mode.

    >>> import numpy as np
    >>> x, w = np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])
    >>> out, pullback = vjp(lambda x, w: np.tanh(x @ w - 11.0), x, w)
    >>> out, *pullback(np.ones((1, 1)))
    (array([[0.]]), array([[3., 4.]]), array([[1.],
           [2.]]))
    """
    if not callable(f):
        raise TypeError(
            f"polyattn.gradients.vjp: expected a function and its arguments, got {type(f).__name__} first; write vjp(f, x)"
        )
    depth = _DEPTH.get()
    nodes: list[Node | None] = []
    plain: list[Array] = []

    def followed(x: Array) -> Array:
        below = _constant(x, depth)
        backend = over(backend_of(below))
        real = backend.compute_dtype(below.dtype) is not None
        nodes.append(Node(backend.inner, below) if real else None)
        plain.append(below)
        return backend.kind(below, nodes[-1])

    before = _DEPTH.set(depth + 1)
    RECORDING.append(None)
    try:
        given = [mapped(followed, primal) for primal in primals]
        out = f(*given)
    finally:
        RECORDING.pop()
        _DEPTH.reset(before)
    kinds = {over(backend_of(x)).kind for x in plain}

    def pullback(d_out: Any) -> tuple[Any, ...]:
        found = walked(_paired(out, d_out, "d_out", kinds))
        places = iter(zip(nodes, plain, strict=True))

        def gradient(_: Array) -> Array | None:
            node, x = next(places)
            if node is None:
                return None
            xp = node.backend.xp
            return xp.asarray(found[node], copy=True) if node in found else xp.zeros_like(x)

        return tuple(mapped(gradient, primal) for primal in primals)

    return mapped(lambda x: x.value if type(x) in kinds else x, out), pullback


def stop_gradient(x: Array) -> Array:
    """x as a constant: no derivative leads back through it.

    >>> import numpy as np
    >>> vjp(lambda x: x * stop_gradient(x), np.array(3.0))[1](1.0)
    (array(3.),)
    """
    if not is_array(x):
        raise TypeError(
            f"polyattn.gradients.stop_gradient: expected an array, got {type(x).__name__}; numbers are constants"
        )
    return backend_of(x).stop_gradient(x)


def _constant(x: Array, depth: int) -> Array:
    """x as a constant of all derivatives that are recorded now."""
    while getattr(backend_of(x), "level", 0) < depth:
        x = over(backend_of(x)).kind(x)
    return x


def _paired(out: Any, d: Any, name: str, kinds: set[Any]) -> Iterator[tuple[Node, Array]]:
    """The nodes of a result with the gradients for them."""
    if isinstance(out, Mapping | tuple | list) and d is not None:
        names = list(out) if isinstance(out, Mapping) else list(range(len(out)))
        same = isinstance(d, Mapping) if isinstance(out, Mapping) else isinstance(d, tuple | list)
        if not same or len(d) != len(names) or any(isinstance(out, Mapping) and n not in d for n in names):
            raise ValueError(
                f"polyattn.gradients.vjp: pullback: expected {name} with the structure of the result, {type(out).__name__} "
                f"of {names}, got {type(d).__name__}; give None for what the loss does not see"
            )
        for part in names:
            yield from _paired(out[part], d[part], f"{name}[{part!r}]", kinds)
        return
    if not is_array(out):
        if d is not None:
            raise TypeError(
                f"polyattn.gradients.vjp: pullback: expected None for {name}, since f returned {type(out).__name__} there, "
                f"got {type(d).__name__}; return arrays"
            )
        return
    if d is None:
        return
    backend = over(backend_of(out)).inner if type(out) not in kinds else out.backend.inner
    value = out.value if type(out) in kinds else out
    if isinstance(d, int | float) and tuple(out.shape) == ():
        d = backend.asarray(d, out.dtype, value)
    if not is_array(d) or tuple(d.shape) != tuple(out.shape) or backend.compute_dtype(d.dtype) is None:
        got = f"{tuple(d.shape)} of {d.dtype}" if is_array(d) else type(d).__name__
        raise ValueError(
            f"polyattn.gradients.vjp: pullback: expected {name} of the shape of the result, {tuple(out.shape)}, and of real "
            f"numbers, got {got}; it is the gradient of a loss for that result"
        )
    if type(out) in kinds and out.node is not None:
        yield out.node, backend.astype(d, out.dtype)
