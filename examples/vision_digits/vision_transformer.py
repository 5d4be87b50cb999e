"""A vision transformer on any array library: an image is a sentence whose words are patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyattn import AttentionAux, AuxRequest, layers
from polyattn.arrays import Array, backend_of
from polyattn.layers import AttentionLayer, LayerResult, Parameter, Params


@dataclass(frozen=True)
class VisionTransformer(AttentionLayer):
    """Images (batch, size, size) -> logits (batch, classes).

        x = [class_token; patches W + b] + positions        (batch, 1 + (size / patch)^2, dim)
        x = depth x (x + attention(norm(x)), x + mlp(norm(x))) -> norm
        logits = head(x of the class token)

    The class token is a question to all patches, the same for every image; its last state is the answer.
    Attention does not know where a patch is: the table of positions tells it. The aux of
    `run` has an entry for each block.

    Source: Dosovitskiy 2020, arXiv:2010.11929, section 3.1.
    """

    size: int = 8
    patch: int = 2
    classes: int = 10
    dim: int = 64
    heads: int = 4
    hidden: int = 128
    depth: int = 2
    dropout_rate: float = 0.1  # of what each part of a block adds

    @property
    def encoder(self) -> layers.Encoder:
        """The blocks and the norm behind them."""
        norm = layers.LayerNorm(self.dim, epsilon=1e-5)
        attention = layers.MultiHeadAttention(self.dim, self.heads)
        mlp = layers.MLP(self.dim, self.hidden, activation="relu")
        block = layers.EncoderBlock(attention, mlp, norm, norm_first=True, dropout_rate=self.dropout_rate)
        return layers.Encoder(block, self.depth, final_norm=norm)

    def parameters(self) -> Mapping[str, Any]:
        patches = (self.size // self.patch) ** 2
        return {
            "embedding": layers.Linear(self.patch**2, self.dim),
            "class_token": Parameter((self.dim,), layers.Normal(0.5)),
            # About as large as the embedded patches, so that places differ from the first step on.
            "positions": Parameter((1 + patches, self.dim), layers.Normal(0.5)),
            "encoder": self.encoder,
            "head": layers.Linear(self.dim, self.classes),
        }

    def run(
        self,
        params: Params,
        images: Array,
        *,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        xp = self.check(params, self.size, images=images).xp
        parts = self.parameters()
        x = parts["embedding"](params["embedding"], cut(images, self.patch))
        question = xp.broadcast_to(params["class_token"], (x.shape[0], 1, self.dim))
        x = xp.concat([question, x], axis=1) + params["positions"]
        found = self.encoder.run(params["encoder"], x, dropout_seed=dropout_seed, return_aux=return_aux)
        return found._replace(out=parts["head"](params["head"], found.out[:, 0, :]))


def cut(images: Array, patch: int) -> Array:
    """Squares of patch x patch pixels, row by row: (batch, size, size) -> (batch, (size / patch)^2, patch^2).

    >>> import numpy as np
    >>> cut(np.arange(16).reshape(1, 4, 4), 2)[0, 1].tolist()
    [2, 3, 6, 7]
    """
    xp = backend_of(images).xp
    batch, size, _ = images.shape
    n = size // patch
    squares = xp.permute_dims(xp.reshape(images, (batch, n, patch, n, patch)), (0, 1, 3, 2, 4))
    return xp.reshape(squares, (batch, n * n, patch * patch))


def rollout(aux: Sequence[AttentionAux]) -> Array:
    """How much of each input token reaches each output token: (batch, tokens, tokens), rows that sum to 1.

        A_depth ... A_1,   A_i = (weights of block i, mean over heads, + identity) / 2

    The identity stands for the residual connection (Abnar and Zuidema 2020, arXiv:2005.00928, section 3).
    """
    xp = backend_of(aux[0].weights).xp
    reached: Array | None = None
    for block in aux:
        weights = xp.mean(block.weights, axis=1)
        step = 0.5 * (weights + xp.eye(weights.shape[-1], dtype=weights.dtype))
        reached = step if reached is None else step @ reached
    return reached
