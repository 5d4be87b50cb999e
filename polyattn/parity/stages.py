"""The stages that a side recorded, judged tile by tile: no truth of every score is ever whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyattn.parity.sides import Side
from polyattn.truth.judged import Judged
from polyattn.truth.measure import eta, round_to
from polyattn.truth.spec import Floats
from polyattn.truth.tiles import Place

__all__ = ["StageJudge"]


class StageJudge:
    """What `truth` shows its stages to: it writes into each side how far off the stage is that it recorded by that name."""

    def __init__(self, sides: Sequence[Side], shape: tuple[int, int, int, int], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.recorded = [
            (side, {name: (x, _dtype_of(x, dtype)) for name, x in side.stages.items()}) for side in sides
        ]
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the stages of the truth

    @property
    def needed(self) -> bool:
        """Whether anything was recorded."""
        return any(stages for _, stages in self.recorded)

    def __call__(self, name: str, judged: Judged, place: Place) -> None:
        """One tile of a stage."""
        whole = self.shapes.setdefault(name, (*self.shape[:3], *judged.value.shape[3:]))
        for side, stages in self.recorded:
            if name in stages and stages[name][0].shape == whole:
                x, dtype = stages[name]
                # A stage that was stored in half precision carries the roundings of those before it.
                one = judged._replace(rounded=None) if dtype == self.dtype else judged
                # In the order of the definition, whatever order they were recorded in.
                side.stage_etas[name] = max(side.stage_etas.get(name, 0.0), eta(x[place], one, dtype))

    def note(self) -> None:
        """Tells what was recorded and not judged."""
        for side, stages in self.recorded:
            if stages and not any(name in self.shapes for name in stages):
                side.notes.append(
                    f"no stage was judged: the stages of this call are {', '.join(self.shapes)}, got {', '.join(stages)}"
                )
            for name, (x, _) in stages.items():
                if name in self.shapes and x.shape != self.shapes[name]:
                    side.notes.append(
                        f"stage {name!r} was not judged: expected shape {self.shapes[name]}, got {x.shape}"
                    )


def _dtype_of(x: Floats, dtype: str) -> str:
    """What a stage was carried in: at least float32, unless every number of it is one of half precision."""
    if dtype in ("float16", "bfloat16"):
        return (
            dtype
            if x.dtype.kind == "f" and np.array_equal(round_to(x, dtype), x, equal_nan=True)
            else "float32"
        )
    return dtype
