"""Every intermediate value of one call of attention, by name: what the formula looks like in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from polyattn.arrays import Array, backend_of, is_array
from polyattn.implementations.reference import allowed_at, dropout_at, sink, visible_keys
from polyattn.mods import Compose, Mod, ScoreMod
from polyattn.normalizers import softmax
from polyattn.normalizers.softmax import finish, grouped_matmul, lift, log_sum, merge
from polyattn.places.positions import Positions
from polyattn.problem.problem import Problem, pose


@dataclass(frozen=True, eq=False)
class Stage:
    """One intermediate value: `value` is an array of the library of the call."""

    name: str
    equation: str
    axes: str  # one letter an axis: B H L S E
    value: Array
    dtype_of_query: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        """The name of the dtype of the value."""
        return str(self.value.dtype).rpartition(".")[2]

    def _count(self, where: Array) -> int:
        backend = backend_of(self.value)
        return int(backend.to_list(backend.xp.sum(backend.astype(where, backend.xp.int32))))

    @property
    def nans(self) -> int:
        """How many entries are NaN."""
        return self._count(backend_of(self.value).xp.isnan(self.value))

    @property
    def infs(self) -> int:
        """How many entries are infinite, hidden scores (-inf) included."""
        return self._count(backend_of(self.value).xp.isinf(self.value))

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest finite entry, None if there is none."""
        backend = backend_of(self.value)
        xp = backend.xp
        finite = xp.isfinite(self.value)
        if self._count(finite) == 0:
            return None
        low, high = xp.where(finite, self.value, xp.inf), xp.where(finite, self.value, -xp.inf)
        return float(backend.to_list(xp.min(low))), float(backend.to_list(xp.max(high)))

    @property
    def empty_rows(self) -> int | None:
        """How many rows see nothing; None where a stage has no rows of scores."""
        if self.name != "masked":
            return None
        xp = backend_of(self.value).xp
        return self._count(xp.all(self.value == -xp.inf, axis=-1))

    @property
    def headroom(self) -> float:
        """By how many factors of two the largest entry stays below the overflow of the dtype of query."""
        found = self.range
        largest = 0.0 if found is None else max(abs(x) for x in found)
        limit = _LARGEST[str(self.dtype_of_query).rpartition(".")[2]]
        return math.inf if largest == 0.0 else math.log2(limit) - math.log2(largest)


_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7976e308}


@dataclass(frozen=True, eq=False)
class Trace:
    """The stages of one call, in order. `trace["weights"]` is a stage, `trace.out` the result.

    Printed it is a table; in a notebook an HTML table; `figure()` draws the stages that are matrices of scores.
    """

    stages: tuple[Stage, ...]
    out: Array

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"no stage {name!r}; there are {', '.join(stage.name for stage in self.stages)}")

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def rows(self) -> list[tuple[str, ...]]:
        """The table, a row a stage: name, equation, shape, dtype, range, NaN, Inf, empty rows, headroom."""
        return [
            (
                stage.name,
                stage.equation,
                f"({', '.join(stage.axes)}) = {stage.shape}",
                stage.dtype,
                "-" if stage.range is None else f"{stage.range[0]:.4g} .. {stage.range[1]:.4g}",
                str(stage.nans),
                str(stage.infs),
                "" if stage.empty_rows is None else str(stage.empty_rows),
                f"2^{stage.headroom:.0f}" if math.isfinite(stage.headroom) else "",
            )
            for stage in self.stages
        ]

    def __str__(self) -> str:
        table = [HEADINGS, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
        lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in table)
        return "\n".join(line.rstrip() for line in lines)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADINGS)
        for row in self.rows():
            table.add_row(*(Text(cell) for cell in row))
        return table

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows())
        return f"<table><thead>{line(HEADINGS, 'th')}</thead><tbody>{body}</tbody></table>"

    def figure(self, batch: int = 0, head: int = 0) -> Any:
        """A matplotlib figure: every stage that has a column for each key, of one batch item and head."""
        from polyattn.draw import draw_stages

        return draw_stages(self, batch, head)


HEADINGS = ("stage", "equation", "shape", "dtype", "range", "NaN", "Inf", "empty rows", "headroom")


def trace(query: Array, key: Array, value: Array, **options: Any) -> Trace:
    """Every intermediate value of `attention(query, key, value, **options)`, by its definition.

    options: as `attention` takes them, without implementation and return_aux. Stages: "scores", one for each
    modification, "biased", "masked", "row maximum", "weights", "dropped weights", "output", "lse"; those that the
    call does not have are left out. All in the compute dtype, (B, H, L, S) whatever the layout. The output is
    that of implementation="reference", bit for bit. Values are read, so this does not run under a compiler.

    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0]])
    >>> steps = trace(x, x, x, is_causal=True)
    >>> [stage.name for stage in steps]
    ['scores', 'masked', 'row maximum', 'weights', 'output', 'lse']
    >>> steps["weights"].value[0, 0].round(3).tolist()
    [[1.0, 0.0], [0.269, 0.731]]
    """
    for refused in ("implementation", "return_aux"):
        if refused in options:
            raise TypeError(
                f"polyattn.trace: expected no {refused}, got {options[refused]!r}; a trace has every value, of the definition"
            )
    p = pose(query, key, value, **options)
    if not all(p.backend.is_concrete(x) for x in (p.q, p.k, p.v)):
        raise ValueError(
            "polyattn.trace: expected arrays whose values can be read, got symbols of a compiler; call it outside"
        )
    with p.backend.eager():
        stages, out = _stages(p)
    return Trace(
        tuple(Stage(*stage, query.dtype) for stage in stages),
        p.restore(p.backend.astype(out, query.dtype), 1),
    )


def _stages(p: Problem) -> tuple[list[tuple[str, str, str, Array]], Array]:
    backend, xp = p.backend, p.backend.xp
    at = p.positions()
    q, k, v = (backend.astype(x, p.compute_dtype) for x in (p.q, p.k, p.v))
    bias = None if p.bias is None else backend.astype(p.bias, p.compute_dtype)
    allowed = allowed_at(p, at, bias)
    full = (p.frame.batch, p.frame.heads, p.frame.rows, p.frame.keys)
    found: list[tuple[str, str, str, Array]] = []

    def add(name: str, equation: str, value: Array, axes: str = "BHLS") -> None:
        if axes == "BHLS":
            value = xp.broadcast_to(value, full)
        found.append((name, equation, axes, value))

    if allowed is not None:
        visible = visible_keys(allowed, p.k.shape[1], xp)
        k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
        q = xp.where(xp.any(allowed, axis=-1, keepdims=True), q, 0.0)
    s = grouped_matmul(q, xp.matrix_transpose(k)) * p.scale
    add("scores", f"s = scale q . k, scale {_scale(p)}", s)
    for mod in _parts(p.score_mod):
        if allowed is not None:
            s = xp.where(allowed, s, 0.0)
        s = _apply(mod, s, at)
        add(_named(mod, found), "s = mod(s, b, h, q, kv)", s)
    if bias is not None:
        s = s + bias
        add("biased", "s = s + bias", s)
    if allowed is not None:
        s = xp.where(allowed, s, -xp.inf)
        add("masked", "s = -inf where hidden", s)
    s = xp.broadcast_to(s, full)
    keys = lift(s, v, dropout_at(p, at))
    seen = keys if p.sinks is None else merge(keys, sink(p.sinks, keys))
    add(
        "row maximum",
        "m_i = max_j s_ij" + ("" if p.sinks is None else " and the sink"),
        seen.top[..., 0],
        "BHL",
    )
    w = softmax.weights(s, seen)
    add("weights", "w = exp(s - m) / sum" + ("" if p.sinks is None else ", the sink in the sum"), w)
    keep = dropout_at(p, at)
    if keep is not None:
        add("dropped weights", f"w = w / (1 - {p.dropout_rate:g}) where kept, else 0", w * keep)
    out = finish(seen)
    add("output", "out = w v", out, "BHLE")
    add("lse", "log sum_j exp(s_ij)", log_sum(keys), "BHL")
    return found, out


def _scale(p: Problem) -> str:
    return "per head" if is_array(p.scale) else f"{p.scale:.6g}"


def _parts(mod: ScoreMod | None) -> tuple[ScoreMod, ...]:
    return () if mod is None else mod.parts if isinstance(mod, Compose) else (mod,)


def _apply(mod: ScoreMod, s: Array, at: Positions) -> Array:
    return mod(s, at.b, at.h, at.q, at.kv)


def _named(mod: ScoreMod, found: list[tuple[str, str, str, Array]]) -> str:
    """after softcap, after alibi, ...; numbered where a name repeats."""
    kind = type(mod).__name__.lower() if isinstance(mod, Mod) else getattr(mod, "__name__", "function")
    name = f"after {'function' if kind == '<lambda>' else kind}"
    taken = sum(stage[0] == name or stage[0].startswith(f"{name} (") for stage in found)
    return f"{name} ({taken + 1})" if taken else name
