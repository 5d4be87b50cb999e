"""What is measured: the problems, and how each contestant solves them."""

from __future__ import annotations

import math
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
)

SMOKE = tuple(replace(case, name=f"{case.name} (smoke)", rows=64, keys=64) for case in CASES)

Make = Callable[[Case], Callable[[], Any]]
CONTESTANTS: dict[str, Make] = {}


def contestant(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CONTESTANTS[name] = make
        return make

    return add


@contestant("naive numpy")
def naive_numpy(case: Case) -> Callable[[], Any]:
    q, k, v = case.arrays().values()
    k, v = (np.repeat(x, case.heads // case.kv_heads, axis=1) for x in (k, v))
    allowed = case.allowed()

    def run() -> Any:
        s = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(case.width))
        if allowed is not None:
            s = np.where(allowed, s, -np.inf)
        w = np.exp(s - s.max(-1, keepdims=True))
        return (w / w.sum(-1, keepdims=True)) @ v

    return run


@contestant("torch sdpa")
def torch_sdpa(case: Case) -> Callable[[], Any]:
    import torch

    q, k, v = (torch.from_numpy(x) for x in case.arrays().values())
    options: dict[str, Any] = {"enable_gqa": case.heads != case.kv_heads}
    if case.mask == "causal" and case.rows == case.keys:
        options["is_causal"] = True
    elif case.mask and case.rows > 1:
        options["attn_mask"] = torch.from_numpy(case.allowed())
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


@contestant("jax.nn")
def jax_nn(case: Case) -> Callable[[], Any]:
    import jax

    q, k, v = (jax.numpy.asarray(x.swapaxes(1, 2)) for x in case.arrays().values())
    causal = case.mask == "causal" and case.rows == case.keys
    allowed = None if causal or case.mask is None else jax.numpy.asarray(case.allowed())[None, None]
    f = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=allowed, is_causal=causal))
    return lambda: f(q, k, v).block_until_ready()


def polyattn_options(case: Case) -> dict[str, Any]:
    """The case as polyattn takes it."""
    options: dict[str, Any] = {"query_offset": "end"}
    if case.mask == "causal":
        options["is_causal"] = True
    elif case.mask == "window":
        options["mask"] = masks.sliding_window(WINDOW)
    elif case.mask == "documents":
        options["mask"] = masks.chunked(DOCUMENT)
    if case.softcap is not None:
        options["score_mod"] = mods.softcap(case.softcap)
    return options


@contestant("polyattn numpy")
def polyattn_numpy(case: Case) -> Callable[[], Any]:
    q, k, v = case.arrays().values()
    options = polyattn_options(case)
    return lambda: polyattn.attention(q, k, v, **options)


@contestant("polyattn jax")
def polyattn_jax(case: Case) -> Callable[[], Any]:
    import jax

    q, k, v = (jax.numpy.asarray(x) for x in case.arrays().values())
    options = polyattn_options(case)
    f = jax.jit(lambda q, k, v: polyattn.attention(q, k, v, **options))
    return lambda: f(q, k, v).block_until_ready()


@contestant("polyattn torch")
def polyattn_torch(case: Case) -> Callable[[], Any]:
    import torch

    q, k, v = (torch.from_numpy(x) for x in case.arrays().values())
    options = polyattn_options(case)
    return lambda: polyattn.attention(q, k, v, **options)
