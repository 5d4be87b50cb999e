"""Writes down what is said in a recording, on this machine: the same words from NumPy, JAX and PyTorch.

    python examples/listen/listen.py --backend jax
    python examples/listen/listen.py talk.wav        # 16 bits, 16 kHz, one channel

The model is `polyattn.models.whisper`: Whisper tiny.en, English alone, as a page of `polyattn.layers`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from polyattn.arrays import backend_of
from polyattn.models.sound import RATE, SAMPLES, log_mel, read_wave, recording
from polyattn.models.whisper import Pretrained, load, transcribe

said, noted = Console(highlight=False, soft_wrap=True), Console(stderr=True, style="dim")


class Library(StrEnum):
    """Where to compute."""

    NUMPY = "numpy"
    JAX = "jax"
    TORCH = "torch"


def one_of(library: Library) -> Any:
    """A float32 array of the library, by whose kind everything else is made."""
    if library is Library.JAX:
        return import_module("jax.numpy").zeros(())
    return import_module(library).zeros((), dtype=import_module(library).float32)


def written(model: Pretrained, samples: Any, like: Any) -> Iterator[str]:
    """The pieces of what is said in at most thirty seconds, as they come."""
    features = backend_of(like).from_numpy(log_mel(samples).astype(np.float32), like)
    tokens: list[int] = []
    shown = ""
    for token in transcribe(model, features):
        tokens.append(token.number)
        whole = model.tokens.decode(tokens)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # a letter may take several tokens
            yield whole[len(shown) :]
            shown = whole


def main(
    file: Annotated[Path | None, typer.Argument(help="a wave file; without it, a recording of ours")] = None,
    backend: Annotated[Library, typer.Option(help="where to compute")] = Library.NUMPY,
) -> None:
    """A small model writes down what is said, on NumPy, JAX or PyTorch."""
    like = one_of(backend)
    try:
        samples = read_wave(recording() if file is None else file)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    with noted.status("reading the model"):
        model = load(like)
    started = time.perf_counter()
    begun = False
    for start in range(0, len(samples), SAMPLES):  # a word on the seam may be lost
        for piece in written(model, samples[start : start + SAMPLES], like):
            said.print(piece if begun else piece.lstrip(), end="", markup=False)
            begun = True
    said.print()
    noted.print(f"{len(samples) / RATE:.1f} s of sound in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    typer.run(main)
