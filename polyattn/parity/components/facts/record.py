"""What is known of a component, in NumPy: the record, and how arrays of any library come into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["Facts", "Kind", "Number", "floats", "roots"]

Kind = Literal["attention", "norm", "linear", "activation", "embedding", "other"]
Number = float | int | bool | str


@dataclass(frozen=True)
class Facts:
    """What a component is, its arrays in NumPy and its settings, by the same names whatever framework it is of.

    | kind       | arrays                                                  | numbers                                  |
    |------------|---------------------------------------------------------|------------------------------------------|
    | norm       | weight (n,), bias (n,)                                  | eps, subtracts_mean, weight_plus_one     |
    | linear     | weight (in, out): y = x @ weight + bias; bias (out,)    |                                          |
    | embedding  | weight (size, width)                                    | scale, offset, padding_idx               |
    | activation |                                                         | function: gelu, gelu_tanh, silu, ...     |
    | attention  | q.weight (E, H D), k.weight, v.weight (E, Hkv D),       | heads, kv_heads, head_dim, scale, window,|
    |            | o.weight (H D, E), q.bias ..., q_norm.weight,           | softcap, is_causal, layer, rotary_base,  |
    |            | k_norm.weight, sinks (H,)                               | rotary_width, rotary_interleaved,        |
    |            |                                                         | rotary_scaling, qk_norm_eps, ...         |
    | other      | of an MLP: gate.weight, up.weight (E, F), down.weight   | function                                 |
    |            | (F, E), and biases; of patches: patches.weight          |                                          |
    |            | (E, C, height, width), patches.bias (E,)                |                                          |

    A name is there only where the component says so; what is not known is left out. Whoever compares may add
    "child:NAME" (what a part of the component gave), "input:NAME" (what that part was given) and "other:NAME" (weights
    of another component, which this one may hold by mistake). TypeError for another kind.

    >>> Facts("norm", {"weight": np.ones(2)}, {"eps": 1e-6}).numbers["eps"]
    1e-06
    """

    kind: Kind
    arrays: Mapping[str, Floats] = field(default_factory=dict)
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = ("attention", "norm", "linear", "activation", "embedding", "other")
        if self.kind not in kinds:
            raise TypeError(
                f"polyattn.parity.components.Facts: expected a kind among {', '.join(kinds)}, got {self.kind!r}; "
                "take 'other' where it is none of them"
            )

    def children(self, what: str = "child") -> dict[str, Floats]:
        """The arrays named "child:NAME" (or "input:", "other:"), by NAME."""
        start = f"{what}:"
        return {name.removeprefix(start): x for name, x in self.arrays.items() if name.startswith(start)}


def roots(module: Any) -> set[str]:
    """The packages that the classes of a module come from: {"torch", "transformers"}."""
    return {base.__module__.partition(".")[0] for base in type(module).__mro__}


def floats(x: Any) -> Floats:
    """An array of any library in NumPy; half precision comes as float32, which holds it exactly."""
    if hasattr(x, "detach"):  # PyTorch
        x = x.detach().cpu()
        x = x.float() if x.dtype.is_floating_point and x.dtype.itemsize < 4 else x
        return np.array(x.numpy())
    for name in ("get_value", "value", "unbox"):  # a variable of Flax or Keras
        inner = getattr(x, name, None)
        if inner is not None and not isinstance(x, np.ndarray):
            inner = inner() if callable(inner) else inner
            return floats(inner) if inner is not x else np.array(inner)
    plain = np.array(x)
    half = plain.dtype.name in ("float16", "bfloat16") or plain.dtype.kind == "V"
    return plain.astype(np.float32) if half else plain
