"""The attention of a component as a formula, from facts alone, with a switch for what goes wrong in its projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn import attention, masks
from polyattn.mods import softcap
from polyattn.parity.components.formula import Norm
from polyattn.rotary import rotate
from polyattn.truth.spec import Floats

__all__ = ["Heads", "Waves"]


@dataclass(frozen=True)
class Waves:
    """Angles of rotary positions: cos and sin (B or 1, 1, L, width/2)."""

    cos: Floats
    sin: Floats
    interleaved: bool = False

    def __call__(self, x: Floats) -> Floats:
        return rotate(x, self.cos, self.sin, interleaved=self.interleaved)


@dataclass(frozen=True)
class Heads:
    """softmax(scale rope(norm(x Wq)) rope(norm(c Wk))^T + bias) (c Wv) Wo, batch first, in float64."""

    arrays: Mapping[str, Floats]
    heads: int
    kv_heads: int
    width: int
    scale: float
    query: Floats  # (B, L, E)
    key: Floats  # (B, S, E)
    value: Floats
    norms: tuple[Norm | None, Norm | None] = (None, None)
    waves: Waves | None = None
    turned: tuple[bool, bool] = (True, True)  # whether queries and keys are
    norm_last: bool = False  # behind the rotation
    causal: bool = False
    window: int | None = None
    mask: Floats | None = None  # bool, True = may attend, (B or 1, H or 1, L or 1, S)
    bias: Floats | None = None
    cap: float | None = None
    tiled: bool = False  # query head h reads kv head h % Hkv
    averages: bool = False  # a row that sees no key gives the mean of all values, not 0

    def plain(self, name: str) -> Floats:
        """x W + b of q, k or v, as heads (B, H, L, D)."""
        x = {"q": self.query, "k": self.key, "v": self.value}[name]
        y = x @ self.arrays[f"{name}.weight"]
        if f"{name}.bias" in self.arrays:
            y = y + self.arrays[f"{name}.bias"]
        return y.reshape(*y.shape[:-1], -1, self.width).swapaxes(1, 2)

    def _normed(self, x: Floats, norm: Norm | None) -> Floats:
        if norm is None:
            return x
        if norm.weight is None or norm.weight.shape == (self.width,):
            return norm(x)
        flat = x.swapaxes(1, 2)  # a norm over all heads together
        return norm(flat.reshape(*flat.shape[:2], -1)).reshape(flat.shape).swapaxes(1, 2)

    def projected(self, *, turned: bool = True) -> tuple[Floats, Floats, Floats]:
        """Queries, keys and values as they meet."""
        found = []
        for name, norm, turns in zip("qk", self.norms, self.turned, strict=True):
            x = self.plain(name)
            x = x if self.norm_last else self._normed(x, norm)
            x = self.waves(x) if self.waves is not None and turns and turned else x
            found.append(self._normed(x, norm) if self.norm_last else x)
        return found[0], found[1], self.plain("v")

    def context(self) -> dict[str, Any]:
        """The arguments of `polyattn.attention` beside query, key and value."""
        found: dict[str, Any] = {"scale": self.scale, "is_causal": self.causal}
        if self.causal:
            found["query_offset"] = "end"
        mask: Any = self.mask
        if self.window is not None:
            window = masks.sliding_window(self.window)
            mask = window if mask is None else window & masks.from_array(mask)
            found["query_offset"] = "end"
        if mask is not None:
            found["mask"] = mask
        if self.bias is not None:
            found["bias"] = self.bias
        if self.cap is not None:
            found["score_mod"] = softcap(self.cap)
        if (sinks := self.arrays.get("sinks")) is not None:
            found["sinks"] = sinks
        return found

    def attended(self) -> Floats:
        """The heads before the output projection, (B, H, L, D)."""
        q, k, v = self.projected()
        if self.tiled:
            k, v = (np.tile(x, (1, self.heads // self.kv_heads, 1, 1)) for x in (k, v))
        out: Floats = attention(q, k, v, **self.context())
        if self.averages:
            mean = np.repeat(v.mean(2, keepdims=True), self.heads // v.shape[1], 1)
            out = np.where(self.blind(), mean, out)
        return out

    def blind(self) -> Floats:
        """The rows that see no key, broadcasting to (B, H, L, 1)."""
        length, keys = self.query.shape[1], self.key.shape[1]
        seen = np.ones((1, 1, length, keys), bool) if self.mask is None else self.mask
        back = np.arange(length)[:, None] + keys - length - np.arange(keys)
        if self.causal:
            seen = seen & (back >= 0)
        if self.window is not None:
            seen = seen & (back >= 0) & (back < self.window)
        blind: Floats = np.logical_not(np.any(seen, axis=-1, keepdims=True))
        return blind

    def without_blind(self, heads: Floats, right: Floats) -> Floats:
        """Heads with 0, as polyattn has it, in the rows that see no key, if they are there as on the right side."""
        blind = np.broadcast_to(self.blind(), heads.shape)
        near = np.abs(heads - right) <= 1e-3 * np.abs(right).max(initial=0.0)
        return np.where(blind, 0.0, heads) if self.averages and near[blind].all() else heads

    def joined(self, heads: Floats) -> Floats:
        """Heads side by side, through the output projection where there is one."""
        flat = heads.swapaxes(1, 2)
        flat = flat.reshape(*flat.shape[:2], -1)
        if "o.weight" not in self.arrays:
            return flat
        y = flat @ self.arrays["o.weight"]
        return y + self.arrays["o.bias"] if "o.bias" in self.arrays else y

    def __call__(self) -> Floats:
        return self.joined(self.attended())

    def undone(self, y: Floats) -> Floats | None:
        """The heads (B, H, L, D) whose output projection gives y; None where it does not say."""
        if "o.weight" in self.arrays:
            w = self.arrays["o.weight"]
            if w.shape[0] > w.shape[1]:
                return None
            y = y - self.arrays["o.bias"] if "o.bias" in self.arrays else y
            back, _, rank, _ = np.linalg.lstsq(w.T, y.reshape(-1, y.shape[-1]).T, rcond=1e-7)
            if rank < w.shape[0]:
                return None
            y = back.T.reshape(*y.shape[:-1], -1)
        return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)

    def with_arrays(self, **arrays: Floats | None) -> Heads:
        """With other arrays, by names with _ for the dot; None takes one away."""
        named = {n.replace("_", ".", 1): x for n, x in arrays.items()}
        merged = {**self.arrays, **named}
        return replace(self, arrays={n: x for n, x in merged.items() if x is not None})
