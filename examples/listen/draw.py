"""Draws where the decoder listens before each token that it writes, below the sound itself.

python examples/listen/draw.py
python examples/listen/draw.py talk.wav --figure talk.png      # of its first thirty seconds
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer

from polyattn.models.sound import RATE, SAMPLES, log_mel, read_wave, recording
from polyattn.models.whisper import alignment, load, transcribe

HERE = Path(__file__).parent


def main(
    file: Annotated[Path | None, typer.Argument(help="a wave file; without it, a recording of ours")] = None,
    figure: Annotated[Path, typer.Option(help="where to draw")] = HERE / "figure.png",
) -> None:
    """The cross-attention of a transcription as a picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    samples = read_wave(recording() if file is None else file)[:SAMPLES]
    model, features = load(np.zeros((), np.float32)), log_mel(samples).astype(np.float32)
    tokens = [token.number for token in transcribe(model, features)]
    seconds = len(samples) / RATE
    weights = alignment(model, features, tokens)[:, : round(seconds * 50)]

    fig, (sound, seen) = plt.subplots(
        2, 1, figsize=(9, 5.5), layout="constrained", sharex=True, height_ratios=(1, 3)
    )
    sound.plot(np.arange(len(samples)) / RATE, samples, color="#767676", linewidth=0.4)
    sound.set(yticks=[], ylabel="sound")
    seen.imshow(
        weights / weights.max(-1, keepdims=True),
        extent=(0.0, seconds, len(tokens) - 0.5, -0.5),
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
    )
    seen.set(
        xlabel="seconds", yticks=range(len(tokens)), yticklabels=[model.tokens.decode([t]) for t in tokens]
    )
    fig.savefig(figure, dpi=80)
    plt.close(fig)


if __name__ == "__main__":
    typer.run(main)
