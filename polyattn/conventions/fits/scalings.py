"""Scalings of rotary frequencies: left out, not asked for, with another constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polyattn.conventions.call import Call
from polyattn.conventions.fits.probe import Change
from polyattn.rotary import Llama3, Rotary, Scaling, YaRN

__all__ = ["scalings", "with_rotary"]

LENGTHENED = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0)
ORIGINAL = (2048, 4096, 8192, 16384, 32768, 1024)


def with_rotary(rotary: Rotary) -> Change:
    """The change of the rotary of a call."""
    return lambda call: replace(call, rotary=rotary)


def scalings(call: Call, rotary: Rotary) -> Iterator[tuple[str, Change]]:
    """Another scaling of the frequencies: none, one nobody asked for, one with another constant."""
    stated = rotary.scaling
    if stated is not None:
        name = type(stated).__name__
        yield f"scaling {name} ignored", with_rotary(replace(rotary, scaling=None))
        for words, other in _altered(stated):
            yield f"scaling {name} {words}", with_rotary(replace(rotary, scaling=other))
        return
    for n in ORIGINAL:
        for f in LENGTHENED:
            asked = f"for factor {f:g} and an original length of {n}, which nobody asked for"
            if rotary.base > 1:
                yield f"scaling YaRN {asked}", with_rotary(replace(rotary, scaling=YaRN(f, n)))
                yield (
                    f"scaling YaRN without its amplitude {asked}",
                    with_rotary(replace(rotary, scaling=YaRN(f, n, attention_factor=1.0))),
                )
            yield f"scaling Llama3 {asked}", with_rotary(replace(rotary, scaling=Llama3(f, 1.0, 4.0, n)))
    width = call.q.shape[3] if rotary.width is None else rotary.width
    if width > 2:
        for f in LENGTHENED:
            base = rotary.base * f ** (width / (width - 2))
            yield (
                f"rotary base {base:.6g} instead of {rotary.base:g}: scaled for NTK by factor {f:g}",
                with_rotary(replace(rotary, base=base)),
            )


def _altered(stated: Scaling) -> Iterator[tuple[str, Scaling]]:
    """A scaling with one of its constants changed."""
    fields: dict[str, Any] = {"factor": LENGTHENED, "original_length": ORIGINAL}
    if isinstance(stated, YaRN):
        fields |= {"attention_factor": (1.0,), "truncate": (not stated.truncate,)}
        fields |= {"beta_fast": (1.0, stated.beta_slow, 16.0, 64.0), "beta_slow": (2.0, 4.0)}
        yield (
            "with its amplitude applied twice",
            dataclasses.replace(stated, attention_factor=stated.amplitude**2),
        )
    if isinstance(stated, Llama3):
        fields |= {"low_freq_factor": (0.5, 2.0), "high_freq_factor": (2.0, 8.0)}
    for name, values in fields.items():
        if hasattr(stated, name):
            for value in values:
                try:
                    other = replace(stated, **{name: value})  # type: ignore[type-var]
                except ValueError:  # constants that do not go together
                    continue
                if other != stated:
                    yield f"with {name} {value} instead of {getattr(stated, name)}", other
