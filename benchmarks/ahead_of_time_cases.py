"""What is compiled ahead of time: the problems, and how each contestant states them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyattn import Reference, attention, masks, mods

HEADS, WIDTH, WINDOW, DOCUMENT, CAP, RATE = 8, 128, 1024, 1024, 50.0, 0.1
#: all but the first are causal
PROBLEMS = ("full", "causal", "window", "documents", "soft cap", "sinks", "dropout", "grouped")
DIRECTIONS = ("forward", "backward")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Case:
    """One problem; "grouped" has a key head for every four query heads."""

    problem: str
    length: int
    dtype: str = "bfloat16"
    direction: str = "forward"

    def __str__(self) -> str:
        return f"{self.problem} {self.length} {self.dtype} {self.direction}"

    @property
    def kv_heads(self) -> int:
        return HEADS // 4 if self.problem == "grouped" else HEADS

    @property
    def causal(self) -> bool:
        return self.problem != "full"

    def documents(self) -> Any:
        """The document of every token, (L,)."""
        return jnp.asarray(np.arange(self.length, dtype=np.int32) // DOCUMENT)


class Program(NamedTuple):
    """What a contestant computes of q, k and v, and the order of their axes."""

    attend: Callable[..., Any]
    layout: str = "BHLD"

    def shapes(self, case: Case) -> list[tuple[int, ...]]:
        """Of q, k and v."""
        return [
            tuple({"B": 1, "H": heads, "L": case.length, "D": WIDTH}[axis] for axis in self.layout)
            for heads in (HEADS, case.kv_heads, case.kv_heads)
        ]

    def function(self, direction: str) -> Callable[..., Any]:
        """To compile: attention, or the gradients of its sum."""
        if direction == "forward":
            return self.attend
        return jax.grad(lambda *x: jnp.sum(self.attend(*x).astype(jnp.float32)), argnums=(0, 1, 2))


Make = Callable[[Case, str], Program | None]  # of a case and a platform; None: it cannot be told this
CONTESTANTS: dict[str, Make] = {}


def contestant(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CONTESTANTS[name] = make
        return make

    return add


def _polyattn(case: Case, implementation: Any) -> Program:
    options: dict[str, Any] = {"is_causal": case.causal, "implementation": implementation}
    if case.problem == "window":
        options["mask"] = masks.sliding_window(WINDOW)
    elif case.problem == "documents":
        options["mask"] = masks.segments(case.documents())
    elif case.problem == "soft cap":
        options["score_mod"] = mods.softcap(CAP)
    elif case.problem == "sinks":
        options["sinks"] = jnp.zeros(HEADS)
    elif case.problem == "dropout":
        options |= {"dropout_rate": RATE, "dropout_seed": 0}
    return Program(lambda q, k, v: attention(q, k, v, **options))


@contestant("reference")
def reference(case: Case, platform: str) -> Program:
    return _polyattn(case, Reference(max_bytes=2**60))  # the compiler says what does not fit


@contestant("blockwise")
def blockwise(case: Case, platform: str) -> Program:
    return _polyattn(case, "blockwise")


@contestant("fused")
def fused(case: Case, platform: str) -> Program:
    return _polyattn(case, "fused")


@contestant("jax.nn")
def jax_nn(case: Case, platform: str) -> Program | None:
    if case.problem in ("soft cap", "sinks", "dropout"):
        return None
    options: dict[str, Any] = {"is_causal": case.causal}
    if case.problem == "window":
        options["local_window_size"] = (WINDOW - 1, 0)

    def attend(q: Any, k: Any, v: Any) -> Any:
        mask = None
        if case.problem == "documents":
            ids = case.documents()
            mask = (ids[:, None] == ids)[None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, **options)

    return Program(attend, "BLHD")


@contestant("splash")
def splash(case: Case, platform: str) -> Program | None:
    """JAX's kernel for sparse masks, of TPUs."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as forms

    if platform != "tpu" or case.problem == "dropout":
        return None
    square = (case.length, case.length)
    mask = {
        "full": lambda: forms.FullMask(square),
        "window": lambda: forms.LocalMask(square, (WINDOW - 1, 0), 0),
    }.get(case.problem, lambda: forms.CausalMask(square))()
    kernel = kernels.make_splash_mha(
        forms.MultiHeadMask([mask] * HEADS),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=CAP if case.problem == "soft cap" else None,
    )
    more: dict[str, Any] = {}
    if case.problem == "documents":
        more["segment_ids"] = kernels.SegmentIds(case.documents(), case.documents())
    elif case.problem == "sinks":
        more["sinks"] = jnp.zeros(HEADS)
    return Program(lambda q, k, v: kernel(q * WIDTH**-0.5, k, v, **more), "HLD")


@contestant("flash")
def flash(case: Case, platform: str) -> Program | None:
    """JAX's kernels without sparsity: one of TPUs, one of GPUs."""
    if case.problem not in ("full", "causal", "documents"):
        return None
    ids = case.documents()[None] if case.problem == "documents" else None
    scale = 1 / math.sqrt(WIDTH)
    if platform == "tpu":
        from jax.experimental.pallas.ops.tpu import flash_attention as kernels

        pair = None if ids is None else kernels.SegmentIds(ids, ids)
        return Program(
            lambda q, k, v: kernels.flash_attention(
                q, k, v, segment_ids=pair, causal=case.causal, sm_scale=scale
            )
        )
    from jax.experimental.pallas.ops.gpu.attention import mha

    return Program(lambda q, k, v: mha(q, k, v, ids, sm_scale=scale, causal=case.causal), "BLHD")
