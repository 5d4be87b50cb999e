"""The pretrained encoder gives the embeddings of `transformers`, on every library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from rounding import Rounded

from polyattn.layers.activations import erf
from polyattn.parity.minilm import MINILM, SENTENCES, load, model_directory, tokenize
from polyattn.parity.real import real_cases
from polyattn.testing import NumpyBench, check_backend

Floats = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def tokens() -> tuple[Floats, Floats]:
    ids, lengths = tokenize(SENTENCES)
    return np.asarray(ids, np.int32), np.asarray(lengths, np.int32)


@pytest.fixture(scope="module")
def true_embeddings(tokens: tuple[Floats, Floats]) -> Floats:
    return MINILM(jax.tree.map(lambda x: x.astype(np.float64), load(np.zeros(()))), *tokens)


@pytest.fixture(scope="module")
def noise(tokens: tuple[Floats, Floats], true_embeddings: Floats) -> float:
    """What rounding to float32 at every step does to the embeddings, worst of four draws."""
    params = jax.tree.map(lambda x: x.astype(np.float64).view(Rounded), load(np.zeros(())))
    return max(float(np.abs(np.asarray(MINILM(params, *tokens)) - true_embeddings).max()) for _ in range(4))


def _jax(tokens: Floats, lengths: Floats) -> Floats:
    return np.asarray(
        jax.jit(MINILM)(load(jax.numpy.zeros(())), jax.numpy.asarray(tokens), jax.numpy.asarray(lengths))
    )


def _torch(tokens: Floats, lengths: Floats) -> Floats:
    return MINILM(load(torch.zeros(())), torch.from_numpy(tokens), torch.from_numpy(lengths)).numpy()


def _transformers(tokens: Floats, lengths: Floats) -> Floats:
    from transformers import BertModel

    model = BertModel.from_pretrained(
        model_directory(), local_files_only=True, attn_implementation="eager"
    ).eval()
    real = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        hidden = model(torch.from_numpy(tokens).long(), attention_mask=real.long()).last_hidden_state
    mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "embed",
    [lambda *x: MINILM(load(np.zeros(())), *x), _jax, _torch, _transformers],
    ids=["numpy", "jax", "torch", "transformers"],
)
def test_embeddings_are_the_truth_up_to_rounding(
    embed: Callable[[Floats, Floats], Floats],
    tokens: tuple[Floats, Floats],
    true_embeddings: Floats,
    noise: float,
) -> None:
    assert 1e-9 < noise < 1e-5
    assert np.abs(embed(*tokens) - true_embeddings).max() <= 4 * noise


def test_padding_does_not_change_a_sentence(tokens: tuple[Floats, Floats]) -> None:
    ids, lengths = tokens
    params = load(np.zeros(()))
    alone = MINILM(params, ids[2:3, : lengths[2]], lengths[2:3])
    padded = MINILM(params, ids[2:3], lengths[2:3])
    other = ids[2:3].copy()
    other[0, lengths[2] :] = 777
    assert (MINILM(params, other, lengths[2:3]) == padded).all()
    assert np.abs(alone - padded).max() < 1e-6


def test_the_queries_of_all_layers_are_real_input() -> None:
    outcomes = check_backend(NumpyBench(), dtypes=["float32"], only=real_cases())
    assert len(outcomes) == MINILM.encoder.depth


def test_erf_is_that_of_scipy() -> None:
    from scipy.special import erf as scipy_erf

    x = np.concatenate([np.linspace(-8, 8, 4001), [0.0, 1e-300, -1e-8]])
    assert (np.abs(erf(x) - scipy_erf(x)) <= (4 + np.minimum(x**2, 36)) * 2.0**-53).all()
