"""What is measured: the problems, and how each contestant solves them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import polyattn
from polyattn import masks, mods


@dataclass(frozen=True)
class Case:
    """One attention problem in float32."""

    name: str
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    rows: int = 1024
    keys: int = 1024
    width: int = 64
    mask: str | None = None  # "causal", "window" or "documents"
    softcap: float | None = None
    sinks: bool = False
    backward: bool = False

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        rng = np.random.default_rng(0)
        shapes = {
            "q": (self.batch, self.heads, self.rows, self.width),
            "k": (self.batch, self.kv_heads, self.keys, self.width),
            "v": (self.batch, self.kv_heads, self.keys, self.width),
        }
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def allowed(self) -> np.ndarray[Any, Any] | None:
        """The mask as an array, for contestants that take no other."""
        q, kv = np.arange(self.rows)[:, None] + self.keys - self.rows, np.arange(self.keys)
        if self.mask == "causal":
            return kv <= q
        if self.mask == "window":
            return (kv <= q) & (kv > q - WINDOW)
        if self.mask == "documents":
            return q // DOCUMENT == kv // DOCUMENT
        return None


WINDOW, DOCUMENT = 256, 512

CASES = (
    Case("full 1024"),
    Case("causal 1024", mask="causal"),
    Case("causal 4096", rows=4096, keys=4096, mask="causal"),
    Case("causal 8192", heads=4, kv_heads=4, rows=8192, keys=8192, mask="causal"),
    Case("full 8192", heads=4, kv_heads=4, rows=8192, keys=8192),
    Case("grouped causal 1024", heads=32, kv_heads=8, width=128, mask="causal"),
    Case("window 8192", heads=4, kv_heads=4, rows=8192, keys=8192, mask="window"),
    Case("documents 8192", heads=4, kv_heads=4, rows=8192, keys=8192, mask="documents"),
    Case("softcap 2048", rows=2048, keys=2048, mask="causal", softcap=20.0),
    Case("sinks 2048", rows=2048, keys=2048, mask="causal", sinks=True),
    Case("decode 4096", batch=8, heads=32, kv_heads=8, rows=1, keys=4096, width=128, mask="causal"),
    Case("forward + backward 4096", heads=4, kv_heads=4, rows=4096, keys=4096, mask="causal", backward=True),
    Case("forward + backward 8192", heads=2, kv_heads=2, rows=8192, keys=8192, mask="causal", backward=True),
    Case("overhead 16", heads=1, kv_heads=1, rows=16, keys=16),
)

SMOKE = tuple(
    replace(case, name=f"{case.name} (smoke)", rows=min(case.rows, 64), keys=64, batch=1, width=16)
    for case in CASES
)


@dataclass(frozen=True)
class Target:
    """`ours` is to be at least `ratio` times as fast as `peer` (or to cost at most `extra` microseconds more)."""

    case: str
    ours: str
    peer: str
    ratio: float = 0.0
    extra: float | None = None


TARGETS = (
    Target("causal 4096", "polyattn numpy", "naive numpy", 15),
    Target("causal 4096", "polyattn numpy", "torch sdpa", 0.5),
    Target("causal 4096", "polyattn numpy", "onnxruntime", 2.5),
    Target("causal 4096", "polyattn jax", "jax.nn", 6.5),
    Target("forward + backward 4096", "polyattn jax", "jax.nn", 6),
    Target("full 1024", "polyattn torch", "torch sdpa", 0.97),
    Target("causal 4096", "polyattn torch", "torch sdpa", 0.97),
    Target("grouped causal 1024", "polyattn torch", "torch sdpa", 0.97),
    Target("forward + backward 4096", "polyattn torch", "torch sdpa", 0.97),
    Target("window 8192", "polyattn torch", "torch sdpa", 12),
    Target("documents 8192", "polyattn torch", "torch sdpa", 12),
    Target("softcap 2048", "polyattn torch", "torch eager", 8),
    Target("sinks 2048", "polyattn torch", "torch eager", 12),
    Target("decode 4096", "polyattn numpy", "torch sdpa", 1),
    Target("decode 4096", "polyattn torch", "torch sdpa", 1),
    Target("decode 4096", "polyattn jax", "jax.nn", 4),
    Target("overhead 16", "polyattn torch", "torch sdpa", extra=30.0),
    Target("documents 8192 / full 8192", "polyattn numpy", "polyattn numpy", 12),
    Target("documents 8192 / full 8192", "polyattn jax", "polyattn jax", 12),
    Target("documents 8192 / full 8192", "polyattn torch", "polyattn torch", 12),
)

Run = Callable[[], Any]
Make = Callable[[Case], Run | None]  # None: the contestant has no such thing
CONTESTANTS: dict[str, Make] = {}


def contestant(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CONTESTANTS[name] = make
        return make

    return add


def plain(case: Case) -> bool:
    return case.softcap is None and not case.sinks


@contestant("naive numpy")
def naive_numpy(case: Case) -> Run | None:
    if not plain(case) or case.backward or case.name in ("full 8192", "window 8192", "documents 8192"):
        return None
    q, k, v = case.arrays().values()
    group = case.heads // case.kv_heads
    allowed = case.allowed()

    def run() -> Any:
        keys, values = (np.repeat(x, group, axis=1) if group > 1 else x for x in (k, v))
        s = q @ keys.swapaxes(-1, -2) / np.float32(math.sqrt(case.width))
        if allowed is not None:
            s = np.where(allowed, s, np.float32(-np.inf))
        w = np.exp(s - s.max(-1, keepdims=True))
        return (w / w.sum(-1, keepdims=True)) @ values

    return run


def torch_arrays(case: Case) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(x).requires_grad_(case.backward) for x in case.arrays().values())


def torch_run(case: Case, attend: Callable[..., Any]) -> Run:
    import torch

    q, k, v = torch_arrays(case)
    if not case.backward:
        return lambda: attend(q, k, v)
    cotangent = torch.ones(q.shape)
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), cotangent)


@contestant("torch sdpa")
def torch_sdpa(case: Case) -> Run | None:
    import torch

    if not plain(case):
        return None
    options: dict[str, Any] = {"enable_gqa": case.heads != case.kv_heads}
    if case.mask == "causal" and case.rows == case.keys:
        options["is_causal"] = True
    elif case.mask and case.rows > 1:
        options["attn_mask"] = torch.from_numpy(case.allowed())
    return torch_run(
        case, lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    )


@contestant("torch eager")
def torch_eager(case: Case) -> Run | None:
    """The masked softmax that people write where SDPA has no argument for what they need."""
    import torch

    if plain(case):
        return None
    hidden = ~torch.from_numpy(case.allowed())

    def attend(q: Any, k: Any, v: Any) -> Any:
        s = q @ k.mT / math.sqrt(case.width)
        if case.softcap is not None:
            s = case.softcap * torch.tanh(s / case.softcap)
        s = s.masked_fill(hidden, -torch.inf)
        if case.sinks:
            s = torch.cat([s, torch.zeros(*s.shape[:-1], 1)], dim=-1)
        return torch.softmax(s, dim=-1)[..., : case.keys] @ v

    return torch_run(case, attend)


@contestant("torch flex")
def torch_flex(case: Case) -> Run | None:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.name != "window 8192":  # each case compiles for tens of seconds on a CPU
        return None
    block_mask = create_block_mask(
        lambda b, h, q, kv: (kv <= q) & (kv > q - WINDOW), None, None, case.rows, case.keys, device="cpu"
    )
    compiled = torch.compile(flex_attention)
    return torch_run(case, lambda q, k, v: compiled(q, k, v, block_mask=block_mask))


@contestant("torch MultiheadAttention")
def torch_mha(case: Case) -> Run | None:
    """With its four projections, which the others do not have."""
    import torch

    if case.name not in ("full 1024", "overhead 16"):
        return None
    width = case.heads * case.width
    layer = torch.nn.MultiheadAttention(width, case.heads, batch_first=True).eval()
    x = torch.randn(case.batch, case.rows, width)

    def run() -> Any:
        with torch.no_grad():
            return layer(x, x, x, need_weights=False)

    return run


@contestant("jax.nn")
def jax_nn(case: Case) -> Run | None:
    import jax

    if not plain(case) or case.name in ("full 8192", "documents 8192"):
        return None
    causal = case.mask == "causal" and case.rows == case.keys
    allowed = None
    if case.mask is not None and not causal and case.rows > 1:
        allowed = jax.numpy.asarray(case.allowed())[None, None]
    q, k, v = (jax.numpy.asarray(x.swapaxes(1, 2)) for x in case.arrays().values())
    return jax_run(
        case, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=allowed, is_causal=causal), q, k, v
    )


def jax_run(case: Case, attend: Callable[..., Any], *arrays: Any) -> Run:
    import jax

    if case.backward:
        f = jax.jit(jax.grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2)))
    else:
        f = jax.jit(attend)
    return lambda: jax.block_until_ready(f(*arrays))


@contestant("onnxruntime")
def onnx_runtime(case: Case) -> Run | None:
    import onnxruntime
    from onnx import TensorProto, helper

    if not plain(case) or case.backward or case.mask not in (None, "causal") or case.name == "full 8192":
        return None
    node = helper.make_node(
        "Attention", ["q", "k", "v"], ["out"], is_causal=int(case.mask == "causal" and case.rows > 1)
    )
    info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("q", "k", "v", "out")}
    graph = helper.make_graph([node], "attention", [info[n] for n in "qkv"], [info["out"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = case.arrays()
    return lambda: session.run(None, given)


@contestant("keras on torch")
def keras_ops(case: Case) -> Run | None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    import torch

    if case.name not in ("full 1024", "causal 1024"):
        return None
    q, k, v = (torch.from_numpy(x.swapaxes(1, 2).copy()) for x in case.arrays().values())
    causal = case.mask == "causal"

    def run() -> Any:
        with torch.no_grad():
            return keras.ops.dot_product_attention(q, k, v, is_causal=causal)

    return run


def polyattn_options(case: Case, sinks: Any) -> dict[str, Any]:
    """The case as polyattn takes it; `sinks` makes an array of the library."""
    options: dict[str, Any] = {}
    if case.rows != case.keys:
        options["query_offset"] = "end"
    if case.mask == "causal":
        options["is_causal"] = True
    elif case.mask == "window":
        options["mask"] = masks.sliding_window(WINDOW)
    elif case.mask == "documents":
        options["mask"] = masks.chunked(DOCUMENT)
    if case.softcap is not None:
        options["score_mod"] = mods.softcap(case.softcap)
    if case.sinks:
        options["sinks"] = sinks(np.zeros(case.heads, np.float32))
    return options


@contestant("polyattn numpy")
def polyattn_numpy(case: Case) -> Run | None:
    q, k, v = case.arrays().values()
    options = polyattn_options(case, np.asarray)
    if not case.backward:
        return lambda: polyattn.attention(q, k, v, **options)
    cotangent = np.ones_like(q)
    return lambda: polyattn.attention_vjp(q, k, v, **options)[1](cotangent)


@contestant("polyattn jax")
def polyattn_jax(case: Case) -> Run | None:
    import jax

    q, k, v = (jax.numpy.asarray(x) for x in case.arrays().values())
    options = polyattn_options(case, jax.numpy.asarray)
    return jax_run(case, lambda q, k, v: polyattn.attention(q, k, v, **options), q, k, v)


@contestant("polyattn torch")
def polyattn_torch(case: Case) -> Run | None:
    import torch

    options = polyattn_options(case, torch.from_numpy)
    return torch_run(case, lambda q, k, v: polyattn.attention(q, k, v, **options))


@contestant("polyattn torch fused")
def polyattn_torch_fused(case: Case) -> Run | None:
    import torch

    if plain(case):  # each case compiles for some seconds
        return None
    options = polyattn_options(case, torch.from_numpy)
    return torch_run(case, lambda q, k, v: polyattn.attention(q, k, v, implementation="fused", **options))
