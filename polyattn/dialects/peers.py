"""The libraries behind the dialects, where they are installed: asked in their own words, judged by the contract."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from polyattn.dialects.record import Dialect
from polyattn.dialects.table import DIALECTS
from polyattn.parity.case import Case, Later
from polyattn.parity.cases import cases
from polyattn.truth.definition import truth
from polyattn.truth.measure import ACCEPTANCE, eta
from polyattn.truth.spec import Floats


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


# PyTorch


def _torch(function: Callable[..., Any], context: Callable[[], Any] = nullcontext) -> Library:
    import torch

    def call(given: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings(), context():
            warnings.simplefilter("ignore")
            found = function(**given)
        if isinstance(found, tuple) and hasattr(found[-1], "lse"):
            found = (found[0], found[1].lse)
        return _map(lambda t: t.detach().numpy(), found)

    return Library(call, lambda x: torch.from_numpy(np.array(x)))


def _sdpa(kernel: str | None = None) -> Library:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    function = torch.nn.functional.scaled_dot_product_attention
    if kernel is None:
        return _torch(function)
    library = _torch(function, lambda: sdpa_kernel([getattr(SDPBackend, kernel)]))
    some = torch.zeros((1, 1, 2, 8))
    library.call({"query": some, "key": some, "value": some})  # RuntimeError where there is no such kernel
    return library


def _flex() -> Library:
    from torch.nn.attention.flex_attention import flex_attention

    return _torch(flex_attention)


def _mha(**settings: Any) -> Library:
    import torch

    def attend(query: Any, num_heads: int, batch_first: bool = False, **arguments: Any) -> Any:
        width = query.shape[-1]
        layer = torch.nn.MultiheadAttention(
            width, num_heads, bias=False, batch_first=batch_first, dtype=query.dtype
        )
        with torch.no_grad():
            layer.in_proj_weight.copy_(torch.cat([torch.eye(width)] * 3))
            layer.out_proj.weight.copy_(torch.eye(width))
        return layer.eval()(query, **arguments, **settings)[0]

    return _torch(attend)


def _transformers() -> Library:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _torch(lambda **arguments: sdpa_attention_forward(**arguments)[0])


# JAX


def _jax(function: Callable[..., Any]) -> Library:
    import jax

    def call(given: Mapping[str, Any]) -> Any:
        return _map(np.asarray, function(**given))

    return Library(call, jax.numpy.asarray, lambda: jax.enable_x64(True))


def _jax_nn() -> Library:
    import jax

    return _jax(jax.nn.dot_product_attention)


def _nnx() -> Library:
    from flax import nnx

    return _jax(nnx.dot_product_attention)


def _equinox() -> Library:
    import equinox
    import jax

    def attend(query: Any, key_: Any, value: Any, num_heads: int, mask: Any = None, **rest: Any) -> Any:
        layer = equinox.nn.MultiheadAttention(
            num_heads,
            query.shape[-1],
            key_.shape[-1],
            value.shape[-1],
            value.shape[-1],
            qk_size=query.shape[-1] // num_heads,
            vo_size=value.shape[-1] // num_heads,
            dtype=query.dtype,
            key=jax.random.key(0),
        )
        for name in ("query", "key", "value", "output"):
            weight = getattr(layer, f"{name}_proj").weight
            layer = equinox.tree_at(
                lambda m, name=name: getattr(m, f"{name}_proj").weight,
                layer,
                jax.numpy.eye(*weight.shape, dtype=weight.dtype),
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

    def call(given: Mapping[str, Any]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(dict(given), process.stdin)
        process.stdin.flush()
        found = pickle.load(process.stdout)
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


def _model(opset: int, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model of one Attention node, and its inputs."""
    from onnx import TensorProto, helper

    schema = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    feed = {name: np.ascontiguousarray(given[name]) for name in schema if given.get(name) is not None}
    last = max(i for i, name in enumerate(schema) if name in feed)
    inputs = [name if name in feed else "" for name in schema[: last + 1]]
    attributes = {
        n: int(x) if isinstance(x, bool) else x for n, x in given.items() if n not in schema and x is not None
    }
    node = helper.make_node("Attention", inputs, ["out"], **attributes)
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE, np.dtype(bool): TensorProto.BOOL, np.dtype(np.int64): TensorProto.INT64}  # fmt: skip
    described = [helper.make_tensor_value_info(n, kinds[x.dtype], x.shape) for n, x in feed.items()]
    out = helper.make_tensor_value_info("out", kinds[feed["Q"].dtype], None)
    graph = helper.make_graph([node], "attention", described, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), feed


def _onnx(opset: int) -> Library:
    from onnx.reference import ReferenceEvaluator

    def call(given: Mapping[str, Any]) -> Any:
        model, feed = _model(opset, given)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return ReferenceEvaluator(model).run(None, feed)[0]

    return Library(call)


def _onnxruntime(opset: int) -> Library:
    import onnxruntime

    def call(given: Mapping[str, Any]) -> Any:
        model, feed = _model(opset, given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feed)[0]

    return Library(call)


#: Every implementation that can be asked, by column. The first one of a dialect speaks for its claims.
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("torch.sdpa", "torch.sdpa", "torch", _sdpa),
        *(
            Peer(f"sdpa {kernel.partition('_')[0].lower()}", "torch.sdpa", "torch", partial(_sdpa, kernel))
            for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
        ),
        Peer("torch.flex", "torch.flex", "torch", _flex),
        Peer("torch.mha", "torch.mha", "torch", _mha),
        Peer("mha no weights", "torch.mha", "torch", partial(_mha, need_weights=False)),
        Peer("jax.nn", "jax.nn", "jax", _jax_nn),
        Peer("flax.nnx", "flax.nnx", "flax", _nnx),
        Peer("equinox", "equinox", "equinox", _equinox),
        Peer("keras", "keras", "keras", partial(_keras, "jax")),
        Peer("keras torch", "keras", "keras", partial(_keras, "torch")),
        *(Peer(f"onnx.{n}", f"onnx.{n}", "onnx", partial(_onnx, n)) for n in (23, 24, 25)),
        Peer("onnxruntime", "onnx.23", "onnxruntime", partial(_onnxruntime, 23)),
        Peer("transformers", "transformers", "transformers", _transformers),
    )
}


@cache
def library_of(name: str) -> Library | str:
    """The function of a peer, loaded once; or the reason why there is none."""
    try:
        return PEERS[name].load()
    except (ImportError, RuntimeError, metadata.PackageNotFoundError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class PeerOutcome:
    """What one library made of one case."""

    case: str
    rules: str  # of the contract
    peer: str
    eta: float | None  # None: the case cannot be said, or the library refused it
    sentence: str = ""  # why there is no eta

    @property
    def agrees(self) -> bool:
        return self.eta is not None and self.eta <= ACCEPTANCE


def peer_table(
    only: Sequence[Case] | None = None, peers: Sequence[str] = (), seed: int = 0
) -> Iterator[PeerOutcome]:
    """Every case of the contract in float32 on every library here, through its dialect and without repair.

    One column after the other; libraries that are not installed give no outcomes.
    """
    for name in peers or PEERS:
        library = library_of(name)
        if isinstance(library, str):
            continue
        for case in cases() if only is None else only:
            yield judge(PEERS[name], library, case, seed)


def judge(peer: Peer, library: Library, case: Case, seed: int = 0) -> PeerOutcome:
    """One case on one library."""
    dialect, sample = DIALECTS[peer.dialect], case.sample(seed, "float32")

    def convert(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return library.array(x.astype(np.float32) if x.dtype.kind == "f" else x)

    options = {
        name: value.make(convert) if isinstance(value, Later) else convert(value)
        for name, value in sample.options.items()
    }
    query, key, value = (convert(x) for x in sample.inputs or (sample.spec.q, sample.spec.k, sample.spec.v))
    try:
        said = dialect.from_polyattn(query, key, value, repair=False, **options)
        found = library.call(said)
    except Exception as error:  # whatever a library raises is its answer
        sentence = " ".join(str(error).split()).removeprefix(
            f"polyattn.dialects[{dialect.name!r}].from_polyattn: "
        )
        return PeerOutcome(case.name, case.rule_numbers, peer.name, None, sentence)
    spec = sample.spec
    out = heads_apart(dialect, found, spec.q.shape[1])
    return PeerOutcome(
        case.name, case.rule_numbers, peer.name, eta(out.astype(np.float64), truth(spec)["out"], "float32")
    )


def heads_apart(dialect: Dialect, found: Any, heads: int) -> Floats:
    """The output of a foreign call in NumPy as (B, H, L, E)."""
    out: Floats = dialect.result_of(np.asarray(found[0] if isinstance(found, tuple) else found), heads)
    return out
