"""What every cache asks of the tokens that come, and of the number of those that came."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.calls import array, real, size

__all__ = ["check_tokens", "held", "lengths", "room_for", "standing", "zeros"]


def zeros(who: str, like: Array, **sizes: int) -> Array:
    """An array of zeros of these sizes, in the library, the dtype and on the device of `like`."""
    backend = real(who, "like", like, "which gives the library, the dtype and the device")
    shape = tuple(size(who, name, n) for name, n in sizes.items())
    return backend.xp.zeros(shape, dtype=like.dtype, device=backend.device(like))


def check_tokens(
    who: str,
    key: Array,
    value: Array,
    like_key: Any,
    like_value: Any,
    names: tuple[str, str] = ("key", "value"),
) -> int:
    """How many tokens come: keys and values, or what has these names, that fit those of the cache but for their number."""
    for name, new, old in zip(names, (key, value), (like_key, like_value), strict=True):
        if array(who, name, new) is not backend_of(old):
            raise TypeError(
                f"{who}: expected {name} of the library of the cache, {backend_of(old).name}, got "
                f"{backend_of(new).name}; convert it, or make the cache with like={name}"
            )
        if (
            new.ndim != old.ndim
            or (*new.shape[:-2], new.shape[-1]) != (*old.shape[:-2], old.shape[-1])
            or new.dtype != old.dtype
        ):
            raise ValueError(
                f"{who}: expected {name} of shape {(*old.shape[:-2], 'n', old.shape[-1])} "
                f"and dtype {old.dtype}, got {tuple(new.shape)} and {new.dtype}; make the cache for this batch"
            )
    n: int = key.shape[-2]
    if value.shape[-2] != n:
        raise ValueError(
            f"{who}: expected as many {names[1]}s as {names[0]}s, got {value.shape[-2]} and {n}; every {names[0]} "
            f"needs its {names[1]}"
        )
    return n


def held(who: str, length: int | Array, lead: tuple[int, ...]) -> int:
    """How many tokens the fullest batch item holds at least: 0 if a compiler traces that."""
    if not is_array(length):
        if not hasattr(length, "__index__"):
            raise TypeError(
                f"{who}: expected length to be an integer, or an array of one for each batch item, got "
                f"{length!r}; make it an array of the library of key"
            )
        return length
    backend = backend_of(length)
    if tuple(length.shape) not in ((), lead) or not backend.isdtype(length.dtype, "integral"):
        raise ValueError(
            f"{who}: expected length of integers and of shape () or {lead}, got {length.dtype} of shape "
            f"{tuple(length.shape)}; one number for all batch items, or one for each"
        )
    if not backend.is_concrete(length):
        return 0
    with backend.eager():
        return max(backend.to_list(backend.xp.reshape(length, (-1,))), default=0)


def room_for(who: str, n: int, filled: int, capacity: int) -> None:
    """A ValueError where n tokens do not fit."""
    if filled + n > capacity:
        raise ValueError(
            f"{who}: expected at most {max(capacity - filled, 0)} more tokens, got {n}; "
            f"the cache has room for {capacity} and holds {filled}, so make a larger one"
        )


def lengths(length: int | Array, like: Array) -> Array:
    """The length as int32 with an axis behind it for slots: (1,), or (B, 1)."""
    backend = backend_of(like)
    there = (
        backend.astype(length, backend.xp.int32)
        if is_array(length)
        else backend.asarray(length, backend.xp.int32, like)
    )
    return there[..., None]


def standing(backend: Backend, at: Array, length: Array) -> Array:
    """Positions of slots as they are told to attention: -1 where no token came yet."""
    return backend.xp.where((at >= 0) & (at < length), at, -1)
