"""Goes on with a text, one character at a time, on NumPy, JAX or PyTorch: the same text on each of them.

    python examples/text_generation/generate.py --backend jax --prompt "MACBETH." --seed 1

Without a seed it takes the likeliest character each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from language_model import decode, encode, language_model

from polyattn import weights
from polyattn.arrays import Array
from polyattn.generation import Sampling, generate, likeliest

WEIGHTS = Path(__file__).parent / "model.safetensors"


def one_of(backend: str) -> Array:
    """A float32 array of the library, by whose kind everything else is made."""
    if backend == "jax":
        return import_module("jax.numpy").zeros(())
    return import_module(backend).zeros((), dtype=import_module(backend).float32)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Goes on with a text, one character at a time.")
    parser.add_argument("--backend", choices=("numpy", "jax", "torch"), default="numpy")
    parser.add_argument("--prompt", default="MACBETH.\n")
    parser.add_argument("--length", type=int, default=400, help="characters to write")
    parser.add_argument("--seed", type=int, help="draw; without a seed, the likeliest character each time")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    given = parser.parse_args(arguments)

    model = language_model()
    params = weights.load(given.weights, like=one_of(given.backend), layer=model)
    choose = likeliest if given.seed is None else Sampling(seed=given.seed, temperature=given.temperature)
    found = generate(model, params, encode(given.prompt), length=given.length, choose=choose)
    print(given.prompt, end="")
    for token in found:
        print(decode([token.number]), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
