"""Blockwise attention as one differentiable step of the array library, and its pullback for libraries without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyattn import mods
from polyattn.arrays import Array, Schedule, is_array
from polyattn.arrays.leaves import put_in, take_out
from polyattn.implementations.blockwise.backward import Gradients, backward
from polyattn.implementations.blockwise.forward import forward
from polyattn.implementations.blockwise.plan import Blockwise, Plan, Visits, plan
from polyattn.implementations.reference import reference
from polyattn.problem.problem import Problem


def blockwise(p: Problem, wish: Blockwise) -> tuple[Array, Array]:
    """(out, lse) in the compute dtype, differentiable once where the library has autodiff."""
    arrays: list[Array] = []
    static = _take_apart(p, plan(p, wish), arrays)
    out, lse = p.backend.compiled(_run, static, arrays)
    return out, lse


def blockwise_vjp(p: Problem, wish: Blockwise) -> tuple[Array, Array, Any]:
    """(out, lse, pullback), where pullback(d_out, d_lse) gives `Gradients`."""
    if 0 in p.scores_shape:  # nothing to cut
        result = reference(p)
        return result.out, result.lse, lambda d_out, d_lse: _nothing(p)
    cut = plan(p, wish)
    out, lse = forward(p, cut)
    return out, lse, lambda d_out, d_lse: backward(p, cut, out, lse, d_out, d_lse)


def _nothing(p: Problem) -> Gradients:
    """The gradients of a problem without a query or a key."""

    def zero(x: Any) -> Any:
        return p.backend.xp.zeros_like(x) if is_array(x) else None

    mod = tuple(zero(x) for x in mods.parameters(p.score_mod))
    return Gradients(zero(p.q), zero(p.k), zero(p.v), zero(p.bias), zero(p.sinks), zero(p.scale), mod)


def _run(static: Any, arrays: Sequence[Array]) -> tuple[Array, Array]:
    p, _ = _put_together(static, arrays)

    def run_forward(arrays: Sequence[Array]) -> tuple[Array, Array]:
        return forward(*_put_together(static, arrays))

    def run_backward(
        arrays: Sequence[Array], outputs: Sequence[Array], cotangents: Sequence[Array]
    ) -> Sequence[Array | None]:
        p, cut = _put_together(static, arrays)
        gradients = _in_order(backward(p, cut, *outputs, *cotangents))
        dtypes = [x.dtype for x in arrays]
        cast = [p.backend.astype(g, dtype) for g, dtype in zip(gradients, dtypes, strict=False)]
        return [*cast, *(None for _ in arrays[len(cast) :])]

    out, lse = p.backend.custom_vjp(run_forward, run_backward, arrays)
    return out, lse


def _in_order(gradients: Gradients) -> list[Array]:
    """The gradients that there are, in the order in which `_take_apart` takes the arrays."""
    return [*(g for g in gradients[:-1] if g is not None), *gradients.mod]


def _take_apart(p: Problem, cut: Plan, arrays: list[Array]) -> tuple[Any, ...]:
    """Everything but the arrays, hashable; the arrays with derivatives come first."""
    differentiable = take_out((p.q, p.k, p.v, p.bias, p.sinks, p.scale, p.score_mod), arrays)
    visits = (tuple(cut.by_query), tuple(cut.by_key))
    others = take_out((p.mask, p.offset, p.dropout_seed, visits), arrays)
    return (differentiable, others, tuple(cut.schedule), p.backend, p.frame, p.compute_dtype, p.dropout_rate)


def _put_together(static: tuple[Any, ...], arrays: Sequence[Array]) -> tuple[Problem, Plan]:
    differentiable, others, schedule, backend, frame, compute_dtype, rate = static
    q, k, v, bias, sinks, scale, score_mod = put_in(differentiable, arrays)
    mask, offset, seed, (by_query, by_key) = put_in(others, arrays)
    p = Problem(
        backend=backend,
        q=q,
        k=k,
        v=v,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        offset=offset,
        scale=scale,
        sinks=sinks,
        dropout_rate=rate,
        dropout_seed=seed,
        frame=frame,
        compute_dtype=compute_dtype,
        layout="BHLD",
        restore=_as_is,
        admit=_as_is,
    )
    return p, Plan(Schedule(*schedule), Visits(*by_query), Visits(*by_key))


def _as_is(x: Array, axes_after_length: int) -> Array:
    return x


__all__ = ["blockwise", "blockwise_vjp"]
