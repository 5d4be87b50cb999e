"""Along which axes of a mesh arrays vary inside `jax.shard_map`, which is part of their type there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

__all__ = ["axes_of", "shaped", "vary"]


def axes_of(leaves: Sequence[Any]) -> frozenset[str]:
    types = [x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x) for x in leaves]
    # Older JAX has the axes as `vma`; with check_vma=False there are none.
    kinds = [getattr(t, "manual_axis_type", None) for t in types]
    axes = [
        getattr(t, "vma", None) if kind is None else kind.varying
        for t, kind in zip(types, kinds, strict=True)
    ]
    return frozenset[str]().union(*(some or () for some in axes))


def vary(state: Any, axes: frozenset[str]) -> Any:
    """`state` with every array of the type that varies along `axes`; the numbers stay what they are."""
    if not axes:
        return state
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(axes - axes_of([x]))), to="varying"), state)


def shaped(size: tuple[int, ...], dtype: Any, axes: frozenset[str]) -> Any:
    """The type of an array that varies along `axes`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return jax.ShapeDtypeStruct(size, dtype)
    kind = getattr(jax.sharding, "ManualAxisType", None)
    how: dict[str, Any] = {"vma": axes} if kind is None else {"manual_axis_type": kind(varying=axes)}
    return jax.ShapeDtypeStruct(size, dtype, **how)
