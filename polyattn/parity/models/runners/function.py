"""A function that calls `tap(name, x)`; of any library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.parity.models.runners.classes import no_tracers, uncompiled
from polyattn.parity.models.watching import OUTPUT, Leave, Site, Watch, tapped
from polyattn.truth.spec import Floats

__all__ = ["FunctionRunner"]


class FunctionRunner:
    """What it taps are its components: each is what lies between it and the taps before."""

    library = "function"
    training = False

    def __init__(self, function: Any) -> None:
        self.function = function

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        def seen(site: Site) -> Any:
            no_tracers(site.output)
            return leave(site)

        def once() -> Any:
            watch = Watch(seen)
            entered = watch.enter(OUTPUT, self.function, args, kwargs)
            with tapped(watch):
                output = self.function(*args, **kwargs)
            return watch.finish(entered, None, output, None, "function")

        return uncompiled(once)

    def given(self, x: Any) -> Any:
        """As it was given: nobody says of a function what it takes."""
        return x

    def weights(self) -> dict[str, Floats]:
        return {}

    def doubled(self) -> None:
        """A function has the precision that it was written in."""
