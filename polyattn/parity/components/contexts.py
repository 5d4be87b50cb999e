"""How the inputs of an attention component are to be read: what is a mask, what are angles, what is causal.

Nothing in the arrays says so; of the readings that make sense, that is taken which gives what the reference gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from polyattn.mods import relative_position_bias
from polyattn.parity.components.facts.record import Facts
from polyattn.parity.components.formula import Norm
from polyattn.parity.components.heads import Heads
from polyattn.parity.components.trial import Case
from polyattn.parity.components.turning import waves_of
from polyattn.truth.spec import Floats

__all__ = ["heads_of", "read_inputs", "to_batch_first"]

LOWEST = -1e4  # an additive mask hides below; no score gets there


def to_batch_first(facts: Facts, x: Floats) -> Floats:
    """(B, L, E) of what a component got or gave, as its numbers say."""
    if x.ndim == 2:
        return x[None]
    return x.swapaxes(0, 1) if facts.numbers.get("batch_first") is False else x


def read_inputs(case: Case) -> Heads | None:
    """The attention of the reference, read so that it gives what was expected; None where no reading does."""
    base = heads_of(case.facts, case.inputs)
    if base is None:
        return None
    expected = to_batch_first(case.facts, case.expected)
    for reading in _readings(case, base):
        try:
            predicted = reading()
        except (ValueError, TypeError):  # shapes that do not fit together this way
            continue
        if predicted.shape == expected.shape and case.reproduces(_as(case, predicted)):
            return reading
    return None


def _as(case: Case, out: Floats) -> Floats:
    return (
        out.swapaxes(0, 1).reshape(case.expected.shape)
        if case.facts.numbers.get("batch_first") is False
        else out.reshape(case.expected.shape)
    )


def heads_of(facts: Facts, inputs: tuple[Floats, ...]) -> Heads | None:
    """The attention that facts describe, on the sequences among the inputs; None where they do not say enough."""
    numbers = facts.numbers
    arrays = {n: x.astype(np.float64) for n, x in facts.arrays.items() if ":" not in n}
    if (
        not {"q.weight", "k.weight", "v.weight"} <= arrays.keys()
        or not {"heads", "kv_heads", "head_dim", "scale"} <= numbers.keys()
    ):
        return None
    if not _fit(arrays, *(int(numbers[n]) for n in ("heads", "kv_heads", "head_dim"))):
        return None
    rank = inputs[0].ndim
    widths = [arrays[f"{n}.weight"].shape[0] for n in "qkv"]
    sequences = [x for x in inputs if x.ndim == rank and x.dtype.kind == "f" and x.shape[-1] in widths]
    if rank not in (2, 3) or not sequences or sequences[0].shape[-1] != widths[0]:
        return None
    if len(sequences) > 1 and sequences[1].shape[-1] == widths[1]:
        own = [sequences[0], sequences[1], sequences[2] if len(sequences) > 2 else sequences[1]]
    else:
        own = [sequences[0]] * 3
    query, key, value = (to_batch_first(facts, x) for x in own)
    norms = tuple(_norm(facts, n) for n in ("q_norm", "k_norm"))
    sizes = [int(numbers[n]) for n in ("heads", "kv_heads", "head_dim")]
    cap = numbers.get("softcap")
    return Heads(
        arrays, sizes[0], sizes[1], sizes[2], float(numbers["scale"]), query, key, value,
        norms=(norms[0], norms[1]), cap=float(cap) if cap else None,
    )  # fmt: skip


def _fit(arrays: Mapping[str, Floats], heads: int, kv_heads: int, width: int) -> bool:
    """Whether projections and biases are those of so many heads."""
    out = {"q": heads * width, "k": kv_heads * width, "v": kv_heads * width}
    weights = {n: arrays[f"{n}.weight"].shape for n in out}
    biases = {n: arrays[f"{n}.bias"].shape for n in out if f"{n}.bias" in arrays}
    last = arrays.get("o.weight", np.zeros((out["q"], 1)))
    return (
        kv_heads > 0
        and heads % kv_heads == 0
        and all(len(shape) == 2 and shape[1] == out[n] for n, shape in weights.items())
        and all(shape == (out[n],) for n, shape in biases.items())
        and last.ndim == 2
        and last.shape[0] == out["q"]
        and arrays.get("o.bias", last[0]).shape == last.shape[1:]
        and arrays.get("sinks", np.zeros(heads)).shape == (heads,)
    )


def _norm(facts: Facts, name: str) -> Norm | None:
    weight = facts.arrays.get(f"{name}.weight")
    if weight is None or "qk_norm_eps" not in facts.numbers:
        return None
    bias = facts.arrays.get(f"{name}.bias")
    return Norm(
        float(facts.numbers["qk_norm_eps"]),
        bool(facts.numbers["qk_norm_subtracts_mean"]),
        weight.astype(np.float64),
        None if bias is None else bias.astype(np.float64),
        bool(facts.numbers.get("qk_norm_weight_plus_one", False)),
    )


def _readings(case: Case, base: Heads) -> Iterator[Heads]:
    causal = case.facts.numbers.get("is_causal")
    causals = [causal, not causal] if isinstance(causal, bool) else [False, True]
    length, keys = base.query.shape[1], base.key.shape[1]
    window = case.facts.numbers.get("window")
    windows = [int(window), None] if isinstance(window, int) and window < keys else [None]
    given = list(_masks(case, base, length, keys))
    for waves, mask, flag, size in product(waves_of(case, base), given, causals, windows):
        if not (size is not None and not flag):
            reading = replace(base, waves=waves, **{"causal": bool(flag), "window": size, **mask})
            yield reading
            if reading.blind().any():
                yield replace(reading, averages=True)


def _masks(case: Case, base: Heads, length: int, keys: int) -> Iterator[dict[str, Any]]:
    """Masks and additive biases among the inputs, none, and a bias of one input with the mask of another."""
    found = list(_single_masks(case, base, length, keys))
    yield from found
    biases = [one["bias"] for one in found if one.keys() == {"bias"} and one["bias"] is not None]
    for one in found:
        if one.get("bias") is None and len(one) > 1:
            yield from ({**one, "bias": bias} for bias in biases)


def _single_masks(case: Case, base: Heads, length: int, keys: int) -> Iterator[dict[str, Any]]:
    relative = _relative(case.facts, length, keys)
    for x in case.inputs[1:]:
        if (
            x.ndim in (2, 3, 4)
            and x.shape[-1] == keys
            and ((x.ndim == 2 and x.shape[0] == len(base.key)) or x.shape[-2] in (1, length))
        ):
            by_key = x.ndim == 2 and x.shape[0] == len(base.key) and x.shape[0] != length
            wide = x[:, None, None, :] if by_key else x[(None,) * (4 - x.ndim)] if x.ndim != 3 else x[:, None]
            if x.dtype.kind == "f" and not ((x == 0) | (x < LOWEST)).all():
                yield {"bias": np.where(wide < LOWEST, -np.inf, wide)}
                continue
            allowed = wide == 0 if x.dtype.kind == "f" else wide.astype(bool)
            if x.dtype.kind == "f" or x.dtype.kind == "b" or np.isin(x, (0, 1)).all():
                for one in (allowed, ~allowed):
                    yield {"bias": relative, **_taken_apart(one, case.facts.numbers.get("window"))}
    yield {"bias": relative}


def _taken_apart(mask: Floats, window: Any) -> dict[str, Any]:
    """A mask as causality, a window, and which keys are no padding; as it is where it is something else."""
    length, keys = mask.shape[-2:]
    if length < 2:
        return {"mask": mask}
    back = np.arange(length)[:, None] + keys - length - np.arange(keys)
    padding = mask.any(-2, keepdims=True)
    kept = None if padding.all() else padding
    widest = int(mask.sum(-1).max(initial=0))
    for size in (None, *((window,) if isinstance(window, int) else ()), widest or None):
        if np.array_equal(padding & (back >= 0) & (back < (size or keys + 1)), mask):
            return {"mask": kept, "causal": True, "window": size}
    return {"mask": kept} if np.array_equal(np.broadcast_to(padding, mask.shape), mask) else {"mask": mask}


def _relative(facts: Facts, length: int, keys: int) -> Floats | None:
    """The learned relative positions of T5 as a bias."""
    table = facts.arrays.get("relative_bias.weight")
    told = {"relative_bidirectional", "relative_max_distance"} <= facts.numbers.keys()
    if table is None or not told or table.shape[1:] != (facts.numbers["heads"],):
        return None
    mod = relative_position_bias(
        table.astype(np.float64),
        bidirectional=bool(facts.numbers["relative_bidirectional"]),
        max_distance=int(facts.numbers["relative_max_distance"]),
    )
    at = np.ix_(*(np.arange(n) for n in (1, table.shape[1], length, keys)))
    return np.asarray(
        mod(np.zeros((1, table.shape[1], length, keys)), at[0], at[1], at[2] + keys - length, at[3])
    )
