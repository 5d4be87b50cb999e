"""Arrays that a caller has given up, into whose memory what follows from them may be written."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from polyattn.arrays.numbers import Array

_GIVEN: ContextVar[Mapping[int, Array]] = ContextVar("the arrays that were given up", default={})  # noqa: B039 (is read)
#: By the id of an array: the array, and how far it was written so. Who comes from an earlier state of it gets a copy.
_WRITTEN: dict[int, tuple[weakref.ref[Any], int]] = {}


@contextmanager
def giving(value: Any) -> Iterator[None]:
    """Inside, the arrays in `value`, in tuples, lists and dicts at any depth, may be written to."""
    before = _GIVEN.set({id(x): x for x in _parts(value)})
    try:
        yield
    finally:
        _GIVEN.reset(before)


def may_write(x: Array, start: int, stop: int) -> bool:
    """Whether the slots from `start` to `stop` of an array may be written, which was given up and ends at `start`.

    What was written this way counts as written from then on: there is one answer of True for any slot.
    """
    if _GIVEN.get().get(id(x)) is not x:
        return False
    reference, filled = _WRITTEN.get(id(x), (None, 0))
    if reference is not None and reference() is x and start < filled:
        return False
    number = id(x)
    try:
        _WRITTEN[number] = (weakref.ref(x, lambda gone: _forget(number, gone)), stop)
    except TypeError:  # nobody would know when it is gone
        return False
    return True


def _forget(number: int, gone: Any) -> None:
    if _WRITTEN.get(number, (None, 0))[0] is gone:  # and not another array, which has its place
        del _WRITTEN[number]


def _parts(value: Any) -> Iterator[Any]:
    """The arrays in it, and what else is no container: of that nobody asks."""
    if isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _parts(part)
    else:
        yield value
