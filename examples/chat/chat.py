"""Talks with a small language model on this machine: the same words from NumPy, JAX and PyTorch.

    python examples/chat/chat.py "What is the capital of France?" --backend jax
    python examples/chat/chat.py --seed 1            # a conversation, with drawn answers

The model is `polyattn.models.smollm2`: SmolLM2-135M-Instruct as a page of `polyattn.layers`. Without a seed it takes
the likeliest token each time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console

from polyattn.generation import Choice, Sampling, generate, likeliest
from polyattn.models.smollm2 import END, SMOLLM2, Pretrained, load

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


def answer(model: Pretrained, messages: list[dict[str, str]], choose: Choice, length: int) -> Iterator[str]:
    """The pieces of an answer, as they come; what it took is noted at the end."""
    started = time.perf_counter()
    tokens: list[int] = []
    shown, times = "", []
    text = model.tokens.chat(messages)
    for token in generate(SMOLLM2, model.params, text, length=length, choose=choose, stop={END}):
        times.append(time.perf_counter())
        tokens.append(token.number)
        whole = model.tokens.decode(tokens)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # a letter may take several tokens
            yield whole[len(shown) :]
            shown = whole
    if times:
        pace = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
        noted.print(f"\n{times[0] - started:.2f} s to the first token, then {pace:.1f} tokens a second")


def main(
    question: Annotated[str | None, typer.Argument(help="one question; without it, a conversation")] = None,
    backend: Annotated[Library, typer.Option(help="where to compute")] = Library.NUMPY,
    seed: Annotated[int | None, typer.Option(help="draw; without it, the likeliest token")] = None,
    temperature: Annotated[float, typer.Option(help="of the draw")] = 0.7,
    length: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 400,
) -> None:
    """A small language model answers, on NumPy, JAX or PyTorch."""
    choose = likeliest if seed is None else Sampling(seed=seed, temperature=temperature, top_p=0.95)
    with noted.status("reading the model"):
        model = load(like=one_of(backend))
    messages: list[dict[str, str]] = []
    while True:
        asked = question or ask()
        if not asked:
            return
        messages.append({"role": "user", "content": asked})
        pieces = []
        for piece in answer(model, messages, choose, length):
            said.print(piece, end="", markup=False)
            pieces.append(piece)
        said.print()
        if question:
            return
        messages.append({"role": "assistant", "content": "".join(pieces)})


def ask() -> str:
    """The next question; empty where there is none."""
    try:
        return said.input("[bold]> [/bold]") if sys.stdin.isatty() else sys.stdin.readline().strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    typer.run(main)
