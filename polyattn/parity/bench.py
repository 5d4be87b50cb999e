"""The test bench: what a test needs from an array library and attention does not; and the benches that are here.

A bench lies with its adapter: `polyattn_mylib/bench.py` has a class and names it `bench`, and the entry-point group
``polyattn.benches`` says where. A package of the kind ``polyattn_*`` that was not installed is found by import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np

from polyattn.arrays import Array
from polyattn.truth.spec import Floats

__all__ = ["BENCHES", "Bench", "Function", "MissingBench", "StrictBench", "load_bench"]

GROUP = "polyattn.benches"
Function = Callable[[Mapping[str, Array]], tuple[Array, Array]]


class Bench(Protocol):
    """What a test needs from an array library and attention does not.

    It may also have `uncompiled`, a bench that does the same without a compiler; `notes`, sentences by dtype for
    whoever compares on it; `pace`, about how many seconds a result takes; `writes_graphs`, where a result is a graph
    that another program runs; and `bert`, a function (folder of the model,
    dtype, tokens, mask) -> hidden states that runs a BERT of transformers with this attention in every layer.
    """

    name: str
    version: str
    dtypes: tuple[str, ...]  # of "float16", "bfloat16", "float32", "float64"

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        """A NumPy array as one of the library, floats in `dtype`, integers and bools as they are."""

    def numpy(self, x: Array) -> Floats:
        """The values as a NumPy array of float64 (or of the integers and bools they are)."""

    def run(
        self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None
    ) -> tuple[Array, Array, Mapping[str, Array] | None]:
        """(out, lse) = f(arrays), and the gradients of sum(out * cotangent) for every array.

        None for the gradients where there is no cotangent or the library has no derivatives; {} to have none judged.
        """


class StrictBench:
    """array-api-strict: nothing beyond the standard, on any of its devices. It has no adapter."""

    def __init__(self, device: str = "CPU_DEVICE", float64: bool = True, name: str = "strict") -> None:
        import array_api_strict

        self.xp = array_api_strict
        self.device = array_api_strict.Device(device)
        self.name = name
        self.version = array_api_strict.__version__
        self.dtypes: tuple[str, ...] = ("float64", "float32") if float64 else ("float32",)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        if x.dtype.kind == "f" and dtype is not None:
            x = x.astype(dtype)
        return self.xp.asarray(x, device=self.device, copy=True)

    def numpy(self, x: Array) -> Floats:
        values = np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE")))
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        with np.errstate(invalid="ignore"):
            return (*f(arrays), None)


class MissingBench(LookupError):
    """A bench that was asked for cannot be loaded."""


def load_bench(name: str, *, who: str = "polyattn.testing.load_bench", **options: Any) -> Bench:
    """The bench of a library, by its name, ready for use; options are those of its class.

    ValueError for an unknown name, MissingBench where the library is not installed.

    >>> load_bench("numpy").dtypes[:2]
    ('float64', 'float32')
    """
    if name not in BENCHES:
        raise ValueError(
            f"{who}: expected a bench among {', '.join(BENCHES)}, got {name!r}; choose one of them"
        )
    try:
        made: Bench = BENCHES[name](**options)
    except ImportError as error:
        package = (error.name or name).partition(".")[0].replace("_", "-")
        raise MissingBench(
            f"{who}: expected the library of the bench {name!r}, which was asked for, got {error.__cause__ or error}; pip install {package}"
        ) from error
    return made


class _Benches(Mapping[str, Callable[..., Bench]]):
    """Classes of benches by name, each loaded when it is taken: NumPy's first, the others by name."""

    def __getitem__(self, name: str) -> Callable[..., Bench]:
        return _loaders()[name]()

    def __contains__(self, name: object) -> bool:
        return name in _loaders()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(_loaders(), key=lambda name: (name != "numpy", name)))

    def __len__(self) -> int:
        return len(_loaders())


#: The benches of the libraries known here, by name; ImportError when one is taken that is not installed.
BENCHES: Mapping[str, Callable[..., Bench]] = _Benches()


@cache
def _loaders() -> dict[str, Callable[[], Callable[..., Bench]]]:
    entries = entry_points(group=GROUP)
    found: dict[str, Callable[[], Callable[..., Bench]]] = {entry.name: entry.load for entry in entries}
    found["strict"] = lambda: StrictBench
    known = {entry.module.partition(".")[0] for entry in entries}
    for module in iter_modules():
        folder = Path(getattr(module.module_finder, "path", ""), module.name)
        if (
            module.name.startswith("polyattn_")
            and module.name not in known
            and (folder / "bench.py").is_file()
        ):
            load = partial(_beside, module.name)
            try:
                found[load().name] = load  # type: ignore[attr-defined]
            except ImportError:  # its library is missing: whoever takes it is told
                found[module.name.removeprefix("polyattn_")] = load
    return found


def _beside(package: str) -> Callable[..., Bench]:
    made: Callable[..., Bench] = import_module(f"{package}.bench").bench
    return made
