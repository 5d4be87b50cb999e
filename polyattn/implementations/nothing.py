"""Problems whose output has no entry: nothing is computed, however long their other axes are."""

from __future__ import annotations

from polyattn import mods
from polyattn.arrays import Array, is_array
from polyattn.implementations.implementation import Output
from polyattn.problem import Problem


def asks_for_nothing(p: Problem) -> bool:
    """Whether what is wanted has no entry, as far as sizes are numbers."""
    if not (p.backend.may_remember() and p.sizes_are_numbers):
        return False
    return 0 in p.frame[:3] or (p.v.shape[3] == 0 and not p.wanted)


def nothing(p: Problem) -> Output:
    """The output, and the values that are wanted, of a problem that asks for nothing."""
    *rows, keys = p.scores_shape
    sizes = {"lse": rows, "max_scores": rows, "weights": [*rows, keys], "scores": [*rows, keys]}
    return Output(_empty(p, [*rows, p.v.shape[3]]), **{name: _empty(p, sizes[name]) for name in p.wanted})


def _empty(p: Problem, shape: list[int]) -> Array:
    xp, device = p.backend.xp, p.backend.device(p.q)
    empty = xp.zeros(tuple(shape), dtype=p.compute_dtype, device=device)
    for x in (p.q, p.k, p.v, p.bias, p.sinks, p.scale, *mods.parameters(p.score_mod)):
        if is_array(x):  # autograd finds the way from the result to every argument
            none = xp.reshape(x, (-1,))[:0] if x.ndim == 0 else x[..., :0]
            empty = empty + p.backend.astype(xp.sum(none), p.compute_dtype)
    return empty
