"""What an unknown error may be made of: a change of the output, weights, scores, mask or inputs, by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .naming import Named
from .problems import Problem
from .rotations import row, turn
from .stages import PLAIN, Stages, attend

Perturbed = Callable[[Problem, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Unknown:
    name: str
    run: Perturbed
    needs: str = ""
    without: str = ""
    true: Named = ()


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.normal(size=shape), dtype=torch.float32)


def like(rng: np.random.Generator, x: Tensor) -> Tensor:
    return normal(rng, *x.shape).to(x.dtype)


def stages(f: Callable[[Problem, np.random.Generator], Stages]) -> Perturbed:
    return lambda p, rng: attend(p, f(p, rng))


def output(f: Callable[[Tensor, np.random.Generator], Tensor]) -> Perturbed:
    """f of the right output."""
    return lambda p, rng: f(attend(p), rng)


def weights(f: Callable[[Tensor, np.random.Generator], Tensor]) -> Perturbed:
    return stages(lambda p, rng: {"weights": lambda p, w, allowed: f(w, rng)})


def scores(f: Callable[[Tensor, np.random.Generator], Tensor]) -> Perturbed:
    """f of the scores before the mask."""
    return stages(lambda p, rng: {"finished": lambda s: f(s, rng)})


def inputs(**change: Callable[[Tensor, np.random.Generator], Tensor]) -> Perturbed:
    return lambda p, rng: attend(replace(p, **{n: f(getattr(p, n), rng) for n, f in change.items()}))


def allowed(f: Callable[[Problem, Tensor, np.random.Generator], Tensor]) -> Perturbed:
    return stages(lambda p, rng: {"allowed": lambda p, x: f(p, x, rng)})


def curve(f: Callable[[Tensor], Tensor]) -> Perturbed:
    """Another function in place of exp, of scores less their largest."""

    def run(p: Problem, s: Tensor) -> Tensor:
        top = s.amax(-1, keepdim=True)
        w = torch.where(s.isfinite(), f(torch.where(s.isfinite(), s - top.clamp(min=-1e30), 0.0)), 0.0)
        return w / w.sum(-1, keepdim=True).clamp(min=1e-3)

    return stages(lambda p, rng: {"softmax": run})


def turned(x: Tensor, rng: np.random.Generator) -> Tensor:
    """By a random orthogonal matrix."""
    return x @ torch.linalg.qr(normal(rng, x.shape[-1], x.shape[-1]))[0]


def some_rows(x: Tensor, rng: np.random.Generator, count: int, f: Callable[[Tensor], Tensor]) -> Tensor:
    """f of rows of axis 2 that are drawn."""
    rows = torch.tensor(rng.permutation(x.shape[2])[:count])
    x = x.clone()
    x[:, :, rows] = f(x[:, :, rows])
    return x


def in_one(x: Tensor, rng: np.random.Generator, f: Callable[[Tensor], Tensor], axes: int = 2) -> Tensor:
    """f of one head of one item (axes 2), one item (1)."""
    at = tuple(int(rng.integers(n)) for n in x.shape[:axes])
    x = x.clone()
    x[at] = f(x[at])
    return x


def one_head(x: Tensor, rng: np.random.Generator, f: Callable[[Tensor], Tensor]) -> Tensor:
    at = int(rng.integers(x.shape[1]))
    return torch.cat((x[:, :at], f(x[:, at : at + 1]), x[:, at + 1 :]), 1)


def swapped(x: Tensor, axis: int, i: int, j: int, item: int) -> Tensor:
    """x with two slices of a batch item exchanged."""
    x = x.clone()
    one = x[item].transpose(0, axis)
    one[[i, j]] = one[[j, i]]
    return x


def noisy(size: float) -> Callable[[Tensor, np.random.Generator], Tensor]:
    return lambda x, rng: x * (1 + size * like(rng, x))


def waves(x: Tensor) -> Tensor:
    """A smooth factor about 1 along the last axis."""
    return 1 + 0.3 * torch.sin(0.7 * torch.arange(x.shape[-1]) + 0.4)


def flipped(share: float) -> Callable[[Problem, Tensor, np.random.Generator], Tensor]:
    """So many bits of the mask are the other way, by chance."""
    return lambda p, x, rng: x.expand(p.shape) ^ torch.tensor(rng.random(p.shape) < share)


def renormed(w: Tensor) -> Tensor:
    return w / w.sum(-1, keepdim=True).clamp(min=1e-9)


def taylor(order: int) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        term, total = torch.ones_like(x), torch.ones_like(x)
        for n in range(1, order + 1):
            term = term * x / n
            total = total + term
        return total.clamp(min=0)

    return f


def one_weight(w: Tensor, rng: np.random.Generator) -> Tensor:
    w = w.clone()
    w.view(-1)[w[1, 1].argmax() + w[0].numel() + w[0, 0].numel()] *= 0.7
    return w


def random_rotary(p: Problem, rng: np.random.Generator) -> Stages:
    """Positions in a random order."""
    order = torch.tensor(rng.permutation(p.shape[3])).double()

    def rotate(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert p.rotary is not None
        return turn(q, row(q, p.start), p.rotary), turn(k, order, p.rotary)

    return {"rotate": rotate}


def random_frequencies(p: Problem, rng: np.random.Generator) -> Stages:
    bases = rng.uniform(50, 5000, 4)

    def rotate(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert p.rotary is not None
        turns = [PLAIN["rotate"](replace(p, rotary=replace(p.rotary, base=float(b))), q, k, v) for b in bases]
        return torch.stack([x[0] for x in turns]).mean(0), torch.stack([x[1] for x in turns]).mean(0)

    return {"rotate": rotate}


def top(count: int) -> Callable[[Tensor, np.random.Generator], Tensor]:
    def f(w: Tensor, rng: np.random.Generator) -> Tensor:
        least = w.topk(count, -1).values[..., -1:]
        return renormed(torch.where(w >= least, w, 0.0))

    return f
