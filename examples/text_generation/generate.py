"""Goes on with a text, one character at a time, on NumPy, JAX or PyTorch: the same text on each of them.

    python examples/text_generation/generate.py --backend jax --prompt "MACBETH." --seed 1

Without a seed it takes the likeliest character each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from language_model import LanguageModel, decode, encode

from polyattn import weights
from polyattn.arrays import Array, backend_of
from polyattn.caches import KVCache
from polyattn.dropout import key_of, threefry2x32
from polyattn.layers import Params

WEIGHTS = Path(__file__).parent / "model.safetensors"
Caches = Sequence[KVCache]
#: (params, tokens (1, n), caches) -> logits of the next character (size,), and the caches with the n tokens in them.
Step = Callable[[Params, Array, Caches], tuple[Array, Caches]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Written(NamedTuple):
    """A continuation, and how close a decision came to being another one."""

    text: str
    margin: float  # the smallest difference of the best two scores, in units of the logits


def one_of(backend: str) -> Array:
    """A float32 array of the library, by whose kind everything else is made."""
    if backend == "jax":
        return import_module("jax.numpy").zeros(())
    return import_module(backend).zeros((), dtype=import_module(backend).float32)


@cache
def step_of(model: LanguageModel, library: str) -> Step:
    """The model's step; compiled where the library is JAX, once for each number of tokens."""

    def step(params: Params, tokens: Array, caches: Caches) -> tuple[Array, Caches]:
        logits, caches, _ = model.run(params, tokens, cache=caches)
        return logits[0, -1, :], caches

    if library != "jax":
        return step
    compiled: Step = import_module("jax").jit(step)
    return compiled


def caches_for(model: LanguageModel, capacity: int, like: Array) -> Caches:
    """Empty caches whose length is an array in JAX, so that one compiled step serves every position."""
    caches = model.empty_cache(1, capacity, like=like)
    if backend_of(like).name != "jax":
        return caches
    zero = import_module("jax.numpy").int32(0)
    return tuple(empty._replace(length=zero) for empty in caches)


def gumbel(seed: int, position: int, size: int) -> Floats:
    """Standard Gumbel numbers (size,): a function of the seed, the position in the text, and the index alone.

    -log(-log(u)) with u uniform from the words of a counter-based generator, which no library has a say in.
    """
    index = np.arange(size, dtype=np.int32)
    key0, key1 = (np.full_like(index, key) for key in key_of(seed, 0))
    word, _ = threefry2x32(key0, key1, np.full_like(index, position), index)
    uniform = (word + 2.0**31 + 0.5) * 2.0**-32
    drawn: Floats = -np.log(-np.log(uniform))
    return drawn


def scores(logits: Floats, position: int, seed: int | None, temperature: float) -> Floats:
    """Whose largest entry is the next character: the logits, or a draw from softmax(logits / temperature).

    For the draw, argmax(logits / temperature + gumbel) has just that distribution (Gumbel 1954; Maddison 2014,
    arXiv:1411.0030). Scaled by the temperature, the scores stay in units of the logits.
    """
    return logits if seed is None else logits + temperature * gumbel(seed, position, len(logits))


def write(
    model: LanguageModel,
    params: Params,
    prompt: str,
    length: int,
    *,
    seed: int | None = None,
    temperature: float = 0.7,
    piece: int = 32,
) -> Written:
    """`length` characters behind the prompt, in the library of the params. seed=None takes the likeliest each time.

    The prompt goes into the caches `piece` characters at a time, then each character as it is chosen. The
    choice itself is made in float64 on NumPy for all libraries, so that they differ by their logits alone.
    """
    if not prompt:
        raise ValueError(
            "write: expected a prompt, got ''; give one character at least, such as a line break"
        )
    like = params["head"]["w"]
    backend = backend_of(like)
    step, caches = step_of(model, backend.name), caches_for(model, len(prompt) + length, like)
    text, done, margin = encode(prompt), 0, float("inf")
    for _ in range(length):
        while done < len(text):
            part = text[done : done + piece]
            logits, caches = step(params, backend.asarray([part], backend.xp.int32, like), caches)
            done += len(part)
        ranked = scores(np.asarray(backend.to_numpy(logits), np.float64), done, seed, temperature)
        second, best = np.argsort(ranked)[-2:]
        margin = min(margin, float(ranked[best] - ranked[second]))
        text.append(int(best))
    return Written(decode(text[len(prompt) :]), margin)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Goes on with a text, one character at a time.")
    parser.add_argument("--backend", choices=("numpy", "jax", "torch"), default="numpy")
    parser.add_argument("--prompt", default="MACBETH.\n")
    parser.add_argument("--length", type=int, default=400, help="characters to write")
    parser.add_argument("--seed", type=int, help="draw; without a seed, the likeliest character each time")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    given = parser.parse_args(arguments)

    model = LanguageModel()
    params = weights.load(given.weights, like=one_of(given.backend), layer=model)
    how = {"seed": given.seed, "temperature": given.temperature}
    print(given.prompt + write(model, params, given.prompt, given.length, **how).text)


if __name__ == "__main__":
    main()
