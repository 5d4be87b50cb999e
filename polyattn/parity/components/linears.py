"""Why a linear map is wrong: its weight in another order, its bias, its precision, another layer's weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from polyattn.parity.components.orders import likely_orders, say_order
from polyattn.parity.components.relation import relation
from polyattn.parity.components.trial import Candidate, Case, rms
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["eight_bits", "matched_columns", "tiers"]

SPREAD = 4  # so many wrong rows for each rank show that the weight is wrong


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """The bias; the weight of the port as it is known; other orders; other precisions; at last what fits."""
    weight = case.facts.arrays.get("weight")
    if weight is None or weight.ndim != 2 or case.x.shape[-1:] != weight.shape[:1]:
        return
    w = weight.astype(np.float64)
    bias = case.facts.arrays.get("bias")
    b = np.zeros(w.shape[1]) if bias is None else bias.astype(np.float64)
    if b.shape != w.shape[1:] or case.x.dtype.kind != "f":
        return
    part = case.cut()
    if not part.reproduces(part.x @ w + b):
        return
    yield _biases(case, w, b, bias is not None)
    yield _of_the_port(case, w, b)
    yield _turned(case, w, b)
    yield _rounded(w, b)
    yield _fitted(part, w, b)


def _map(w: Floats, b: Floats | float) -> Callable[[Case], Floats]:
    return lambda case: case.x @ w + b


def _biases(case: Case, w: Floats, b: Floats, there: bool) -> Iterator[Candidate]:
    if there:
        yield Candidate("bias missing", _map(w, 0.0))
        yield Candidate("bias added twice", _map(w, 2 * b))
        yield Candidate("bias negated", _map(w, -b))
    elif (
        case.port is not None
        and (theirs := case.port.arrays.get("bias")) is not None
        and theirs.shape == b.shape
    ):
        yield Candidate("a bias added that the reference does not have", _map(w, theirs.astype(np.float64)))
    yield Candidate("linear map skipped: the input comes out as it is", lambda case: case.x)


def _of_the_port(case: Case, w: Floats, b: Floats) -> Iterator[Candidate]:
    """With the arrays that the port holds, or another component."""
    for name, other in case.facts.children("other").items():
        if other.shape == w.shape:
            yield Candidate(f"holds the weight of {name}", _map(other.astype(np.float64), b))
    if case.port is None:
        return
    v, c = case.port.arrays.get("weight"), case.port.arrays.get("bias")
    theirs = b if c is None or c.shape != b.shape else c.astype(np.float64)
    bias_said = None if theirs is b else relation(b.astype(theirs.dtype), theirs)
    if v is not None and v.shape == w.shape:
        said = relation(case.facts.arrays["weight"], v)
        if said is not None:
            yield Candidate(f"weight of the port {said}", _map(v.astype(np.float64), b))
        if said is not None and bias_said is not None:
            both = f"weight of the port {said}, and its bias {bias_said}"
            yield Candidate(both, _map(v.astype(np.float64), theirs))
    if bias_said is not None:
        yield Candidate(f"bias of the port {bias_said}", _map(w, theirs))


def _turned(case: Case, w: Floats, b: Floats) -> Iterator[Candidate]:
    """The weight transposed, and with its rows and columns in the orders of other libraries."""
    width = case.facts.numbers.get("head_dim")
    width = width if isinstance(width, int) else None
    yield Candidate("weight negated", _map(-w, b))
    if w.shape[0] == w.shape[1]:
        yield Candidate("weight transposed", _map(w.T, b))
        if b.any():
            yield Candidate("weight transposed, bias missing", _map(w.T, 0.0))
    elif w.size:
        yield Candidate(
            "weight read as of the transposed shape, not transposed", _map(w.T.reshape(w.shape), b)
        )
    if (columns := matched_columns(case.cut())) is not None:
        yield Candidate(f"outputs {say_order(columns)}", _ordered(w, b, columns))
        weight_alone = _map(w[:, columns], b)
        yield Candidate(
            f"columns of the weight {say_order(columns)}, and those of the bias not", weight_alone
        )
    for rows in likely_orders(w.shape[0], width):
        yield Candidate(f"inputs of the weight {say_order(rows, packed=False)}", _map(w[rows], b))
    for columns in likely_orders(w.shape[1], width):
        if b.any():
            said = f"columns of the weight {say_order(columns)}, and those of the bias not"
            yield Candidate(said, _map(w[:, columns], b))


def _ordered(w: Floats, b: Floats, columns: Floats) -> Callable[[Case], Floats]:
    return _map(w[:, columns], b[columns])


def matched_columns(case: Case) -> Floats | None:
    """The permutation of the outputs that gives what was seen, if there is one."""
    if case.seen.shape != case.expected.shape or not np.isfinite(case.seen).all():
        return None
    old, new = (x.reshape(-1, x.shape[-1]) for x in (case.expected, case.seen))
    if len(old) < 2 or old.shape[1] < 2:
        return None
    # The nearest column: |o|^2 - 2 o n + |n|^2, least over o
    distance = (old * old).sum(0)[:, None] - 2 * old.T @ new
    order = distance.argmin(0)
    moved = len(np.unique(order)) == len(order) and (order != np.arange(len(order))).any()
    return order if moved else None


def eight_bits(w: Floats, axis: int | None) -> Floats:
    """w rounded to 8 bits with one scale for all of it, or along an axis."""
    step = np.abs(w).max(axis, keepdims=True) / 127
    return np.rint(w / np.where(step > 0, step, 1.0)) * step


def _rounded(w: Floats, b: Floats) -> Iterator[Candidate]:
    for low in ("bfloat16", "float16"):
        v, c = round_to(w, low), round_to(b, low)

        def inputs(case: Case, v: Floats = v, low: str = low) -> Floats:
            return round_to(case.x, low) @ v + b

        yield Candidate(f"weight rounded to {low}", _map(v, b))
        yield Candidate(f"weight and bias rounded to {low}", _map(v, c))
        yield Candidate(f"input rounded to {low}", lambda case, low=low: round_to(case.x, low) @ w + b)  # type: ignore[misc]
        yield Candidate(f"input and weight rounded to {low}", inputs)
    for axis, said in ((None, "for the whole weight"), (0, "for each output"), (1, "for each input")):
        yield Candidate(f"weight rounded to 8 bits, with one scale {said}", _map(eight_bits(w, axis), b))


def _fitted(part: Case, w: Floats, b: Floats) -> Iterator[Candidate]:
    """A factor on the weight, another bias, a part of low rank: numbers that are found from what was seen."""
    if not np.isfinite(part.seen).all():
        return
    plain = part.x @ w
    if size := float((plain * plain).sum()):
        factor = float((plain * (part.seen - b)).sum() / size)
        yield Candidate(f"weight multiplied by {factor:.6g}", _map(factor * w, b))
    rest = (part.seen - part.expected).reshape(-1, w.shape[1])
    if len(rest) >= 4:
        yield Candidate("another bias: a constant is added to every output", _map(w, b + rest.mean(0)))
        yield from _low_rank(part, rest, w, b)


def _low_rank(part: Case, rest: Floats, w: Floats, b: Floats) -> Iterator[Candidate]:
    """A map of low rank from the inputs that gives the difference."""
    x = part.x.reshape(-1, w.shape[0])
    most = min(*rest.shape, w.shape[0]) // 4
    u, s, v = np.linalg.svd(rest, full_matrices=False)
    noise = rms(np.broadcast_to(part.unit, part.expected.shape)) * np.sqrt(max(rest.shape)) * 2
    rank = int((s > max(noise, s[0] * 1e-6)).sum())
    wrong = int((np.abs(rest).max(1) > noise).sum())
    if (
        not 0 < rank <= most or wrong < SPREAD * rank
    ):  # a few rows that are wrong by themselves have a low rank too
        return
    left = np.linalg.lstsq(x, u[:, :rank] * s[:rank], rcond=None)[0]
    said = f"the weight differs by a matrix of rank {rank}: an adapter (LoRA) missing or added"
    yield Candidate(said, lambda case: case.x @ w + b + (case.x @ left) @ v[:rank])
