"""Calls outside of `jax.jit`: where they run, and how they are compiled without meaning anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from polyattn.arrays import Array
from polyattn.arrays.leaves import says_all

__all__ = ["captures_derived", "device_of", "is_certain", "platform", "run_eagerly"]

MOST = 64  # programs that are kept: a fresh mask makes one of some MiB


def platform(x: Array) -> str:
    """ "cpu", "gpu", "tpu": where x lies, or what a compiler is writing for."""
    return device_of(x)[0]


def is_certain(x: Array) -> bool:
    """Whether the platform of x is known, rather than that of JAX's default."""
    *_, inmost = _layers(x)
    return not isinstance(inmost, jax.core.Tracer) or _meant(inmost) is not None


def _meant(x: Array) -> Any:
    """The device that a tracer, or the program, is for; None where nobody has said."""
    meshes = (
        getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None),
        jax.sharding.get_abstract_mesh(),
    )
    return next(filter(None, (getattr(mesh, "abstract_device", None) for mesh in meshes)), None)


def device_of(x: Array) -> tuple[str, str]:
    """Platform and kind of the device of x: under `jit` that of the mesh which x or the program is for, else JAX's default."""
    *_, inmost = _layers(x)
    device: Any
    if not isinstance(inmost, jax.core.Tracer):
        device = next(iter(inmost.devices()))
    else:
        device = _meant(inmost) or jax.config.jax_default_device or jax.devices()[0]
    if isinstance(device, str):  # the name of a platform
        device = jax.devices(device)[0]
    kind = device.device_kind
    named = "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"
    return getattr(device, "platform", named), kind  # JAX 0.9 does not say it of a mesh's device


def _layers(x: Array) -> Iterator[Array]:
    """x, and what the tracers of grad and vmap are made of."""
    while isinstance(x, jax.core.Tracer):
        yield x
        inside = getattr(x, "primal", getattr(x, "val", None))
        if not isinstance(inside, jax.Array):
            return
        x = inside
    yield x


def captures_derived(f: Callable[..., Any], *given: Array) -> bool:
    """Whether a function reads an array that a derivative is being taken by."""
    try:
        captured = jax.make_jaxpr(f)(*given).consts
    except Exception:  # what is wrong with f is said where it runs
        return False
    return any(hasattr(layer, "primal") for x in captured for layer in _layers(x))


def run_eagerly(f: Callable[..., Any], static: Any, arrays: Sequence[Array]) -> Any:
    """f(static, arrays), compiled once for what it computes."""
    if says_all(static):
        return _compiled(f, static)(arrays)
    # A function of the user may read what changes from call to call. It is asked each time, and what it says is the
    # program; arrays that it holds are arguments of that.
    traced = jax.make_jaxpr(partial(f, static))(arrays)
    if any(isinstance(x, jax.core.Tracer) for x in traced.consts):
        return f(static, arrays)  # no eager call: grad or vmap goes by what the function holds

    def run(consts: Sequence[Array], arrays: Sequence[Array]) -> Any:
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, list(consts)))(*arrays)

    compiled = jax.jit(run)
    text = compiled.lower(traced.consts, arrays).as_text()
    return _kept(_Program(text, compiled))(traced.consts, arrays)


@lru_cache(maxsize=MOST)
def _compiled(f: Callable[..., Any], static: Any) -> Callable[..., Any]:
    return jax.jit(partial(f, static))  # which keeps the shapes apart


@dataclass(frozen=True)
class _Program:
    text: str
    run: Callable[..., Any] = field(compare=False)


@lru_cache(maxsize=MOST)
def _kept(program: _Program) -> Callable[..., Any]:
    """The first of those whose text is the same, which is compiled."""
    return program.run
