"""By which angles queries and keys of an attention component turn: as its numbers say, or as they came with the inputs."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from polyattn import rotary
from polyattn.parity.components.facts.record import Facts
from polyattn.parity.components.heads import Heads, Waves
from polyattn.parity.components.trial import Case
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["rotary_of", "waves_of"]


def rotary_of(facts: Facts) -> Rotary | None:
    """The rotary that numbers describe."""
    numbers = facts.numbers
    if "rotary_base" not in numbers:
        return None
    width = numbers.get("rotary_width")
    return Rotary(
        base=float(numbers["rotary_base"]),
        width=None if width is None else int(width),
        interleaved=bool(numbers.get("rotary_interleaved", False)),
        scaling=_scaling(numbers.get("rotary_scaling")),
    )


def _scaling(text: Any) -> Any:
    """A scaling of polyattn.rotary from how it writes itself: "Linear(factor=4.0)"."""
    if not isinstance(text, str):
        return None
    call = ast.parse(text, mode="eval").body
    known = {
        c.__name__: c
        for c in (
            rotary.Linear,
            rotary.DynamicNTK,
            rotary.YaRN,
            rotary.Llama3,
            rotary.LongRoPE,
            rotary.Proportional,
        )
    }
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in known:
        raise ValueError(
            f"polyattn.parity.components: expected rotary_scaling as a scaling of polyattn.rotary writes itself, got {text!r}; take repr(scaling)"
        )
    return known[call.func.id](
        **{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    )


def waves_of(case: Case, base: Heads) -> list[Waves | None]:
    """Angles: those that came as inputs, those of the numbers, and none."""
    interleaved = bool(case.facts.numbers.get("rotary_interleaved", False))
    found: list[Waves | None] = []
    for cos, sin in zip(case.inputs[1:], case.inputs[2:], strict=False):
        if (pair := _pair(cos, sin, base)) is not None:
            halves = pair[0].shape[-1] // 2
            doubled = np.array_equal(pair[0][..., :halves], pair[0][..., halves:])
            turns = np.array_equal(pair[0][..., 0::2], pair[0][..., 1::2])
            cut = slice(halves) if doubled else slice(0, None, 2) if turns else slice(None)
            for way in (interleaved, not interleaved):
                found.append(Waves(pair[0][..., cut], pair[1][..., cut], way))
    if (told := rotary_of(case.facts)) is not None and base.query.shape[1] == base.key.shape[1]:
        width, length = told.width or base.width, base.query.shape[1]
        turn = _positions(case, length)[:, None, :, None] * np.array(told.frequencies(width, length=length))
        amplitude = 1.0 if told.scaling is None else told.scaling.amplitude
        for way in (told.interleaved, not told.interleaved):
            found.append(Waves(amplitude * np.cos(turn), amplitude * np.sin(turn), way))
    return [*found, None]


def _positions(case: Case, length: int) -> Floats:
    """Positions (B or 1, L): integers among the inputs, or 0, 1, 2, ..."""
    for x in case.inputs[1:]:
        if (
            x.dtype.kind in "iu"
            and x.ndim in (1, 2)
            and x.shape[-1] == length
            and not np.isin(x, (0, 1)).all()
        ):
            return x.reshape(-1, length)
    return np.arange(length)[None]


def _pair(cos: Floats, sin: Floats, base: Heads) -> tuple[Floats, Floats] | None:
    """cos and sin as (B or 1, 1, L, n), if these are some."""
    if cos.dtype.kind != "f" or cos.shape != sin.shape or cos.ndim not in (2, 3, 4):
        return None
    if cos.shape[-1] > base.width or base.query.shape[1] not in cos.shape[-3:-1]:
        return None
    size = cos**2 + sin**2
    if not (np.ptp(size) <= 1e-3 * np.max(size) and np.max(size) > 0.5):
        return None
    shape = {2: (None, None), 3: (slice(None), None), 4: ()}[cos.ndim]
    return cos[shape], sin[shape]
