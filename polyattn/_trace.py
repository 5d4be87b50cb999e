"""Every intermediate value of one call of attention, by name: what the formula looks like in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

from polyattn.arrays import Array, backend_of, is_array, readable
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers
from polyattn.draw import draw_stages, html_table, range_of
from polyattn.implementations.reference import define
from polyattn.mods import Mod
from polyattn.problem import pose
from polyattn.problem.options import spelled_out


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
        return range_of(self.value)

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
class Trace(Generic[SameArray]):
    """The stages of one call, in order. `trace["weights"]` is a stage, `trace.out` the result.

    Printed it is a table, in a notebook too; `figure()` draws the stages that are matrices of scores.
    """

    stages: tuple[Stage, ...]
    out: SameArray

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
        return html_table(HEADINGS, self.rows())

    def figure(self, batch: int = 0, head: int = 0) -> Any:
        """A matplotlib figure: every stage that has a column for each key, of one batch item and head."""
        return draw_stages(self, batch, head)


HEADINGS = ("stage", "equation", "shape", "dtype", "range", "NaN", "Inf", "empty rows", "headroom")


@answers("polyattn.trace")
@spelled_out
def trace(query: SameArray, key: Array, value: Array, **options: Any) -> Trace[SameArray]:
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
    p = pose("polyattn.trace", query, key, value, **options)
    if not readable(p.q, p.k, p.v):
        raise ValueError(
            "polyattn.trace: expected arrays whose values can be read, got symbols of a compiler; call it outside"
        )
    xp = p.backend.xp
    stages: list[Stage] = []

    def see(name: str, by: Any, value: Array) -> None:
        axes, equation = _STAGES[name]
        equation = p.normalizer.formula if name == "weights" else equation
        if name == "scores":
            equation += "per head" if is_array(by) else f"{by:.6g}"
        elif name == "modified":
            name = _named(by, [stage.name for stage in stages])
        elif name == "dropped weights":
            equation = f"w = w / (1 - {p.dropout_rate:g}) where kept, else 0"
        elif p.sinks is not None:
            equation += {"row maximum": " and the sink", "weights": ", the sink in the sum"}.get(name, "")
        shown = xp.broadcast_to(value, p.scores_shape) if axes == "BHLS" else value
        stages.append(Stage(name, equation, axes, shown, p.q.dtype))

    with p.backend.eager():
        out = define(p, see).out
    return Trace(tuple(stages), p.axes.leave(p.backend.astype(out, p.q.dtype), width=True))


#: name of a stage -> its axes and equation
_STAGES = {
    "scores": ("BHLS", "s = scale q . k, scale "),
    "modified": ("BHLS", "s = mod(s, b, h, q, kv)"),
    "biased": ("BHLS", "s = s + bias"),
    "masked": ("BHLS", "s = -inf where hidden"),
    "row maximum": ("BHL", "m_i = max_j s_ij"),
    "weights": ("BHLS", ""),
    "dropped weights": ("BHLS", ""),
    "output": ("BHLE", "out = w v"),
    "lse": ("BHL", "log sum_j exp(s_ij)"),
}


def _named(mod: Any, names: list[str]) -> str:
    """after softcap, after alibi, ...; numbered where a name repeats."""
    kind = type(mod).__name__.lower() if isinstance(mod, Mod) else getattr(mod, "__name__", "function")
    name = f"after {'function' if kind == '<lambda>' else kind}"
    taken = sum(taken == name or taken.startswith(f"{name} (") for taken in names)
    return f"{name} ({taken + 1})" if taken else name
