"""Trains the language model in JAX, then has NumPy, JAX and PyTorch write the same text from its file.

    python examples/text_generation/train.py

It takes minutes; `generate.py` needs only the file that is here already.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from generate import WEIGHTS, one_of
from language_model import CHARACTERS, decode, encode, language_model
from ngram import tuned
from rich.progress import track

from polyattn import AuxRequest, weights
from polyattn.arrays import Array, backend_of
from polyattn.generation import Choice, Sampling, generate, likeliest
from polyattn.layers import LanguageModel, Params

HERE = Path(__file__).parent
LENGTH = 128  # characters in a training sequence
BATCH = 8
Tokens = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Curve(NamedTuple):
    """Bits per character while training."""

    training: list[float]  # of each step
    held_out: dict[int, float]  # by the number of steps done


class Written(NamedTuple):
    """A text that all three libraries wrote."""

    text: str
    margin: float  # how close a decision came to being another one, in units of the logits
    apart: float  # by how much the libraries' logits of the text differ at most


def read() -> tuple[Tokens, int]:
    """The text as numbers, and where its last tenth begins, which is held out."""
    text = (HERE / "shakespeare.txt").read_text("ascii")
    return np.asarray(encode(text), np.int32), len(text) * 9 // 10


def bits(model: LanguageModel, params: Params, tokens: Array) -> Array:
    """-log2 p of each token after the first, given those before it: (batch, L + 1) -> (batch, L)."""
    backend = backend_of(tokens)
    xp = backend.xp
    logits = model(params, tokens[:, :-1])
    logits = logits - xp.max(logits, axis=-1, keepdims=True)
    log_p = logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))
    chosen = backend.arange(0, model.embedding.size, tokens) == tokens[:, 1:, None]
    return -xp.sum(xp.where(chosen, log_p, 0.0), axis=-1) / math.log(2.0)


def evaluate(f: Callable[[Params, Array], Array], params: Params, tokens: Tokens, start: int) -> float:
    """Bits per character of tokens[start:], each of them given at least LENGTH characters before it.

    f is `bits` of a model; windows of 2 LENGTH characters, of which the last LENGTH count, end at the end.
    """
    like = next(iter(weights.flatten(params).values()))
    backend, windows = backend_of(like), -(-(len(tokens) - start) // LENGTH)
    first = len(tokens) - 1 - (windows + 1) * LENGTH
    rows = first + LENGTH * np.arange(windows)[:, None] + np.arange(2 * LENGTH + 1)
    found = []
    for some in np.split(rows, range(16, windows, 16)):
        of_each = f(params, backend.from_numpy(tokens[some], like))
        found.append(backend.to_numpy(of_each)[:, LENGTH:].reshape(-1))
    return float(np.concatenate(found)[start - len(tokens) :].astype(np.float64).mean())


def train(
    model: LanguageModel, tokens: Tokens, start: int, steps: int, seed: int, looks: int = 8
) -> tuple[Params, Curve]:
    """Params after `steps` steps on tokens[:start], and the curve with `looks` looks at tokens[start:].

    AdamW with a learning rate that rises for a twentieth of the steps and falls as a cosine.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 20, steps, 4e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1))
    params = model.init(seed, like=jnp.zeros(()))
    state = optimizer.init(params)

    def update(params: Params, state: Any, batch: Array) -> tuple[Params, Any, Array]:
        loss, gradient = jax.value_and_grad(lambda params: bits(model, params, batch).mean())(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, loss

    step, measure = jax.jit(update), jax.jit(partial(bits, model))
    rng = np.random.default_rng(seed)
    curve = Curve([], {})
    for done in track(range(1, steps + 1), "training"):
        begin = rng.integers(0, start - LENGTH, (BATCH, 1))
        params, state, loss = step(params, state, jnp.asarray(tokens[begin + np.arange(LENGTH + 1)]))
        curve.training.append(float(loss))
        if done % max(1, steps // looks) == 0:
            curve.held_out[done] = evaluate(measure, params, tokens, start)
    return params, curve


def same_text(path: Path, prompt: str, length: int, choose: Choice) -> Written:
    """What all three libraries write behind the prompt, with the model of the file; RuntimeError if it is not the same."""
    model, given = language_model(), encode(prompt)
    written, margins, logits = {}, [], []
    for name in ("numpy", "jax", "torch"):
        like = one_of(name)
        params = weights.load(path, like=like, layer=model)
        tokens = list(generate(model, params, given, length=length, choose=choose))
        written[name] = [token.number for token in tokens]
        margins.append(min(token.margin for token in tokens))
        backend = backend_of(like)
        whole = backend.asarray([given + written["numpy"]], backend.xp.int32, like)
        logits.append(backend.to_numpy(backend.jit(model)(params, whole)))
    texts = {name: decode(numbers) for name, numbers in written.items()}
    if len(set(texts.values())) != 1:
        raise RuntimeError(f"expected one text from all libraries, got {texts}")
    return Written(texts["numpy"], min(margins), float(np.ptp(logits, axis=0).max()))


def picture(
    path: Path, curve: Curve, lines: Mapping[str, float], params: Params, passage: Sequence[int]
) -> None:
    """The learning curve beside the baselines, and where a head of each block looks in a passage."""
    from matplotlib.figure import Figure

    model = language_model()
    aux = model.run(params, jnp.asarray([passage]), return_aux=AuxRequest(weights=True)).aux
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes: dict[Any, Any] = figure.subplot_mosaic([["curve", 0, 1], ["curve", 2, 3]], width_ratios=[2, 1, 1])
    smooth = np.convolve(curve.training, np.ones(50) / 50, "valid")
    axes["curve"].plot(np.arange(len(smooth)) + 50, smooth, color="0.7", label="model, training text")
    axes["curve"].plot(
        list(curve.held_out), list(curve.held_out.values()), "o-", color="C0", label="model, held out"
    )
    for color, (name, value) in zip(("C1", "C3"), lines.items(), strict=True):
        axes["curve"].axhline(value, color=color, linestyle="--", label=f"{name}, held out")
    axes["curve"].set(xlabel="steps", ylabel="bits per character", ylim=(1.8, 4.5))
    axes["curve"].legend()
    shown = decode(passage).replace("\n", "↵")
    for block, seen in enumerate(aux):
        panel, head = axes[block], 1
        panel.imshow(np.sqrt(seen.weights[0, head]), cmap="Blues", vmin=0, vmax=1)
        panel.set_xticks(range(len(shown)), shown, fontsize=7)
        panel.set_yticks(range(len(shown)), shown, fontsize=7)
        panel.tick_params(length=0, pad=1)
        panel.set_title(f"block {block + 1}, head {head + 1}", fontsize=9)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a language model on characters and writes with it.")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "out")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)

    tokens, start = read()
    text, size = decode(tokens.tolist()), len(CHARACTERS)
    lines = {}
    for orders in ([3], [5, 6, 7, 8]):
        baseline = tuned(text[:start], orders, size)
        lines[f"{baseline.order}-gram"] = baseline.bits(text, start)

    model, began = language_model(), perf_counter()
    params, curve = train(model, tokens, start, given.steps, given.seed)
    print(f"{len(text):,} characters, the last {len(text) - start:,} held out; {given.steps} steps")
    print(f"trained in {perf_counter() - began:.0f} s")
    path = given.out / WEIGHTS.name
    weights.save(params, path)

    print(f"\nbits per character, held out\n  uniform  {math.log2(size):.4f}")
    for name, value in lines.items():
        print(f"  {name}   {value:.4f}")
    for name in ("numpy", "jax", "torch"):
        f = partial(bits, model)
        loaded = weights.load(path, like=one_of(name), layer=model)
        print(f"  {name:8} {evaluate(jax.jit(f) if name == 'jax' else f, loaded, tokens, start):.4f}")

    ways = {"the likeliest": likeliest, "drawn, seed 1": Sampling(seed=1, temperature=0.7)}
    for how, choose in ways.items():
        written = same_text(path, "MACBETH.\n", 400, choose)
        print(f"\n{how}: numpy, jax and torch wrote the same {len(written.text)} characters")
        print(f"nearest decision {written.margin:.1e}, logits apart by at most {written.apart:.1e}\n")
        print("MACBETH.\n" + written.text)
    passage = encode("\nTo-morrow, and to-morrow")
    picture(given.out / "figure.png", curve, lines, params, passage)


if __name__ == "__main__":
    main()
