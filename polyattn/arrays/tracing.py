"""What autodiff and compilers want to know, and what one wants to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

from polyattn.arrays.giving import giving
from polyattn.arrays.numbers import Array


class Tracing:
    """The part of a `Backend` that speaks with autodiff and compilers; here there is neither."""

    name: str

    #: Whether lengths are what they are when Python runs; False where a program is written that may see others.
    lengths_are_fixed = True

    def refuses(self, kind: type) -> str | None:
        """Why arrays of a type are not taken, although the type comes from the library's own; None if they are."""
        return None

    def stop_gradient(self, x: Array) -> Array:
        """`x`, taken as a constant by autodiff."""
        return x

    def autocast(self, *arrays: Array) -> tuple[Array, ...]:
        """Operands of one product as the library casts them where it was told to do so by itself."""
        return arrays

    def is_concrete(self, x: Array) -> bool:
        """Whether the values of `x` can be read now (False while a compiler or vmap traces)."""
        return True

    def eager(self) -> AbstractContextManager[Any]:
        """Inside, operations on concrete arrays give concrete arrays, even while a compiler traces."""
        return nullcontext()

    def may_remember(self) -> bool:
        """Whether Python runs as itself now, so that a cache may be looked into."""
        return True

    def symbol(self, size: Any) -> Any:
        """A length that an exporter has as a symbol, as a number that index arrays can be added to."""
        return size

    def opaque(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`, a function of integer arrays, as one indivisible step for the library's compiler."""
        return f

    def compiled(self, f: Callable[..., Any], static: Any, arrays: Sequence[Any]) -> Any:
        """f(static, arrays), compiled if the library does that; `static` is hashable."""
        return f(static, arrays)

    #: Whether `jit` compiles, so that what changes from call to call is best an array.
    jits = False

    def jit(self, f: Callable[..., Any], *, given_up: int | None = None) -> Callable[..., Any]:
        """f, a function of arrays in tuples and dicts, as one program where the library makes one quickly.

        given_up: the number of an argument that the caller has no more use for, whose memory the program may take.
        """
        if given_up is None:
            return f

        @wraps(f)
        def given(*arguments: Any) -> Any:
            with giving(arguments[given_up]):
                return f(*arguments)

        return given

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        """The gradient of sum(f(x) * cotangent); NotImplemented where `polyattn.gradients` is to record f."""
        return NotImplemented

    def recomputed(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`, whose intermediate values autodiff computes again for the gradient instead of keeping them, if it can."""
        return f

    def custom_vjp(
        self,
        forward: Callable[[Sequence[Array]], tuple[Array, ...]],
        backward: Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], Sequence[Array | None]],
        arrays: Sequence[Array],
    ) -> tuple[Array, ...]:
        """forward(arrays), a tuple of outputs, whose derivative is backward(arrays, outputs, cotangents)."""
        return forward(arrays)
