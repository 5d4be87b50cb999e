"""Random problems: what was asked for, as plain tensors, as arguments of `diagnose` and as the oracle's input."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyattn import masks, mods
from polyattn.rotary import Rotary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDTH = 16


@dataclass(frozen=True)
class Problem:
    """What was asked for. Arrays are float32 and hold numbers of the dtype."""

    dtype: str
    seed: int
    q: Tensor  # (B, Hq, L, D)
    k: Tensor  # (B, Hkv, S, D)
    v: Tensor  # (B, Hkv, S, E)
    mask: Tensor | None = None  # bool, True = may attend
    is_causal: bool = False
    window: tuple[int, int] | None = None  # neighbours on each side
    offset: int | None = None  # position of query row 0
    scale: float | None = None
    cap: float | None = None
    alibi: Tensor | None = None  # (Hq,) slopes
    bias: Tensor | None = None
    sinks: Tensor | None = None
    rotary: Rotary | None = None
    lengths: tuple[int, ...] = ()  # real keys of each item, where the mask is of padding

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return (*self.q.shape[:3], self.k.shape[2])

    @property
    def start(self) -> int:
        return self.offset or 0

    @property
    def stated_scale(self) -> float:
        return float(self.q.shape[3] ** -0.5) if self.scale is None else self.scale

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Positions of the queries, (L, 1), and of the keys, (S,)."""
        return self.start + torch.arange(self.shape[2])[:, None], torch.arange(self.shape[3])

    @cached_property
    def allowed(self) -> Tensor:
        """Who may attend to whom, (1 or B, 1, L, S)."""
        i, j = self.places
        allowed = torch.ones(1, 1, *self.shape[2:], dtype=torch.bool)
        if self.is_causal:
            allowed = allowed & (j <= i)
        if self.window is not None:
            left, right = self.window
            allowed = allowed & (i - left <= j) & (j <= i + (self.shape[3] if self.is_causal else right))
        return allowed if self.mask is None else allowed & self.mask

    def rng(self, what: str) -> np.random.Generator:
        """Chance for one purpose, the same every time."""
        return np.random.default_rng([self.seed, zlib.crc32(what.encode())])

    def pick(self, what: str, *choices: Any) -> Any:
        return choices[int(self.rng(what).integers(len(choices)))]

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v in the dtype."""
        return tuple(x.to(DTYPES[self.dtype]) for x in (self.q, self.k, self.v))

    def context(self) -> dict[str, Any]:
        """The rest of it, as `polyattn.attention` and `diagnose` take it."""
        parts: list[Any] = []
        if self.window is not None:
            left, right = self.window
            parts.append(masks.window(left, None if self.is_causal else right))
        if self.mask is not None:
            parts.append(self.mask if not parts else masks.from_array(self.mask))
        scored = [] if self.cap is None else [mods.softcap(self.cap)]
        scored += [] if self.alibi is None else [mods.alibi(self.alibi.tolist())]
        given = {
            "mask": None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1],
            "is_causal": self.is_causal,
            "query_offset": self.offset,
            "scale": self.scale,
            "score_mod": None if not scored else scored[0] if len(scored) == 1 else mods.compose(*scored),
            "bias": self.bias,
            "sinks": self.sinks,
            "rotary": self.rotary,
        }
        return {name: x for name, x in given.items() if x is not None and x is not False}


EXTRAS = "causal mask padding left window softcap bias sinks gqa end first rotary scale wide alibi"
CONFLICTS = (
    "end first square",
    "mask padding left empty",
    "window sliding",
    "equal wide",
    "heads gqa",
    "alibi rotary",
)


def conflict(features: set[str]) -> bool:
    return any(len(features & set(group.split())) > 1 for group in CONFLICTS)


def draw(needs: str, without: str, seed: int, dtype: str, few_sizes: bool = False) -> Problem:
    """A random problem with the features that are needed and, but for seed 0, up to two others.

    few_sizes: of four shapes or so, for what compiles for seconds for every shape.
    """
    needed, unwanted = set(needs.split()), set(without.split())
    rng = np.random.default_rng([seed, *sorted(zlib.crc32(name.encode()) for name in needed)])
    features = set(needed)
    for extra in rng.permutation(EXTRAS.split())[: rng.integers(0, 3) if seed else 0]:
        if extra not in unwanted and not conflict(features | {str(extra)}):
            features.add(str(extra))

    def normal(*shape: int, amplitude: float = 1.0) -> Tensor:
        x = torch.tensor(rng.normal(size=shape) * amplitude, dtype=torch.float32)
        return x.to(DTYPES[dtype]).float()

    has = features.__contains__
    batch = 3 if has("three") else 2
    heads = 6 if has("six") else int(rng.choice([4, 6, 8]))
    kv_heads = heads // 2 if has("gqa") else heads
    rows = keys = int(rng.integers(24, 49))
    if has("end") or has("first"):
        keys = rows + int(rng.choice([-9, 7, 16]))
    if few_sizes:
        heads, keys = 4, 40 + keys - rows
        kv_heads, rows = heads // 2 if has("gqa") else heads, 40
    amplitude = float(rng.choice([1.0, 1.5, 2.0]))
    q = normal(batch, heads, rows, WIDTH, amplitude=amplitude)
    k = normal(batch, kv_heads, keys, WIDTH)
    v = normal(batch, kv_heads, keys, 12 if has("wide") else WIDTH)
    given: dict[str, Any] = {"is_causal": has("causal")}
    if has("mask") or has("empty"):
        mask = torch.tensor(rng.random((batch, 1, rows, keys)) < 0.7)
        if has("empty"):
            mask[0, 0, rows // 2] = False
        given["mask"] = mask
    if has("padding") or has("left"):
        given["lengths"] = (keys - keys // 3, keys - 3, keys - 6)[:batch]
        lengths = torch.tensor(given["lengths"])[:, None, None, None]
        column = torch.arange(keys)
        given["mask"] = column < lengths if has("padding") else column.flip(0) < lengths
    if has("window"):
        left = int(rng.integers(3, 7))
        given["window"] = (left, left - 2)
    if has("sliding"):
        given["window"] = (int(rng.integers(3, 7)), 0)
    if has("softcap"):
        given["cap"] = float(rng.choice([1.0, 2.0, 3.0]))
    if has("alibi"):
        given["alibi"] = torch.tensor(mods.alibi_slopes(heads), dtype=torch.float32)
    if has("bias"):
        given["bias"] = normal(1, heads, rows, keys)
    if has("sinks"):
        given["sinks"] = normal(heads) + 1.0
    if has("rotary"):
        given["rotary"] = Rotary(interleaved=bool(rng.integers(0, 2)))
    if has("scale"):
        given["scale"] = float(rng.choice([0.1, 0.4, 0.6]))
    if has("end") or has("first"):
        given["offset"] = keys - rows if has("end") else 0
    return Problem(dtype, seed, q, k, v, **given)
