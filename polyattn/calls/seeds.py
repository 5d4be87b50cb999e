"""Seeds: an integer, and what makes one of the generators of other libraries."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array, is_array
from polyattn.calls.kinds import array, shown

__all__ = ["seed", "seed_like", "seed_line"]

#: Generators, by the module and the name of their type -> an integer drawn from one.
_DRAWN = {
    ("torch", "Generator"): "int(torch.randint(2**31, (), generator=generator))",
    ("numpy", "Generator"): "int(generator.integers(2**31))",
    ("numpy", "RandomState"): "generator.randint(2**31)",
    ("random", "Random"): "generator.getrandbits(31)",
    ("keras", "SeedGenerator"): "int(generator.next()[0])",
    ("flax", "Rngs"): "jax.random.bits(rngs.dropout())",
    ("flax", "RngStream"): "jax.random.bits(rng())",
}


def seed_line(value: Any) -> str | None:
    """How an integer is drawn from a generator or a key of some library; None if it is neither."""
    if is_array(value):
        if str(value.dtype).startswith("key<") or (
            str(value.dtype) == "uint32" and tuple(value.shape) == (2,)
        ):
            return "jax.random.bits(key)"
        return None
    for kind in type(value).__mro__:
        found = _DRAWN.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def seed_like(
    who: str, name: str, value: Any, expected: str = "an integer or a 0-d integer array"
) -> int | Array:
    """A seed that may be an array, and then be traced."""
    if is_array(value) and (line := seed_line(value)) is not None:
        raise TypeError(f"{who}: expected {name} to be {expected}, got a random key; write {name}={line}")
    if not is_array(value):
        return seed(who, name, value, expected)
    backend = array(who, name, value)
    if value.ndim or not backend.isdtype(value.dtype, "integral"):
        raise TypeError(
            f"{who}: expected {name} to be {expected}, got {value.dtype} of shape {tuple(value.shape)}; one seed "
            "serves the whole call"
        )
    return value


def seed(who: str, name: str, value: Any, expected: str = "an integer") -> int:
    """A Python integer from 0 to 2**64 - 1."""
    if isinstance(value, int) and not isinstance(
        value, bool
    ):  # asked first: compilers have symbols of integers
        return _in_range(who, name, value)
    line = seed_line(value)
    if line is not None:
        whole = line if line.startswith("int(") or "generator" in line else f"int({line})"
        what = "a random key" if is_array(value) else shown(value)
        raise TypeError(f"{who}: expected {name} to be {expected}, got {what}; write {name}={whole}")
    if isinstance(value, (bool, type)) or is_array(value) or not hasattr(value, "__index__"):
        raise TypeError(f"{who}: expected {name} to be {expected}, got {shown(value)}; pass a Python int")
    return _in_range(who, name, int(value.__index__()))


def _in_range(who: str, name: str, seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise ValueError(f"{who}: expected 0 <= {name} < 2**64, got {seed!r}; reduce it modulo 2**64")
    return seed
