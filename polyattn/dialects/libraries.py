"""The libraries behind the dialects, where they are installed, as functions that take their own words."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata
from typing import Any, NamedTuple

import numpy as np

from polyattn.dialects import onnx_models
from polyattn.dialects.record import Record
from polyattn.truth.spec import Floats

__all__ = ["PEERS", "Library", "Peer", "Unable", "heads_apart", "library_of"]


@dataclass(frozen=True)
class Library:
    """A function of a library that can be called."""

    call: Callable[[Mapping[str, Any]], Any]  # foreign arguments -> what came back, in NumPy
    array: Callable[[Floats], Any] = lambda x: x  # NumPy -> array of the library
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext  # in which float64 stays float64


class Peer(NamedTuple):
    """One implementation, under the name of its column. `load` raises ImportError or RuntimeError without it."""

    name: str
    dialect: str
    package: str  # of the version
    load: Callable[[], Library]

    @property
    def version(self) -> str:
        return metadata.version(self.package)


class Unable(Exception):
    """What a library in another process raised."""


def _map(f: Callable[[Any], Any], x: Any) -> Any:
    """f of every array, in tuples and dicts too."""
    if isinstance(x, tuple):
        return tuple(_map(f, y) for y in x)
    return f(x) if hasattr(x, "dtype") else x


def _named(path: str) -> Any:
    """The function or class of that name, its module imported."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


# PyTorch


def _torch(function: str | Callable[..., Any], context: Callable[[], Any] = nullcontext) -> Library:
    import torch

    f = _named(function) if isinstance(function, str) else function

    def call(given: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings(), context():
            warnings.simplefilter("ignore")
            found = f(**given)
        if isinstance(found, tuple) and hasattr(found[-1], "lse"):
            found = (found[0], found[1].lse)
        return _map(lambda t: t.detach().numpy(), found)

    return Library(call, lambda x: torch.from_numpy(np.array(x)))


def _sdpa_kernel(kernel: str) -> Library:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    function = torch.nn.functional.scaled_dot_product_attention
    library = _torch(function, lambda: sdpa_kernel([getattr(SDPBackend, kernel)]))
    some = torch.zeros((1, 1, 2, 8))
    library.call({"query": some, "key": some, "value": some})  # RuntimeError where there is no such kernel
    return library


def _mha(**settings: Any) -> Library:
    import torch

    def attend(query: Any, num_heads: int, batch_first: bool = False, **arguments: Any) -> Any:
        width, own = query.shape[-1], {"bias": False, "batch_first": batch_first, "dtype": query.dtype}
        layer = torch.nn.MultiheadAttention(width, num_heads, **own)
        with torch.no_grad():
            layer.in_proj_weight.copy_(torch.cat([torch.eye(width)] * 3))
            layer.out_proj.weight.copy_(torch.eye(width))
        return layer.eval()(query, **arguments, **settings)[0]

    return _torch(attend)


# JAX


def _jax(function: str | Callable[..., Any]) -> Library:
    import jax

    f = _named(function) if isinstance(function, str) else function
    return Library(
        lambda given: _map(np.asarray, f(**given)), jax.numpy.asarray, lambda: jax.enable_x64(True)
    )


def _tokamax() -> Library:
    flags: Any = import_module("absl.flags")
    library = _jax("tokamax.dot_product_attention")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # it would read the command line of this program
    return library


def _equinox() -> Library:
    import equinox
    import jax

    def attend(query: Any, key_: Any, value: Any, num_heads: int, mask: Any = None, **rest: Any) -> Any:
        d, e = query.shape[-1], value.shape[-1]
        sizes = {"qk_size": d // num_heads, "vo_size": e // num_heads}
        own = {"dtype": query.dtype, "key": jax.random.key(0)}
        layer = equinox.nn.MultiheadAttention(num_heads, d, key_.shape[-1], e, e, **sizes, **own)
        layer = jax.tree.map(  # all its arrays are weights of projections
            lambda x: jax.numpy.eye(*x.shape, dtype=x.dtype) if equinox.is_array(x) else x, layer
        )
        if query.ndim == 2:
            return layer(query, key_, value, mask, **rest)
        axes = (0, 0, 0, None if mask is None else 0)
        return jax.vmap(lambda q, k, v, m: layer(q, k, v, m, **rest), axes)(query, key_, value, mask)

    return _jax(attend)


# Keras: its backend is fixed when it is imported, so that each one is asked in a process of its own.

_WORKER = """
import pickle, sys
import keras, numpy
def plain(x):
    return tuple(map(plain, x)) if isinstance(x, tuple) else keras.ops.convert_to_numpy(x)
while True:
    given = pickle.load(sys.stdin.buffer)
    try:
        found = plain(keras.ops.dot_product_attention(**given))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    pickle.dump(found, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def _keras(backend: str) -> Library:
    metadata.version("keras")
    home = tempfile.TemporaryDirectory()  # where Keras would write its configuration
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": home.name, "JAX_ENABLE_X64": "1"},
    )
    atexit.register(_end, process, home)

    there, back = (pipe for pipe in (process.stdin, process.stdout) if pipe is not None)

    def call(given: Mapping[str, Any]) -> Any:
        pickle.dump(dict(given), there)
        there.flush()
        found = pickle.load(back)
        if isinstance(found, str):
            raise Unable(found)
        return found

    return Library(call)


def _end(process: subprocess.Popen[bytes], home: tempfile.TemporaryDirectory[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()  # the worker reads its end, and ends
    process.wait()
    home.cleanup()


# ONNX


def _onnx(make: Callable[..., Callable[[Mapping[str, Any]], Any]], *settings: Any) -> Library:
    return Library(make(*settings))


# MLX


def _mlx() -> Library:
    mx: Any = import_module("mlx.core")

    def call(given: Mapping[str, Any]) -> Any:
        with mx.stream(mx.cpu):  # where float64 is
            arrays = {
                n: mx.array(x, dtype=_mlx_dtype(mx, x)) for n, x in given.items() if hasattr(x, "dtype")
            }
            return np.array(mx.fast.scaled_dot_product_attention(**{**given, **arrays}))

    return Library(call)


def _mlx_dtype(mx: Any, x: Any) -> Any:
    return {"float64": mx.float64, "float32": mx.float32, "bool": mx.bool_}.get(x.dtype.name)


#: Every implementation that can be asked, by column. The first one of a dialect speaks for its claims.
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "torch.sdpa",
            "torch.sdpa",
            "torch",
            partial(_torch, "torch.nn.functional.scaled_dot_product_attention"),
        ),
        *(
            Peer(
                f"sdpa {kernel.partition('_')[0].lower()}",
                "torch.sdpa",
                "torch",
                partial(_sdpa_kernel, kernel),
            )
            for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
        ),
        Peer(
            "torch.flex",
            "torch.flex",
            "torch",
            partial(_torch, "torch.nn.attention.flex_attention.flex_attention"),
        ),
        Peer("torch.mha", "torch.mha", "torch", _mha),
        Peer("mha no weights", "torch.mha", "torch", partial(_mha, need_weights=False)),
        Peer("jax.nn", "jax.nn", "jax", partial(_jax, "jax.nn.dot_product_attention")),
        Peer("flax.nnx", "flax.nnx", "flax", partial(_jax, "flax.nnx.dot_product_attention")),
        Peer("equinox", "equinox", "equinox", _equinox),
        Peer("tokamax", "tokamax", "tokamax", _tokamax),
        Peer("mlx", "mlx", "mlx", _mlx),
        Peer("keras", "keras", "keras", partial(_keras, "jax")),
        Peer("keras torch", "keras", "keras", partial(_keras, "torch")),
        *(
            Peer(f"onnx.{n}", f"onnx.{n}", "onnx", partial(_onnx, onnx_models.reference, n))
            for n in (23, 24, 25)
        ),
        Peer("onnxruntime", "onnx.23", "onnxruntime", partial(_onnx, onnx_models.onnxruntime, 23)),
        Peer("onnxruntime.gqa", "onnxruntime.gqa", "onnxruntime", partial(_onnx, onnx_models.grouped)),
        Peer(
            "transformers",
            "transformers",
            "transformers",
            partial(_torch, "transformers.integrations.sdpa_attention.sdpa_attention_forward"),
        ),
    )
}


@cache
def library_of(name: str) -> Library | str:
    """The function of a peer, loaded once; or the reason why there is none."""
    try:
        return PEERS[name].load()
    except (ImportError, RuntimeError, metadata.PackageNotFoundError) as error:
        return f"{type(error).__name__}: {error}"


def heads_apart(d: Record, found: Any, heads: int) -> Floats:
    """The output of a foreign call in NumPy as (B, H, L, E)."""
    out: Floats = d.result_of(np.asarray(found[0] if isinstance(found, tuple) else found), heads)
    return out
