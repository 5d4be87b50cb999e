"""Trains a small vision transformer on handwritten digits in PyTorch, then reads its file with three libraries.

python examples/vision_digits/train.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure
from polyattn_torch import Module
from rich.progress import track
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from vision_transformer import VisionTransformer, rollout

from polyattn import AuxRequest, weights
from polyattn.dropout import fold_in

HERE = Path(__file__).parent
MODEL = VisionTransformer()
BATCH = 64
LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "NumPy": np.asarray,
    "JAX": jnp.asarray,
    "PyTorch": torch.from_numpy,
}
MEAN, SCALE = 5.0, 6.0  # about the mean and the standard deviation of grey, which is 0 to 16

Floats = np.ndarray[Any, np.dtype[np.float32]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


class Digits(NamedTuple):
    """Images (n, 8, 8), (grey - MEAN) / SCALE, and which digit each of them shows (n,)."""

    images: Floats
    labels: Integers


def digits() -> dict[str, Digits]:
    """scikit-learn's 1797 digits in three parts: 1197 to "train", 240 for "validation", 360 "held out".

    The parts do not depend on the seed of a training, so that no training ever sees what is held out.
    """
    found = load_digits()
    images = ((found.images - MEAN) / SCALE).astype(np.float32)
    order = np.random.default_rng(2024).permutation(len(images))
    parts = zip(("held out", "validation", "train"), np.split(order, [360, 600]), strict=True)
    return {name: Digits(images[rows], found.target[rows].astype(np.int64)) for name, rows in parts}


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Every image moved by -1, 0 or 1 pixels each way, at random; grey 0 comes in from outside."""
    n, size, _ = images.shape
    rows, columns = rng.integers(0, 3, (2, n, 1)) + np.arange(size)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=-MEAN / SCALE)
    moved: Floats = framed[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def train(data: Digits, steps: int, seed: int) -> tuple[Module, list[float]]:
    """The trained module and the loss of each step, functions of the arguments alone."""
    rng = np.random.default_rng(seed)
    module = Module(MODEL, seed=seed).train()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    losses = []
    for step in track(range(steps), "training"):
        rows = rng.choice(len(data.labels), BATCH, replace=False)
        images = torch.from_numpy(shifted(data.images[rows], rng))
        # Without a seed the module would draw one from PyTorch's generator; in eval mode it refuses one.
        logits = module(images, dropout_seed=fold_in(seed, step))
        loss = cross_entropy(logits, torch.from_numpy(data.labels[rows]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return module.eval(), losses


def logits_of(file: Path, images: Floats, library: str) -> Floats:
    """Logits (n, 10) of the saved model, computed on arrays of one library, as NumPy."""
    given = LIBRARIES[library](images)
    model = jax.jit(MODEL) if library == "JAX" else MODEL
    return np.asarray(model(weights.load(file, like=given, layer=MODEL), given))


def draw(file: Path, data: Digits, path: Path) -> None:
    """The first image of every digit, and over it how much of each patch reaches the answer."""
    chosen = [int(np.argmax(data.labels == digit)) for digit in range(10)]
    images = data.images[chosen]
    params = weights.load(file, like=images)
    logits, _, aux = MODEL.run(params, images, return_aux=AuxRequest(weights=True))
    side = MODEL.size // MODEL.patch
    share = rollout(aux)[:, 0, 1:].reshape(-1, side, side)  # row 0: the class token, which is also column 0
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    figure.suptitle(
        "above: the answer of the model; below: how much of each patch reaches it (attention rollout)",
        fontsize=10,
    )
    for digit, axes in enumerate(figure.subplots(2, 10).T):
        says = int(logits[digit].argmax())
        axes[0].set_title(f"{says}", color="black" if says == digit else "red")
        for panel in axes:
            panel.imshow(images[digit], cmap="gray", extent=(0, side, side, 0))
            panel.axis("off")
        orange = np.broadcast_to(np.asarray([1.0, 0.45, 0.0]), (side, side, 3))
        axes[1].imshow(orange, alpha=0.9 * share[digit] / share.max(), extent=(0, side, side, 0))
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, saves, and measures the file on every library."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="batches of 64 images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, shifts and dropout")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for weights and figure")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="for tuning: do not train on the validation part, and measure on it instead of on the held-out one",
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "vision_digits.safetensors"
    torch.set_num_threads(1)  # products this small are not worth waiting for a second thread

    parts = digits()
    seen, unseen = parts["train"], parts["validation"]
    if not options.validate:
        images, labels = (np.concatenate([a, b]) for a, b in zip(seen, unseen, strict=True))
        seen = Digits(images, labels)
        unseen = parts["held out"]
    start = time.perf_counter()
    module, losses = train(seen, options.steps, options.seed)
    print(
        f"{options.steps} steps on {len(seen.labels)} images in {time.perf_counter() - start:.0f} s;", end=" "
    )
    print(f"loss of the first 50 {np.mean(losses[:50]):.2f}, of the last 50 {np.mean(losses[-50:]):.2f}")
    weights.save(module.params(), file)

    logits = {library: logits_of(file, unseen.images, library) for library in LIBRARIES}
    for library, found in logits.items():
        right = int((found.argmax(-1) == unseen.labels).sum())
        print(
            f"{library:8}{right} of {len(unseen.labels)} unseen images right, {right / len(unseen.labels):.2%}"
        )
    apart = max(float(np.abs(found - logits["NumPy"]).max()) for found in logits.values())
    if any((found.argmax(-1) != logits["NumPy"].argmax(-1)).any() for found in logits.values()):
        raise SystemExit(f"the answers differ between libraries; largest difference of a logit {apart:.1e}")
    print(f"the same answer to every image; largest difference of a logit {apart:.1e}")
    draw(file, unseen, options.out / "figure.png")


if __name__ == "__main__":
    main()
