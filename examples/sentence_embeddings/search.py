"""Semantic search with a pretrained sentence encoder: the same ranking from NumPy, JAX and PyTorch.

    python examples/sentence_embeddings/search.py
    python examples/sentence_embeddings/search.py --query "an arrest without a reason"

The encoder is `polyattn.models.minilm`: all-MiniLM-L6-v2 as a page of `polyattn.layers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.models.minilm import MINILM, load, tokenize
from polyattn.models.search import OPENINGS, QUERIES, rank
from polyattn.weights import convert

HERE = Path(__file__).parent
Floats = np.ndarray[Any, Any]


def embed(sentences: Sequence[str], library: str) -> Floats:
    """Embeddings (n, 384) of length 1, computed on arrays of one library, as NumPy."""
    tokens, lengths = (np.asarray(x, np.int32) for x in tokenize(sentences))
    like = array_of(library)
    inputs = convert({"tokens": tokens, "lengths": lengths}, like=like)
    embeddings = MINILM(load(like), inputs["tokens"], inputs["lengths"])
    return np.asarray(embeddings)


def array_of(library: str) -> Any:
    """An array of that library, to say where to compute."""
    if library == "jax":
        import jax.numpy as jnp

        return jnp.zeros(())
    if library == "torch":
        import torch

        return torch.zeros(())
    return np.zeros((), np.float32)


def draw(similarity: Floats, queries: Sequence[str], titles: Sequence[str], path: Path) -> None:
    """The similarity of every query with every text; the nearest is framed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.4), layout="constrained")
    image = axes.imshow(similarity, cmap="magma", vmin=0, vmax=0.7)
    axes.set_xticks(range(len(titles)), titles, rotation=45, ha="right")
    axes.set_yticks(range(len(queries)), queries)
    for row, column in enumerate(similarity.argmax(axis=1)):
        axes.add_patch(
            plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2)
        )
    figure.colorbar(image, label="inner product of embeddings", shrink=0.7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ranks the openings for each query on every library, and draws the similarities."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--query", action="append", help="search for this instead of the queries of the example"
    )
    parser.add_argument("--figure", type=Path, help="draw the similarities into this file")
    options = parser.parse_args(arguments)
    queries, titles = options.query or QUERIES, list(OPENINGS)
    sentences = [*queries, *OPENINGS.values()]
    embeddings = {library: embed(sentences, library) for library in ("numpy", "jax", "torch")}
    rankings = {library: rank(x[: len(queries)], x[len(queries) :]) for library, x in embeddings.items()}
    x = embeddings["numpy"]
    similarity = x[: len(queries)] @ x[len(queries) :].T
    for query, order, row in zip(queries, rankings["numpy"], similarity, strict=True):
        print(f"{query}\n    " + "; ".join(f"{titles[i]} ({row[i]:.2f})" for i in order[:3]))
    apart = max(float(abs(x - other).max()) for other in embeddings.values())
    if not all((ranking == rankings["numpy"]).all() for ranking in rankings.values()):
        raise SystemExit(
            f"the rankings differ between libraries; largest difference of an embedding {apart:.1e}"
        )
    print(f"the same rankings from NumPy, JAX and PyTorch; largest difference of an embedding {apart:.1e}")
    if options.figure:
        draw(similarity, queries, titles, options.figure)


if __name__ == "__main__":
    main()
