"""Attention by kernels, and its derivative by kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from polyattn.arrays import Array
from polyattn.arrays.leaves import put_in, take_out
from polyattn.implementations.blockwise.backward import returned
from polyattn.implementations.blockwise.forward import Averages
from polyattn.implementations.fused import average, pull_keys, pull_queries, pull_scores
from polyattn.normalizers.softmax import Partial, beside, finish, log_sum, merge
from polyattn.problem import Problem
from polyattn_jax.fused import gpu, tpu
from polyattn_jax.fused.launch import Kernel, Laid, Shape, as_laid, scoring, sizes_of
from polyattn_jax.fused.plan import Plan
from polyattn_jax.fused.split import Parts
from polyattn_jax.sharding import axes_of, shaped, vary

__all__ = ["attend"]


def attend(p: Problem, plan: Plan) -> tuple[Array, Array]:
    """out (B, Hq, L, E) and lse (B, Hq, L) of a problem."""
    kernels = Kernels(p, plan)
    q = plan.forward.shape.fold(p.q)
    operands = [o.array for o in kernels.forward_parts.operands]
    out, lse = kernels.differentiable(q, p.k, p.v, operands)
    shape = plan.forward.shape
    return shape.unfold(out), shape.unfold(lse[..., None])[..., 0]


class Kernels:
    """The kernels of a problem. Everything is laid out as `Shape` has it."""

    def __init__(self, p: Problem, plan: Plan) -> None:
        self.plan, only = plan, plan.chip.only
        self.forward_parts = scoring(p, plan.forward.shape, only)
        same = plan.backward.shape == plan.forward.shape
        self.backward_parts = self.forward_parts if same else scoring(p, plan.backward.shape, only)

    def differentiable(self, q: Array, k: Array, v: Array, operands: Sequence[Array]) -> tuple[Array, Array]:
        lists: list[Array] = []
        static = take_out(self.plan, lists)

        def forward(q: Array, k: Array, v: Array, operands: Sequence[Array], lists: Sequence[Array]) -> Any:
            return self._forward(put_in(static, lists), q, k, v, operands)

        def forward_and_saved(*given: Any) -> Any:
            found = forward(*given)
            return found, (given, found)

        def backward(saved: Any, cotangents: Any) -> Any:
            (*given, lists), found = saved
            gradients = self._backward(put_in(static, lists), given, Averages(*found), cotangents)
            return *gradients, [None for _ in lists]

        run = jax.custom_vjp(forward)
        run.defvjp(forward_and_saved, backward)
        # The gradient of an array must vary as the array does; that of `vary` sums it over the devices.
        axes = axes_of((q, k, v, *operands))
        return run(*vary((q, k, v, list(operands)), axes), lists)

    def _forward(
        self, plan: Plan, q: Array, k: Array, v: Array, operands: Sequence[Array]
    ) -> tuple[Array, Array]:
        shape, splits = plan.forward.shape, plan.splits
        parts = self.forward_parts.of(operands)
        alone = splits == 1
        kernel = Kernel(
            shape=shape,
            parts=parts if alone else parts.without("sink"),
            lists=plan.forward.by_query,
            side="query",
            body=average,
            inputs=_inputs(parts, {"q": (q, "query"), "k": (k, "key"), "v": (v, "key")}),
            state=Partial(
                ((shape.tile.rows, 1), -jnp.inf),
                ((shape.tile.rows, 1), 0.0),
                ((shape.tile.rows, self._width(v.shape[3])), 0.0),
            ),
            outputs=(
                _output(
                    (splits * shape.batch, shape.heads, shape.rows, v.shape[3]), "query", q, k, v, *operands
                )(q.dtype if alone else jnp.float32),
                _output((splits * shape.batch, shape.heads, 1, shape.rows), "by row", q, k, v, *operands)(
                    jnp.float32
                ),
            ),
            splits=splits,
        )
        out, lse = self._run(kernel)
        lse = lse[:, :, 0, :]
        if alone:
            return out, lse
        parted = (jnp.reshape(x, (splits, -1, *x.shape[1:])) for x in (out, lse))
        sink = parts.array("sink")
        seen = _merged(*parted)
        whole = seen if sink is None else merge(seen, beside(sink, v.shape[3]))
        return finish(whole).astype(q.dtype), log_sum(seen)

    def _backward(self, plan: Plan, given: Any, saved: Averages, cotangents: tuple[Array, Array]) -> Any:
        q, k, v, operands = given
        cut, parts = plan.backward, self.backward_parts.of(operands)
        shape, like = cut.shape, (q, k, v, *operands, *cotangents)
        sink = parts.array("sink")
        rows = returned(sink, saved, *cotangents)
        d_out = cotangents[0] if rows.left is None else cotangents[0] * rows.left
        inputs = _inputs(
            parts,
            {
                "q": (q, "query"),
                "k": (k, "key"),
                "v": (v, "key"),
                "lse": (jnp.swapaxes(rows.lse, 2, 3), "by row"),
                "d_out": (d_out.astype(q.dtype), "query"),
                "delta": (jnp.swapaxes(rows.delta, 2, 3), "by row"),
            },
        )

        def sums(body: Any, side: str, outputs: Sequence[tuple[Any, str, Any]], **more: Any) -> list[Array]:
            lists = {"query": cut.by_query, "key": cut.by_key, "score": None}[side]
            kernel = Kernel(
                shape=shape,
                parts=parts,
                lists=lists,
                side=side,
                body=body,
                inputs=inputs,
                state=tuple((self._sums(size, kind, shape), 0.0) for size, kind, _ in outputs),
                outputs=tuple(
                    _output(size, "by row" if kind == "by head" else kind, *like)(dtype)
                    for size, kind, dtype in outputs
                ),
                **more,
            )
            return self._run(kernel)

        def dtype(x: Array) -> Any:  # what is summed over items later stays wide
            return x.dtype if x.shape[0] == shape.batch else jnp.float32

        batch, heads = shape.batch, shape.heads
        (d_q,) = sums(pull_queries, "query", [((batch, heads, shape.rows, q.shape[3]), "query", dtype(q))])
        d_k, d_v = sums(
            pull_keys,
            "key",
            [((batch, heads // shape.group, shape.keys, x.shape[3]), "key", dtype(x)) for x in (k, v)],
            inner=shape.group,
        )
        d_operands: list[Array | None] = []
        for operand in parts.operands:
            x, kind = operand.array, operand.kind
            if not operand.differentiable:
                d_operands.append(None)
            elif parts.results.get("sink") == operand.number:
                d_operands.append(_sum_to(-jnp.exp(x - rows.lse_and_sink) * rows.mean, x))
            else:
                side = {"by score": "score", "by key": "key"}.get(kind, "query")
                numbers = (batch, heads, 1, shape.keys if kind == "by key" else shape.rows)
                size = x.shape if kind == "by score" else numbers
                (found,) = sums(pull_scores, side, [(size, kind, jnp.float32)], gathered=(operand,))
                if kind in ("by row", "by head"):
                    found = jnp.swapaxes(found, 2, 3)
                d_operands.append(_sum_to(found, x))
        d_q, d_k, d_v = (_sum_to(found, x) for found, x in ((d_q, q), (d_k, k), (d_v, v)))
        return d_q, d_k, d_v, d_operands

    def _sums(self, size: tuple[int, ...], kind: str, shape: Shape) -> tuple[int, int]:
        """The shape in which a program sums what it writes."""
        found = sizes_of(kind, shape.tile, self._width(size[-1]))
        return found[::-1] if kind == "key" else found  # as pull_keys has them

    def _width(self, width: int) -> int:
        return gpu.wide(width) if self.plan.chip.platform == "gpu" else width

    def _run(self, kernel: Kernel) -> list[Array]:
        chip, interpret = self.plan.chip, self.plan.interpret

        @jax.custom_jvp
        def run(arrays: list[Array]) -> list[Array]:
            inputs = {
                name: x._replace(array=y) for (name, x), y in zip(kernel.inputs.items(), arrays, strict=True)
            }
            given = replace(kernel, inputs=inputs)
            return (
                tpu.run(given, interpret, chip.memory)
                if chip.platform == "tpu"
                else gpu.run(given, interpret, 4)
            )

        run.defjvp(_no_derivative)
        return run([x.array for x in kernel.inputs.values()])


def _no_derivative(*_: Any) -> Any:
    raise NotImplementedError(
        "polyattn.attention: expected derivatives of a fused kernel of first order, by reverse mode (jax.grad, jax.vjp), "
        "got one of a derivative; use implementation='blockwise' for forward mode, or 'reference', which has all orders"
    )


def _inputs(parts: Parts, arrays: Mapping[str, tuple[Array, str]]) -> dict[str, Laid]:
    return {**{name: Laid(*x) for name, x in arrays.items()}, **{o.name: as_laid(o) for o in parts.operands}}


def _output(size: tuple[int, ...], kind: str, *like: Array) -> Any:
    """An output that varies over the devices of `jax.shard_map` as what it is made of does."""
    axes = axes_of(like)
    return lambda dtype: Laid(shaped(size, dtype, axes), kind)


def _merged(out: Array, lse: Array) -> Partial:
    """The average over the keys of all splits, which are the first axis: by halves."""
    seen = Partial(lse[..., None], (lse != -jnp.inf).astype(jnp.float32)[..., None], out)
    while (n := out.shape[0]) > 1:
        half = n // 2
        both, rest = merge(*(_cut(seen, m, m + half) for m in (0, half))), _cut(seen, 2 * half, n)
        seen = Partial(*(jnp.concatenate(pair) for pair in zip(both, rest, strict=True)))
        out = seen.acc
    return Partial(*(x[0] for x in seen))


def _cut(seen: Partial, first: int, last: int) -> Partial:
    return Partial(*(x[first:last] for x in seen))


def _sum_to(gradient: Array, like: Array) -> Array:
    """Summed over the axes along which it was broadcast."""
    axes = tuple(i for i in range(4) if like.shape[i] == 1 < gradient.shape[i])
    return jnp.sum(gradient, axes, keepdims=True).astype(like.dtype) if axes else gradient.astype(like.dtype)
