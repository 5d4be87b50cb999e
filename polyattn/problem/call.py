"""What the checks of arguments see of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend, backend_of
from polyattn.calls import flag
from polyattn.places import Frame, Places


class Call(NamedTuple):
    """What the checks see of a call."""

    frame: Frame
    backend: Backend
    query: Array
    compute_dtype: Any
    options: Mapping[str, Any]
    origin: Places  # numbers of the first item and head
    wanted: tuple[str, ...] = ()  # which intermediate values

    @property
    def who(self) -> str:
        return self.frame.who

    @property
    def is_causal(self) -> bool:
        return flag(self.who, "is_causal", self.options.get("is_causal", False), "a mask goes to mask=")

    def get(self, name: str) -> Any:
        """What the caller said, None if nothing."""
        return self.options.get(name)

    def here(self, name: str, arrays: Iterable[Array]) -> None:
        """Arrays of an argument must be of the library and on the device of query."""
        same_place(self.who, self.backend, self.query, name, arrays)


def same_place(
    who: str, backend: Backend, query: Array, name: str, arrays: Iterable[Array], plain: bool = False
) -> None:
    """plain: whether these are query, key or value, with nothing else said that concerns their entries."""
    for array in arrays:
        here = backend_of(array)
        if unfit := here.unfit(array, plain):
            raise TypeError(f"{who}: expected {name} to be {unfit}")
        if here is not backend:
            raise TypeError(
                f"{who}: expected {name} to be an array of the library of query ({backend.name}), "
                f"got one of {here.name}; convert it, or keep one library per call"
            )
        if backend.device(array) != backend.device(query):
            raise ValueError(
                f"{who}: expected {name} on the device of query ({backend.device(query)}), "
                f"got {backend.device(array)}; move it"
            )
