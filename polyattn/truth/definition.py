"""The definition and its gradients in extended precision, with the condition number of every element.

A score carries an error of a few u * sabs, sabs = scale * sum_d |q_d| |k_d|; first-order analysis
takes it through the normaliser. The error of a correct computation is then at most a small number `eta`
times u times the condition `c` given here, whatever the dtype and the amplitude of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.truth.backward import Parts, Shared, backward
from polyattn.truth.forward import Real, forward
from polyattn.truth.judged import Judged
from polyattn.truth.spec import Floats, Spec
from polyattn.truth.tiles import LARGEST, Place, places

__all__ = ["Judged", "truth"]

See = Callable[[str, Judged], object]
Visit = Callable[[str, Judged, Place], object]


@np.errstate(all="ignore")
def truth(
    spec: Spec,
    cotangent: Floats | None = None,
    see: See | None = None,
    *,
    dtype: str = "float64",
    visit: Visit | None = None,
) -> dict[str, Judged]:
    """out, and lse beside the softmax; with a cotangent of out also the gradients dq, dk, dv, dbias, dsinks, dscale.

    Condition of the output: c = sum_j w_j |v_j| (1 + sabs_j + sum_k w_k sabs_k). `see` is shown every stage on the
    way there, by its name in `polyattn.trace`; what hidden scores hold before the mask is free: an infinite condition.
    `visit` is shown the same in tiles, with the place of each, for problems whose scores are many.

    dtype: of what will be judged. float64 needs a truth in long double; for the others float64 is as good (an eta
    moves by 1e-8 of itself), and many times as fast.

    >>> x = np.array([[[[0.0], [1.0]]]])
    >>> truth(Spec(x, x, x, scale=1.0))["out"].value.ravel().astype(float).round(6).tolist()
    [0.5, 0.731059]
    """
    real: Real = np.longdouble if dtype == "float64" else np.float64
    whole = _Whole(spec, real)
    hides = not np.all(spec.allowed) or (spec.bias is not None and bool((spec.bias == -np.inf).any()))
    for place in places(spec.shape, LARGEST if see is None else None):

        def show(name: str, judged: Judged, place: Place = place) -> None:
            if see is not None:
                see(name, judged)
            if visit is not None:
                visit(name, judged, place)

        tile = forward(spec, place, real, show, hides)
        whole.put("out", place, tile.out)
        if tile.lse is not None:
            whole.put("lse", place, tile.lse)
        if cotangent is not None:
            for name, parts in backward(tile, cotangent[place], spec.softcap).items():
                whole.add(name, place, parts)
    return whole.judged()


class _Whole:
    """Results of tiles, put side by side or summed."""

    def __init__(self, spec: Spec, real: Real) -> None:
        self.spec, self.real = spec, real
        batch, heads, rows, keys = spec.shape
        self.group = heads // spec.k.shape[1] if spec.k.shape[1] else 1
        self.shapes: dict[str, tuple[int, ...]] = {
            "out": (batch, heads, rows, spec.v.shape[3]),
            "lse": (batch, heads, rows),
            "dq": (batch, heads, rows, spec.q.shape[3]),
            "dk": (batch, heads, keys, spec.k.shape[3]),
            "dv": (batch, heads, keys, spec.v.shape[3]),
            "dscale": (heads,),
        }
        if spec.bias is not None:
            self.shapes["dbias"] = (1,) * (4 - spec.bias.ndim) + spec.bias.shape
        if spec.sinks is not None:
            self.shapes["dsinks"] = (heads,)
        self.found: dict[str, list[Floats]] = {}
        self.walked: dict[str, Floats] = {}

    def _into(self, name: str, count: int) -> list[Floats]:
        if name not in self.found:
            self.found[name] = [np.zeros(self.shapes[name], self.real) for _ in range(count)]
        return self.found[name]

    def put(self, name: str, place: Place, judged: Judged) -> None:
        """Where a tile's own results belong."""
        parts = [x for x in judged if isinstance(x, np.ndarray)]
        for into, x in zip(self._into(name, len(parts)), parts, strict=True):
            into[place] = x

    def add(self, name: str, place: Place, parts: Parts | Shared) -> None:
        """What every tile contributes to."""
        if name not in self.shapes:
            return
        at: tuple[slice, ...] = place if name == "dq" else place[:2]
        if isinstance(parts, Shared):
            self._walk(name, at, parts.blocks)
            parts = parts.parts
        elif name == "dbias":
            at = tuple(slice(None) if n == 1 else s for n, s in zip(self.shapes[name], place, strict=False))
            axes = tuple(axis for axis, n in enumerate(self.shapes[name]) if n == 1)
            parts = Parts(*(x.sum(axes, keepdims=True) for x in parts))
        elif name in ("dscale", "dsinks"):
            at, parts = (place.heads,), Parts(*(x.sum((0, 2, 3)) for x in parts))
        for into, x in zip(self._into(name, 4), parts, strict=True):
            into[at] += x

    def _walk(self, name: str, at: tuple[slice, ...], blocks: Floats) -> None:
        """The squares of what is summed after each block of rows."""
        before = self._into(name, 4)[0][at]
        squares = self.walked.setdefault(name, np.zeros(self.shapes[name], self.real))
        squares[at] += ((before + np.cumsum(blocks, 0)) ** 2).sum(0)

    def judged(self) -> dict[str, Judged]:
        """Everything, in the shapes of the problem."""
        return {
            name: Judged(*parts) if name in ("out", "lse") else self._gradient(name, Parts(*parts))
            for name, parts in self.found.items()
        }

    def _gradient(self, name: str, parts: Parts) -> Judged:
        """The gradient for what was given, from those of each query head and batch item."""
        if name in ("dq", "dk", "dv"):
            like = getattr(self.spec, name[1])
            shared: Any = like.shape[:2] != parts.value.shape[:2]
            # Heads that share a key may be rounded before they are summed.
            apart = _share(np.abs(parts.value), like) if shared else 0.0
            if name in self.walked:
                apart = apart + np.sqrt(_share(self.walked[name], like))
            parts = Parts(*(_share(x, like) for x in parts))
        elif name == "dscale" and np.ndim(self.spec.scale if self.spec.scale is not None else 0.0) == 0:
            apart, parts = 0.0, Parts(*(np.asarray(x.sum()) for x in parts))
        else:
            apart = 0.0
            if name == "dbias" and self.spec.bias is not None:
                parts = Parts(*(x.reshape(self.spec.bias.shape) for x in parts))
        rounded = (np.abs(parts.value) + parts.rounded + apart) / 2
        return Judged(parts.value, parts.condition, parts.floor, rounded)


def _share(x: Floats, like: Floats) -> Floats:
    """Summed over the query heads that share a kv head, and over a batch axis that was broadcast."""
    batch, heads, *rest = x.shape
    kv_heads = like.shape[1]
    x = x.reshape(batch, kv_heads, heads // kv_heads, *rest).sum(2) if kv_heads else x
    return x.sum(0, keepdims=True) if like.shape[0] == 1 < batch else x
