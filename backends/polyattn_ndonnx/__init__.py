"""polyattn on ndonnx arrays: operations are written into an ONNX graph instead of being carried out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import ndonnx as xp
import spox.opset.ai.onnx.v23 as op

from polyattn.arrays import Array, Backend
from polyattn.implementations import BLOCKWISE, REFERENCE, Implementation, Output
from polyattn.implementations.reference import allowed_at, visible_keys
from polyattn.mods import Softcap

__all__ = ["OnnxBackend", "backend"]


class OnnxBackend(Backend):
    lengths_are_fixed = False

    def is_concrete(self, x: Array) -> bool:
        try:
            x.unwrap_numpy()
        except ValueError:  # an input of the graph, or what follows from one
            return False
        return True

    def may_remember(self) -> bool:
        return False  # a program is being written: whole formulas, no tiles

    def to_list(self, x: Array) -> Any:
        return x.unwrap_numpy().tolist()

    def to_numpy(self, x: Array) -> Array:
        return x.unwrap_numpy()

    def from_numpy(self, x: Array, like: Array) -> Array:
        return xp.asarray(x)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return xp.take(x, xp.astype(indices, xp.int64), axis=axis)

    def cos(self, x: Array) -> Array:
        if x.dtype == xp.float64:  # ndonnx goes through float32, because ONNX Runtime has sin alone
            half = xp.sin(0.5 * x)
            return 1.0 - 2.0 * half * half
        return xp.cos(x)

    def erf(self, x: Array) -> Array:
        if x.dtype == xp.float64:  # ONNX Runtime has it not
            return super().erf(x)
        return xp.asarray(op.erf(x.unwrap_spox()))

    def matmul(self, a: Array, b: Array) -> Array:
        if 0 in (*a.shape, *b.shape):
            return xp.matmul(a, b)
        # One node; ndonnx adds many more to ask about lengths of 0, which are known here.
        x, y = a.unwrap_spox(), b.unwrap_spox()
        # ONNX Runtime 1.31 fuses MatMul with a scale that it rounds to float32, even in float64; Einsum it leaves alone.
        if xp.float64 in (a.dtype, b.dtype):
            return xp.asarray(op.einsum([x, y], equation="...ij,...jk->...ik"))
        return xp.asarray(op.matmul(x, y))

    def device(self, x: Array) -> Any:
        return None


def _why_not_operator(p: Any) -> str | None:
    reasons = {
        "q, k and v are not float32, the one dtype that every runtime has": p.q.dtype != xp.float32,
        "scale is not above 0, or not in float32, which runtimes refuse": not 2.0**-126 <= p.scale < 2.0**127,
        "there is a score_mod other than a soft cap, or one beside a bias or a mask, whose order the operator "
        "changed between opsets": p.score_mod is not None
        and not (
            isinstance(p.score_mod, Softcap)
            and isinstance(p.score_mod.cap, int | float)
            and p.bias is None
            and p.mask is None
        ),
        "the batches differ": len({x.shape[0] for x in (p.q, p.k, p.v)}) > 1,
        "there is nothing to compute": 0 in (*p.scores_shape, p.q.shape[3], p.v.shape[3]),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _attention(p: Any, settings: Any) -> Output:
    """The operator Attention of opset 23; what it leaves open (hidden NaN, rows that see nothing) is settled around it."""
    cap = 0.0 if p.score_mod is None else float(p.score_mod.cap)
    square = p.bias is None and p.is_causal_square
    q, k, v, mask, some = p.q, p.k, p.v, None, None
    if not square:
        allowed = allowed_at(p.mask, p.positions(), p.bias)
        if allowed is not None:
            visible = visible_keys(allowed, k.shape[1], xp)
            k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
            some = xp.any(allowed, axis=-1, keepdims=True)
            # A row that sees nothing is computed unmasked and thrown away: no runtime meets an empty softmax.
            mask = xp.broadcast_to(allowed | ~some, p.scores_shape)
            if p.bias is not None:
                bias = xp.where(allowed & (p.bias != -xp.inf), p.bias, 0.0)
                mask = xp.where(mask, bias, -xp.inf)
    with warnings.catch_warnings():  # of outputs that nobody uses: the present keys have no known shape
        warnings.filterwarnings("ignore", message="Output type for variable")
        out, *_ = op.attention(
            *(x.unwrap_spox() for x in (q, k, v)),
            None if mask is None else mask.unwrap_spox(),
            is_causal=int(square),
            scale=p.scale,
            softcap=cap,
        )
    result = xp.asarray(out)
    return Output(result if some is None else xp.where(some, result, 0.0))


OPERATOR = Implementation(
    name="native",
    title="the operator Attention",
    accepts=frozenset(
        {"causal", "mask", "query_offset", "traced_offset", "positions", "bias", "score_mod", "origin"}
    ),
    run=_attention,
    why_not=_why_not_operator,
    why="the operator Attention is one node where it computes the contract",
    transforms=frozenset({"export"}),
)
BLOCKS = replace(BLOCKWISE, passed_over=lambda p: "the definition is the smallest graph")
OnnxBackend.implementations = (OPERATOR, BLOCKS, REFERENCE)
backend = OnnxBackend("ndonnx", xp)
