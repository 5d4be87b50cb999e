"""A polyattn layer as a `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from polyattn.layers import Layer, LayerResult, Parameter

__all__ = ["Module"]


class _Tree(torch.nn.Module):
    """Parameters by the names of the layer: a module for each part."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in params.items():
            if isinstance(value, Mapping):
                self.add_module(name, _Tree(value))
            else:
                self.register_parameter(name, torch.nn.Parameter(value))

    def params(self) -> dict[str, Any]:
        """The nested dict that the layer takes."""
        return {
            **self._parameters,
            **{name: part.params() for name, part in self._modules.items() if isinstance(part, _Tree)},
        }


class Module(_Tree):
    """`layer` with parameters of its own: module(x, ...) = layer(params, x, ...), an array; module.run likewise.

    state_dict has the names of the params, joined by dots. In training mode dropout draws its seed from
    PyTorch's generator; in eval mode there is no dropout, and a dropout_seed is refused. On the meta device
    nothing is drawn: call `to_empty(device=...)`, then `reset_parameters()`. Under torch.autocast the module takes
    inputs of any floating dtype and computes in that of its parameters.

    >>> from polyattn.layers import MultiHeadAttention
    >>> module = Module(MultiHeadAttention(8, 2), seed=0)
    >>> module(torch.ones(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    >>> sorted(module.state_dict())[:3]
    ['b_k', 'b_o', 'b_q']
    """

    def __init__(
        self,
        layer: Layer,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(
                f"polyattn_torch.Module: expected a layer of polyattn.layers, got {type(layer).__name__}; for example "
                "polyattn.layers.MultiHeadAttention(512, 8)"
            )
        like = torch.empty((), device=device, dtype=dtype)
        super().__init__(_empty(layer, like) if like.is_meta else layer.init(seed, like=like))
        self.layer = layer
        self.seed = seed

    def reset_parameters(self) -> None:
        """Writes the initial parameters of `seed` over the present ones."""
        like = next(self.parameters(), torch.empty(()))
        fresh = _Tree(self.layer.init(self.seed, like=like)).state_dict()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(fresh[name])

    def extra_repr(self) -> str:
        return f"{self.layer}"

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = self._call(self.layer, inputs, options)
        return found

    def run(self, *inputs: Any, **options: Any) -> LayerResult:
        """The call with cache and return_aux: out, cache, aux = module.run(x, cache=cache)."""
        found: LayerResult = self._call(self.layer.run, inputs, options)
        return found

    def _call(self, f: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """f with the parameters, a seed in training mode, and no autocast."""
        if options.get("dropout_seed") is not None and not self.training:
            raise ValueError(
                "polyattn_torch.Module: expected no dropout_seed in eval mode, got one; call module.train() first"
            )
        if self.training and self.layer.has_dropout and options.get("dropout_seed") is None:
            tensors = (x for x in (*inputs, *options.values()) if isinstance(x, torch.Tensor))
            device = getattr(next(tensors, None), "device", None)  # without one the layer says what it wants
            options["dropout_seed"] = torch.randint(2**31 - 1, (), dtype=torch.int32, device=device)
        own = next(self.parameters(), None)
        if own is None or own.is_meta or not torch.is_autocast_enabled(own.device.type):
            return f(self.params(), *inputs, **options)
        with torch.autocast(own.device.type, enabled=False):
            return f(self.params(), *(_cast(x, own.dtype) for x in inputs), **options)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _empty(layer: Layer, like: torch.Tensor) -> dict[str, Any]:
    return {
        name: like.new_empty(part.shape) if isinstance(part, Parameter) else _empty(part, like)
        for name, part in layer.parameters().items()
    }
