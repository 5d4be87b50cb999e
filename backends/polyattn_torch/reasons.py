"""Why something does not run here, in words, and why "auto" leaves what would."""

from __future__ import annotations

import torch

from polyattn import mods
from polyattn.implementations.blockwise import small, symbols
from polyattn.problem import Problem
from polyattn_torch.state import derives_again

__all__ = ["looked_on", "nothing", "passed_over_blockwise", "why_not_blockwise", "why_not_definition"]


def nothing(p: Problem) -> str | None:
    return "there is nothing to compute" if 0 in (*p.scores_shape, p.q.shape[3]) else None


def looked_on(p: Problem) -> str | None:
    if derives_again(p.q):
        return "a transform of torch.func or forward mode looks on, which the kernels do not know"
    return None


def why_not_definition(p: Problem) -> str | None:
    return "the lengths of a nested tensor are no numbers" if p.q.is_nested else None


def why_not_blockwise(p: Problem) -> str | None:
    """Why the blockwise engine cannot run, or would lose a gradient, which it must not."""
    if reason := why_not_definition(p) or symbols(p):
        return reason
    functions = mods.functions(p.score_mod)
    if not functions or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int32, device=p.q.device)
    score = torch.zeros((1, 1, 1, 1), dtype=p.compute_dtype, device=p.q.device)
    found = [f(score, zero, zero, zero, zero) for f in functions]  # checked by whoever runs it
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in found):
        return "score_mod captures a tensor that requires a gradient, which the engine cannot see"
    return None


def passed_over_blockwise(p: Problem) -> str | None:
    if torch.compiler.is_compiling() and p.scores_bytes <= 2**30:
        return "torch.compile fuses the definition"
    return looked_on(p) or small(p)
