"""`vjp`: a layer, and what pulls the gradient for its output back to its parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polyattn import gradients
from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import shown
from polyattn.layers.layer import Layer, Params

__all__ = ["vjp"]

WHO = "polyattn.layers.vjp"


def vjp(
    layer: Layer, params: Params, *inputs: Any, **options: Any
) -> tuple[Array, Callable[[Array], tuple[Any, ...]]]:
    """layer(params, *inputs, **options), and its pullback, on any array library: NumPy alone trains.

        out, pullback = layers.vjp(layer, params, x, ...)
        d_params, d_x, ... = pullback(d_out)      # of sum(out * d_out)

    The gradients have the shapes and dtypes of the arrays, d_params in the nested dict of params; that of an input
    without derivative, as tokens, is None. Where options hold arrays of real numbers, as bias= may, one more comes last,
    a dict: {"bias": d_bias}. d_out: like out. The pullback may be called again. A loss that is more than one call of
    a layer goes to `polyattn.gradients.vjp`, of which this is a case.

    Each attention is one step, pulled back as `polyattn.attention_vjp` does it, in memory O(L + S) where it is long;
    the rest is recorded function by function.

    >>> import numpy as np
    >>> from polyattn.layers import Linear
    >>> layer, x = Linear(2, 1), np.ones((3, 2))
    >>> out, pullback = vjp(layer, layer.init(0, like=x), x)
    >>> d_params, d_x = pullback(np.ones((3, 1)))
    >>> d_params["w"].tolist(), d_params["b"].tolist(), d_x.shape
    ([[3.0], [3.0]], [3.0], (3, 2))
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"{WHO}: expected a layer of polyattn.layers before params and inputs, got {shown(layer)}; of another function "
            "take polyattn.gradients.vjp(f, params, x)"
        )
    if not isinstance(params, Mapping):
        raise TypeError(
            f"{WHO}: expected params, a dict of arrays, between layer and inputs, got {shown(params)}; write params = "
            "layer.init(seed, like=x) once, and layers.vjp(layer, params, x)"
        )

    def call(params: Params, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return layer(params, *inputs, **options)

    out, back = gradients.vjp(call, params, inputs, options)
    moving = {name for name, x in options.items() if _moves(x)}

    def pullback(d_out: Array) -> tuple[Any, ...]:
        d_params, d_inputs, d_options = back(d_out)
        named = {name: d_options[name] for name in moving}
        return (d_params, *d_inputs, *([named] if named else []))

    return out, pullback


def _moves(x: Any) -> bool:
    return is_array(x) and backend_of(x).compute_dtype(x.dtype) is not None
