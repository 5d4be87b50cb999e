"""Trains the translator twice, with multi-head and with additive attention to the source, and compares.

python examples/seq2seq_dates/train.py
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import torch
from dates import SOURCE_LENGTH, TARGET_LENGTH, examples, letters, numbers, split
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from translator import CROSS_ATTENTION, Translator, shifted, source_mask

from polyattn import masks, weights
from polyattn.arrays import Array, backend_of
from polyattn.gradients import vjp
from polyattn.layers import Params

HERE = Path(__file__).parent
BATCH = 32
SHOWN = ("Sunday the 3rd of May 1998", "Feb 29, 2024")  # in the figure

#: library -> how its users make an array, and how they wrap a function that needs no gradient
LIBRARIES: dict[str, tuple[Callable[[np.ndarray], Array], Callable[..., Any]]] = {
    "NumPy": (np.asarray, lambda f: f),
    "JAX": (jnp.asarray, jax.jit),
    "PyTorch": (torch.from_numpy, torch.no_grad()),
}


def loss(model: Translator, params: Params, sources: Array, targets: Array) -> Array:
    """Mean cross-entropy of a character in nats, each one predicted from the true ones before it."""
    logits = model(params, sources, shifted(targets), source_mask(sources), masks.causal())
    xp = backend_of(logits).xp
    top = xp.max(logits, axis=-1, keepdims=True)
    total = xp.log(xp.sum(xp.exp(logits - top), axis=-1, keepdims=True)) + top
    right = xp.astype(targets, xp.int32)[..., None] == xp.arange(logits.shape[-1])
    return xp.mean(total) - xp.mean(xp.sum(xp.where(right, logits, 0.0), axis=-1))


def by_jax(model: Translator, *given: Any) -> tuple[Array, Params]:
    return jax.value_and_grad(loss, argnums=1)(model, *given)


def by_numpy(model: Translator, params: Params, *given: Any) -> tuple[Array, Params]:
    """The same without autodiff of the library, on arrays that write down what is computed from them."""
    value, pullback = vjp(lambda params: loss(model, params, *given), params)
    return value, pullback(1.0)[0]


def train(
    model: Translator,
    dates: Sequence[date],
    *,
    steps: int,
    seed: int,
    title: str = "",
    backend: str = "jax",
    losses: list[float] | None = None,
) -> Params:
    """The params after `steps` steps of Adam, every step on new texts for 32 of the dates.

    backend: who computes the loss and its gradient, "jax" or "numpy". losses: a list to which they are appended.
    """
    rng = random.Random(seed)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    params: Params = model.init(seed, like=np.zeros((), np.float32))  # in JAX the same numbers
    state = optimizer.init(params)

    derived = jax.jit(by_jax, static_argnums=0) if backend == "jax" else by_numpy

    @jax.jit
    def moved(params: Params, state: Any, gradient: Params) -> tuple[Params, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=steps, loss=float("nan"))
        for _ in range(steps):
            value, gradient = derived(model, params, *examples(rng.choices(dates, k=BATCH), rng))
            params, state = moved(params, state, gradient)
            if backend == "numpy":
                params = jax.tree.map(np.asarray, params)
            if losses is not None:
                losses.append(float(value))
            progress.update(task, advance=1, loss=float(value))
    return params


def translate(model: Translator, file: Path, sources: np.ndarray, library: str) -> np.ndarray:
    """What a library writes for the sources, with the weights in the file."""
    array, compiled = LIBRARIES[library]
    params = weights.load(file, like=array(np.zeros((), np.float32)), layer=model)
    return np.asarray(model.greedy(params, array(sources), compiled))


def draw(models: dict[str, Translator], out: Path, figure: Path) -> None:
    """The weights of the attention to the source, the mean over heads: what is read (x) for what is written (y)."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(len(SHOWN), len(models), figsize=(11, 7.5), layout="constrained", squeeze=False)
    sources = numbers(SHOWN, SOURCE_LENGTH)
    for column, (name, model) in enumerate(models.items()):
        params = weights.load(out / f"{name}.safetensors", like=np.zeros(()), layer=model)
        written = model.greedy(params, sources)
        aligned = model.alignment(params, sources, shifted(written)).mean(axis=1)
        for axis, text, row, map_ in zip(axes[:, column], SHOWN, written, aligned, strict=True):
            axis.imshow(map_[:, : len(text)], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(text)), list(text), family="monospace")
            axis.set_yticks(range(TARGET_LENGTH), list(letters(row)), family="monospace")
            axis.set_title(f"{name} cross-attention")
    fig.savefig(figure, dpi=80)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, translate the held-out dates on three libraries, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600, help="of training, for each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--backend", choices=("jax", "numpy"), default="jax", help="who computes the gradients in training"
    )
    parser.add_argument("--held-out", type=int, default=2000, help="dates that are kept for the test")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the weights")
    parser.add_argument("--figure", type=Path, default=HERE / "figure.png")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    rng = random.Random(options.seed)
    known, held_out = split(rng, options.held_out)
    sources, targets = examples(held_out, rng)
    table = Table(
        "cross-attention",
        *LIBRARIES,
        "answers differ",
        title=f"exact match on {len(held_out)} held-out dates",
    )
    models = {name: Translator.of(attention) for name, attention in CROSS_ATTENTION.items()}
    for name, model in models.items():
        how = {"steps": options.steps, "seed": options.seed, "backend": options.backend}
        params = train(model, known, title=name, **how)
        file = options.out / f"{name}.safetensors"
        weights.save(params, file)
        answers = [translate(model, file, sources, library) for library in LIBRARIES]
        right = [(answer == targets).all(axis=1).mean() for answer in answers]
        differ = np.any([answer != answers[0] for answer in answers], axis=(0, 2)).sum()
        table.add_row(name, *(f"{share:.2%}" for share in right), str(differ))
    draw(models, options.out, options.figure)
    Console().print(table)


if __name__ == "__main__":
    main()
