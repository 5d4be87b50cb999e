"""The node cases of the installed onnx, each a problem whose truth and condition are known.

A second reading of the four operators, in plain NumPy and extended precision, gives the true value of every output
and how an error of one rounding grows on the way to it; results and onnx's own expected arrays are judged by that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx.helper
from onnx.backend.test.case import node as suite
from shared.recurrence import judged

from polyattn.onnx import OPERATORS, SIGNATURES
from polyattn.parity import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.definition import Judged, truth
from polyattn.truth.measure import eta
from polyattn.truth.spec import Spec

Floats = np.ndarray[Any, Any]
Attributes = dict[str, Any]

#: What is accepted between two results that may both err: each is allowed `ACCEPTANCE` from the truth.
BOTH = 2 * ACCEPTANCE

_MODULES = ("attention", "rotaryembedding", "linear_attention", "tensorscatter")
_DOUBLE = 11  # float64 as onnx numbers it


@dataclass(frozen=True, eq=False)
class Node:
    """One case: a node of a graph, its inputs, and the outputs that onnx expects."""

    name: str
    operator: str
    opset: int
    inputs: tuple[Floats | None, ...]
    attributes: Attributes
    outputs: tuple[str, ...]  # "" for one that the node leaves out
    expected: tuple[Floats, ...]  # of those that it has
    model: Any  # onnx.ModelProto

    @property
    def dtype(self) -> str:
        """The name of the dtype of the first input."""
        first = self.inputs[0]
        assert first is not None
        return str(first.dtype.name)

    @property
    def is_half(self) -> bool:
        return self.dtype in ("float16", "bfloat16")

    @property
    def asks_for_float64(self) -> bool:
        return bool(self.attributes.get("softmax_precision") == _DOUBLE)


@cache
def nodes() -> tuple[Node, ...]:
    """The cases of the four operators; those that spell an operator out in smaller ones are left to others."""
    for name in _MODULES:  # importing the modules makes the cases
        importlib.import_module(f"{suite.__name__}.{name}")
    found = {}
    for case in suite._NodeTestCases:
        (first, *others) = case.model.graph.node
        if first.op_type not in SIGNATURES or others:
            continue
        present = iter(case.data_sets[0][0])
        found[case.name] = Node(
            name=case.name,
            operator=first.op_type,
            opset=case.model.opset_import[0].version,
            inputs=tuple(next(present) if name else None for name in first.input),
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in first.attribute},
            outputs=tuple(first.output),
            expected=tuple(case.data_sets[0][1]),
            model=case.model,
        )
    return tuple(found.values())


def computed(node: Node, convert: Callable[[Floats], Any]) -> list[Any]:
    """The outputs of a node by `polyattn.onnx`, from its inputs after `convert`."""
    more = {"outputs": len(node.outputs)} if node.operator == "Attention" else {}
    inputs = [None if x is None else convert(x) for x in node.inputs]
    out = OPERATORS[node.operator](*inputs, opset=node.opset, **more, **node.attributes)
    all_of_them = out if isinstance(out, tuple) else (out,)
    return [x for x, name in zip(all_of_them, node.outputs, strict=False) if name]


def etas(node: Node, results: list[Floats]) -> tuple[float, float]:
    """The worst error of results in units of what one rounding explains: from the truth, and from onnx's arrays."""
    true, theirs = 0.0, 0.0
    for result, known, expected in zip(results, judge(node), node.expected, strict=True):
        dtype = expected.dtype.name if expected.dtype.name in UNIT_ROUNDOFF else "float32"
        values = np.asarray(result, np.float64)
        true = max(true, eta(values, known, dtype))
        theirs = max(theirs, eta(values, known._replace(value=np.asarray(expected, np.longdouble)), dtype))
    return true, theirs


@cache
def judge(node: Node) -> tuple[Judged, ...]:
    """True value and condition of every output that the node has."""
    named = _READINGS[node.operator](node)
    return tuple(named[name] for name in node.outputs if name)


def _wide(x: Floats) -> Floats:
    return np.asarray(x, np.float64)


def _split(x: Floats, heads: int) -> Floats:
    """(B, L, H * D) as (B, H, L, D)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _join(x: Floats) -> Floats:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _exact(x: Floats) -> Judged:
    """A value that must come out as it is."""
    return Judged(np.asarray(x, np.longdouble), np.zeros(x.shape))


def _attention(node: Node) -> dict[str, Judged]:
    q, k, v, mask, past_key, past_value, count = (*node.inputs, *(None,) * (7 - len(node.inputs)))
    assert q is not None
    assert k is not None
    assert v is not None
    a, flat = node.attributes, q.ndim == 3
    q, k, v = _wide(q), _wide(k), _wide(v)
    if flat:
        q, k, v = _split(q, a["q_num_heads"]), _split(k, a["kv_num_heads"]), _split(v, a["kv_num_heads"])
    offset = np.zeros((1, 1, 1, 1), int)
    if past_key is not None and past_value is not None:
        offset = offset + past_key.shape[2]
        k = np.concatenate((_wide(past_key), k), axis=2)
        v = np.concatenate((_wide(past_value), v), axis=2)
    rows, keys = q.shape[2], k.shape[2]
    j = np.arange(keys)
    allowed = np.ones((q.shape[0], 1, rows, keys), bool)
    if count is not None:
        count = count[:, None, None, None]
        offset = count - rows
        allowed &= j < count
    at = np.arange(rows)[:, None] + offset
    if a.get("is_causal"):
        allowed = allowed & (j <= at)
    if (left := a.get("left_window_size", -1)) >= 0:
        allowed = allowed & (j >= at - left)
    if (right := a.get("right_window_size", -1)) >= 0:
        allowed = allowed & (j <= at + right)
    bias = None
    if mask is not None:
        mask = mask.reshape((*(1,) * (4 - mask.ndim), *mask.shape))
        reach = mask.shape[-1]
        if mask.dtype == bool:
            padded = np.zeros((*mask.shape[:3], keys), bool)
            padded[..., :reach] = mask
            allowed = allowed & padded
        else:
            bias = np.full((*mask.shape[:3], keys), -np.inf)
            bias[..., :reach] = mask
    spec = Spec(q, k, v, allowed, scale=a.get("scale"), softcap=a.get("softcap") or None, bias=bias)
    out = truth(spec)["out"]
    if flat:
        out = out.moved(_join)
    return {
        "Y": out,
        "present_key": _exact(k),
        "present_value": _exact(v),
        "qk_matmul_output": _scores(spec, a.get("qk_matmul_output_mode", 0)),
    }


def _scores(spec: Spec, mode: int) -> Judged:
    """What each mode of qk_matmul_output gives."""
    real = np.longdouble
    if mode == 3:  # weights are what attention makes of the unit vectors
        batch, heads, keys, _ = spec.k.shape
        return truth(replace(spec, v=np.broadcast_to(np.eye(keys), (batch, heads, keys, keys))))["out"]
    group = spec.q.shape[1] // spec.k.shape[1]
    k = np.repeat(spec.k, group, axis=1).astype(real)
    scale = spec.scales[:, None, None]
    score, condition = scale * (spec.q @ k.mT), np.abs(scale) * (np.abs(spec.q) @ np.abs(k).mT)
    if mode >= 1 and spec.softcap is not None:
        bent = np.tanh(score / spec.softcap)
        score = spec.softcap * bent
        condition = condition * (1 - bent**2) + 2 * np.abs(score)
    if mode == 2:
        bias = np.zeros(1) if spec.bias is None else spec.bias
        added = np.where(np.isfinite(bias), bias, 0)
        score = np.where(spec.allowed & (bias != -np.inf), score + added, -np.inf)
        condition = condition + np.abs(added) + np.where(np.isfinite(score), np.abs(score), 0)
    return Judged(score, condition)


def _rotary(node: Node) -> dict[str, Judged]:
    """a cos - b sin: two products and a difference, each rounded once."""
    x, cos, sin, positions = (*node.inputs, *(None,) * (4 - len(node.inputs)))
    assert x is not None
    assert cos is not None
    assert sin is not None
    a, flat = node.attributes, x.ndim == 3
    cos, sin = ((t if positions is None else t[positions])[:, None].astype(np.longdouble) for t in (cos, sin))
    y = (_split(x, a["num_heads"]) if flat else x).astype(np.longdouble)
    width = a.get("rotary_embedding_dim") or y.shape[-1]
    first, second = slice(0, width // 2), slice(width // 2, width)
    if a.get("interleaved"):
        first, second = slice(0, width, 2), slice(1, width, 2)
    value, condition = y.copy(), np.zeros(y.shape)
    p, r = y[..., first], y[..., second]
    value[..., first], value[..., second] = p * cos - r * sin, p * sin + r * cos
    condition[..., first] = np.abs(p * cos) + np.abs(r * sin)
    condition[..., second] = np.abs(p * sin) + np.abs(r * cos)
    return {"output": Judged(_join(value), _join(condition)) if flat else Judged(value, condition)}


def _linear(node: Node) -> dict[str, Judged]:
    q, k, v, state, decay, beta = (*node.inputs, *(None,) * (6 - len(node.inputs)))
    assert q is not None
    assert k is not None
    assert v is not None
    a = node.attributes
    heads, kv_heads = a["q_num_heads"], a["kv_num_heads"]
    q, k, v = _split(_wide(q), heads), _split(_wide(k), kv_heads), _split(_wide(v), kv_heads)
    q = q.reshape(q.shape[0], kv_heads, heads // kv_heads, *q.shape[2:])
    state = np.zeros((*k.shape[:2], k.shape[3], v.shape[3])) if state is None else _wide(state)
    decay = None if decay is None else _split(_wide(decay), kv_heads)
    beta = None if beta is None else _split(_wide(beta), beta.shape[2])
    out, last = judged(q, k, v, decay, beta, state, a.get("scale") or q.shape[-1] ** -0.5)
    shape = (q.shape[0], heads, *out.value.shape[3:])
    return {
        "output": Judged(_join(out.value.reshape(shape)), _join(np.asarray(out.condition).reshape(shape))),
        "present_state": last,
    }


def _scatter(node: Node) -> dict[str, Judged]:
    """What is copied must be that, bit for bit."""
    return {"present_cache": _exact(node.expected[0])}


_READINGS: dict[str, Callable[[Node], dict[str, Judged]]] = {
    "Attention": _attention,
    "LinearAttention": _linear,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _scatter,
}
