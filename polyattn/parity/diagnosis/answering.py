"""Answers of one call under many settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn.conventions import answers
from polyattn.conventions.answers import Answer
from polyattn.conventions.call import Call
from polyattn.conventions.items import one_by_one
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.conventions.visible import allowed_keys
from polyattn.truth.spec import Floats

__all__ = ["Answers", "answered", "visible"]


class Answers:
    """What implementations return for one call, on some query rows or on all, whatever overflows on the way."""

    def __init__(self, call: Call, rows: Floats | None = None) -> None:
        self.parts = [answers.Answers(part, rows) for part in one_by_one(call)]

    def __call__(self, settings: Settings) -> Answer:
        with np.errstate(all="ignore"):
            return _joined([part(settings) for part in self.parts])


def answered(call: Call, settings: Settings, rows: Floats | None = None) -> Answer:
    """The answer to one question alone."""
    return Answers(call, rows)(settings)


def _joined(parts: list[Answer]) -> Answer:
    """The answers of several batch items as one."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return replace(parts[0], **joined)


def visible(call: Call, rows: Floats) -> Floats:
    """Which keys those rows may attend to as stated, broadcasting to (B, Hq, rows, S)."""
    parts = [allowed_keys(part, CONTRACT, rows) for part in one_by_one(call)]
    return (
        parts[0]
        if len(parts) == 1
        else np.concatenate([np.broadcast_to(x, (1, *x.shape[1:])) for x in parts])
    )
