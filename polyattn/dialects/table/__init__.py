"""The table of dialects, a file per family: translators, documentation, probes and tests are made of it."""

from __future__ import annotations

from collections.abc import Mapping

from polyattn.dialects.table import engines, jax_keras, kernels, mlx, onnx, pytorch
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS", "FAMILIES", "dialect"]

#: In the order of the documentation.
FAMILIES: Mapping[str, tuple[Dialect, ...]] = {
    "PyTorch": pytorch.DIALECTS,
    "JAX and Keras": jax_keras.DIALECTS,
    "MLX": mlx.DIALECTS,
    "ONNX": onnx.DIALECTS,
    "Kernels and others": kernels.DIALECTS,
    "Engines": engines.DIALECTS,
}

#: Every dialect by name.
DIALECTS: Mapping[str, Dialect] = {d.name: d for family in FAMILIES.values() for d in family}


def dialect(name: str, who: str = "polyattn.dialects.dialect") -> Dialect:
    """The dialect of that name, or a ValueError that lists them; who: the function that the user called."""
    if name not in DIALECTS:
        raise ValueError(f"{who}: expected one of {', '.join(DIALECTS)}, got {name!r}; name one of these")
    return DIALECTS[name]
