"""The libraries that tests need beside NumPy: `from shared.libraries import jnp, torch`.

Where one is not installed its name is an `Absent`: the module that asks for it can still be collected, and a test that
touches it is skipped, so that whoever has one framework can run the tests of that framework.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from polyattn import testing

__all__ = ["SPOKEN", "Absent", "installed"]

#: library -> the words by which a test is seen to use it
SPOKEN = {
    "numpy": {"numpy"},
    "autograd": {"autograd", "polyattn_autograd", "AutogradBench"},
    "strict": {"strict"},
    "jax": {"jax", "jnp", "polyattn_jax", "JaxBench"},
    "torch": {"torch", "polyattn_torch", "TorchBench"},
}
#: name in tests -> where it comes from
_FROM = {"jnp": "jax.numpy", "eqx": "equinox", "nnx": "flax.nnx", "mpl": "matplotlib"}
_PARTS = {
    "jax": ("jax.export", "jax.extend.random", "jax.test_util"),
    "polyattn_jax": ("polyattn_jax.eager",),
    "polyattn_torch": (
        "polyattn_torch.native",
        "polyattn_torch.flex_kernel",
        "polyattn_torch.fused",
        "polyattn_torch.reasons",
    ),
}  # which the module itself does not load


#: What may be asked for; pytest asks every module for names of its own.
_NAMES = {
    "JaxBench",
    "TorchBench",
    "jax",
    "torch",
    "polyattn_autograd",
    "polyattn_jax",
    "polyattn_torch",
    *_FROM,
}
_NAMES |= {"ml_dtypes", "mparray", "mpmath", "safetensors"}


def installed(module: str) -> bool:
    """Whether a top-level module can be found."""
    return find_spec(module) is not None


class Absent:
    """What is not installed, and everything made of it while modules are collected."""

    def __init__(self, library: str) -> None:
        self.__dict__["_library"] = library

    def _touched(self) -> Absent:
        if "PYTEST_CURRENT_TEST" in os.environ:
            pytest.skip(f"{self._library} is not installed")
        return self

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__") and "PYTEST_CURRENT_TEST" not in os.environ:
            raise AttributeError(name)  # pytest and Python look for these in whatever they are given
        return self._touched()

    def __call__(self, *_: Any, **__: Any) -> Absent:
        return self._touched()

    def __mro_entries__(self, _: Any) -> tuple[()]:
        self._touched()
        return ()


for _operator in [
    "getitem",
    "lt",
    "le",
    "gt",
    "ge",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "matmul",
    "and",
    "or",
    "invert",
    "neg",
]:
    setattr(Absent, f"__{_operator}__", Absent.__call__)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(name)
    try:
        if name.endswith("Bench"):
            return getattr(testing, name)
        module = _FROM.get(name, name)
        for part in _PARTS.get(module, ()):
            import_module(part)
        return import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or name).partition(".")[0]
        if library.startswith("polyattn"):
            raise
        return Absent(library)
