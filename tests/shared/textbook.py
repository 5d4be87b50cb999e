"""Multi-head attention and its gradients as a textbook has them, and the judge of the frameworks' layers.

All results are judged in float64, within 4 times what rounding to float32 does to them
(`polyattn.parity.rounding.noise`). The programs are those of docs/frameworks.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from shared.libraries import jnp
from shared.running import normal

from polyattn.arrays import Array
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]
PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
KERAS_AT = next(i for i, program in enumerate(PROGRAMS) if "import keras" in program)

B, L, S, E, H = 2, 5, 7, 24, 4  # batch, queries, keys, width, heads
X, CONTEXT, D_OUT = normal(B, L, E), normal(B, S, E, seed=1), normal(B, L, E, seed=2)
BIAS = normal(B, H, L, S, seed=3, size=2.0)
SOME = (np.arange(H)[:, None, None] + np.arange(L)[:, None] - np.arange(S)) % 3 != 1  # True = may attend
FIRST_ROWS, ITSELF = np.tri(L, S, dtype=bool), np.eye(L, S, dtype=bool)
PAST = np.tri(L, dtype=bool)
Q, K, V = (jnp.asarray(normal(B, n, H, 6, seed=i)) for i, n in enumerate((L, S, S)))  # layout BLHD


def textbook(
    number: Callable[[Floats], Floats],
    params: Mapping[str, Floats],
    x: Floats,
    context: Floats | None,
    d_out: Floats,
    seen: Any = True,
    bias: Any = 0.0,
) -> dict[str, Floats]:
    """Multi-head attention of x (B, L, E) over context (B, S, E), and the gradients of sum(out d_out).

    "w_q after" and so on are the params after a step of gradient descent, w - gradient. seen, bias: for scores
    (B, H, L, S). Of NumPy products and sums alone, so that `Rounded` takes it.
    """
    w = {name: number(value) for name, value in params.items()}
    inputs = {"q": number(x), "k": number(x if context is None else context)}
    inputs["v"] = inputs["k"]
    heads = {n: _split(inputs[n], w[f"w_{n}"], w.get(f"b_{n}")) for n in "qkv"}
    group = heads["q"].shape[1] // heads["k"].shape[1]
    q, k, v = heads["q"], *(np.repeat(heads[n], group, axis=1) for n in "kv")
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(2, 3) * scale + bias
    p = softmax(scores, seen)
    o = _joined(p @ v)
    w_o, d_out = w["w_o"].reshape(-1, w["w_o"].shape[-1]), number(d_out)
    found = {"out": o @ w_o + w.get("b_o", 0.0), "weights": p, "w_o": _flat(o).T @ _flat(d_out)}
    d_o = (d_out @ w_o.T).reshape(*d_out.shape[:2], q.shape[1], -1).swapaxes(1, 2)
    d_p = d_o @ v.swapaxes(2, 3)
    d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True)) * scale
    d = {"q": d_s @ k, "k": d_s.swapaxes(2, 3) @ q, "v": p.swapaxes(2, 3) @ d_o}
    into: dict[str, Floats] = {}
    for n in "qkv":
        grouped = d[n] if n == "q" else d[n].reshape(len(x), -1, group, *d[n].shape[2:]).sum(2)
        wide = _joined(grouped)
        found[f"w_{n}"] = _flat(inputs[n]).T @ _flat(wide)
        found[f"b_{n}"] = _flat(wide).sum(0)
        into[n] = wide @ w[f"w_{n}"].reshape(x.shape[-1], -1).T
    found["b_o"] = _flat(d_out).sum(0)
    if context is None:
        found["x"] = into["q"] + into["k"] + into["v"]
    else:
        found |= {"x": into["q"], "context": into["k"] + into["v"]}
    found = {n: y.reshape(w[n].shape) if n in w else y for n, y in found.items()}
    return found | {f"{n} after": w[n] - found[n] for n in w}


def softmax(scores: Floats, seen: Any = True) -> Floats:
    p = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    return p / p.sum(-1, keepdims=True)


def _split(x: Floats, w: Floats, b: Floats | None) -> Floats:
    """x w + b as heads (B, H, L, D)."""
    y = (x @ w.reshape(len(w), -1)).reshape(*x.shape[:2], *w.shape[1:])
    return (y if b is None else y + b).swapaxes(1, 2)


def _joined(x: Floats) -> Floats:
    """Heads (B, H, L, D) as (B, L, HD)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _flat(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])


class Judge:
    """The textbook's results, and how far float32 may be from each."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.compute = lambda number: textbook(number, *arguments, **options)
        self.true = self.compute(lambda x: np.asarray(x, np.float64))

    def judge(self, who: str, found: Mapping[str, Any], unit: float = 1.0) -> None:
        """unit: of the roundings, those of float32 being 1."""
        for name, value in found.items():
            value, true = np.asarray(value), self.true[name]
            assert value.size == true.size, (who, name)
            error = np.abs(value.reshape(true.shape) - true).max()
            bound = 4 * unit * noise(lambda number, name=name: self.compute(number)[name])
            assert error <= bound, (who, name, error, bound)


def programs(start: int = 0, end: int | None = None) -> Any:
    """Some of the page's, compiled."""
    return compile("\n".join(PROGRAMS[start:end]), "frameworks.md", "exec")


def weights_of(q: Array, k: Array, keep: float) -> tuple[Floats, float]:
    """softmax(q k / sqrt(D)) / keep, as (B, L, H, S), and how far float32 may be from it."""

    def f(number: Callable[[Floats], Floats]) -> Floats:
        a, b = (number(np.asarray(x)).swapaxes(1, 2) for x in (q, k))
        return softmax(a @ b.swapaxes(2, 3) * a.shape[-1] ** -0.5).swapaxes(1, 2) / keep

    return f(lambda x: x.astype(np.float64)), 4 * noise(f)


def same(a: Array, b: Array) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()
