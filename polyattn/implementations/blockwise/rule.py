"""The engine as one differentiable step of the array library, and its derivative for libraries without autodiff."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from polyattn import mods
from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.discovery import RECORDING
from polyattn.arrays.leaves import put_in, take_out
from polyattn.implementations.blockwise.backward import Gradients, backward
from polyattn.implementations.blockwise.forward import Averages, forward
from polyattn.implementations.blockwise.plan import Blockwise, plan
from polyattn.implementations.blockwise.tile import Blocks
from polyattn.implementations.implementation import Implementation, Output
from polyattn.implementations.nothing import asks_for_nothing, nothing
from polyattn.implementations.reference import define
from polyattn.problem import Problem


def run(p: Problem, wish: Blockwise | None, kind: type[Blocks] = Blocks) -> Output:
    """The engine, differentiable once where the library has autodiff; kind: what runs its tiles."""
    if 0 in p.scores_shape:
        return define(p)  # no tiles to speak of
    arrays: list[Array] = []
    # Compilers and derivatives see arrays; the rest of problem and plan is static. Those with derivatives come first,
    # in the order of Gradients.
    static = take_out((p, plan(p, wish or Blockwise()), kind), arrays)
    out, lse = p.backend.compiled(_differentiable, static, arrays)
    return Output(out, lse)


def _differentiable(static: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
    backend = backend_of(arrays[0])

    def run_forward(arrays: Sequence[Array]) -> tuple[Array, ...]:
        return forward(*put_in(static, arrays))

    def run_backward(
        arrays: Sequence[Array], outputs: Sequence[Array], cotangents: Sequence[Array]
    ) -> Sequence[Array | None]:
        p, cut, kind = put_in(static, arrays)
        d_out, d_lse = cotangents
        found = backward(p, cut, Averages(*outputs), d_out, d_lse, kind)
        gradients = [*(x for x in found[:-1] if x is not None), *found.mod]
        cast = [backend.astype(x, like.dtype) for x, like in zip(gradients, arrays, strict=False)]
        return [*cast, *(None for _ in arrays[len(cast) :])]

    return backend.custom_vjp(run_forward, run_backward, arrays)


def with_derivative(p: Problem, wish: Blockwise) -> tuple[Averages, Callable[[Array, Array], Gradients]]:
    """The engine, and its derivative as a function (d_out, d_lse) -> Gradients."""
    if 0 in p.scores_shape:
        empty = replace(p, wanted=("lse",))
        out, lse, *_ = nothing(empty) if asks_for_nothing(empty) else define(empty)
        return Averages(out, lse), lambda d_out, d_lse: _nothing(p)
    cut = plan(p, wish)
    found = forward(p, cut)
    return found, lambda d_out, d_lse: backward(p, cut, found, d_out, d_lse)


def _nothing(p: Problem) -> Gradients:
    """The gradients of a problem without a query or a key."""

    def zero(x: Any) -> Any:
        return p.backend.xp.zeros_like(x) if is_array(x) else None

    mod = tuple(zero(x) for x in mods.parameters(p.score_mod))
    return Gradients(zero(p.q), zero(p.k), zero(p.v), zero(p.scale), zero(p.bias), zero(p.sinks), mod)


def symbols(p: Problem) -> str | None:
    """Why the engine does not compute a problem: an exporter's, or one whose derivative it cannot see."""
    if all(isinstance(n, int) for n in p.scores_shape):
        return _captured(p) if RECORDING and mods.functions(p.score_mod) else None
    return "a length is a symbol, and the engine cuts lengths that are numbers"


def _captured(p: Problem) -> str | None:
    """Whether a score_mod holds a recorded array: its scores have a derivative that those of its arguments have not."""
    from polyattn.gradients import Recorded

    score = p.backend.asarray([[[[0.0]]]], p.compute_dtype, p.q)
    place = p.backend.asarray([[[[0]]]], p.backend.xp.int32, p.q)
    for f in mods.functions(p.score_mod):
        found = f(score, *[place] * 4)
        if isinstance(found, Recorded) and found.node is not None:
            return "score_mod captures an array that a derivative is taken by, which the engine cannot see"
    return None


def small(p: Problem) -> str | None:
    """Why "auto" leaves the engine for the definition."""
    return None if p.scores_bytes > 2**20 else "the scores take at most 1 MiB"


def few_rows(most: int) -> Callable[[Problem], str | None]:
    """The policy of a library whose products of few rows read K and V once, at the speed of memory."""

    def passed_over(p: Problem) -> str | None:
        rows = p.frame.rows * p.frame.heads // max(p.k.shape[1], 1)
        if rows <= most and p.scores_bytes <= 2**28:
            return "a few query rows: one product per kv head, K and V read once"
        return small(p)

    return passed_over


# Written out: what is new to the table is refused until somebody has made it true here.
ACCEPTS = "causal mask query_offset traced_offset positions bias score_mod scale sinks sigmoid softpick dropout origin lse"

BLOCKWISE = Implementation(
    name="blockwise",
    title="the blockwise engine",
    accepts=frozenset(ACCEPTS.split()),
    run=run,
    why_not=symbols,
    passed_over=small,
    why="the scores take more than 1 MiB",
    settings=Blockwise,
    transforms=frozenset({"grad", "vmap", "compile"}),
)
