"""The pretrained encoder gives the embeddings of `transformers`, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyattn.arrays.special import erf
from polyattn.models import encoder_trial as pretrained
from polyattn.models.minilm import MINILM, load, model_directory, tokenize
from polyattn.models.real import real_cases
from polyattn.models.search import SENTENCES, ranking
from polyattn.models.trial import DTYPES, ModelTrial
from polyattn.onnx import export
from polyattn.parity import ACCEPTANCE
from polyattn.testing import BENCHES, check_backend, load_bench

Floats = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def tokens() -> tuple[Floats, Floats]:
    ids, lengths = tokenize(SENTENCES)
    return np.asarray(ids, np.int32), np.asarray(lengths, np.int32)


def test_the_truth_is_what_transformers_computes_by_itself_in_float64() -> None:
    from transformers import BertModel

    model = BertModel.from_pretrained(
        model_directory(), local_files_only=True, attn_implementation="eager", dtype=torch.float64
    ).eval()
    ids, lengths = pretrained.tokens()
    real = torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        hidden = model(torch.from_numpy(ids).long(), attention_mask=real.long()).last_hidden_state
    mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    theirs = torch.nn.functional.normalize(mean, dim=-1).numpy()
    truth = pretrained.expected()
    assert 1e-9 < truth.noise < 1e-5
    assert np.abs(theirs - truth.values).max() <= ACCEPTANCE * truth.noise * 2.0**-53 / 2.0**-24
    assert (ranking(theirs) == truth.decisions).all()


TRIALS = pretrained.encoder_trials()[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", BENCHES)
def test_embeddings_and_ranking_are_the_same_on_every_library(library: str, dtype: str) -> None:
    outcome = TRIALS[0].judge(load_bench(library), dtype)
    assert outcome.agrees, outcome
    assert set(outcome.etas) == {"embeddings", "ranking"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_and_ranking_are_the_same_in_transformers_with_polyattn(dtype: str) -> None:
    outcome = TRIALS[1].judge(load_bench("torch"), dtype)
    assert outcome.agrees, outcome


def test_a_bench_brings_its_transformers_along_wherever_it_lies() -> None:
    class Elsewhere(type(load_bench("torch"))):  # type: ignore[misc]
        name = "elsewhere"

    assert TRIALS[1].applies(Elsewhere(), "float32")
    assert not TRIALS[1].applies(load_bench("numpy"), "float32")
    outcome = TRIALS[1].judge(Elsewhere(), "float32")
    assert outcome.agrees, outcome


def test_embeddings_and_ranking_are_the_same_in_the_exported_model() -> None:
    import onnxruntime

    ids, lengths = pretrained.tokens()
    example = {"tokens": ids[:2, :3], "lengths": lengths[:2]}
    params = load(np.zeros((), np.float32))
    model = export(MINILM, example, params=params, dynamic={"tokens": {0: "B", 1: "L"}, "lengths": {0: "B"}})
    assert [node.op_type for node in model.graph.node].count("Attention") == MINILM.encoder.depth
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"tokens": ids, "lengths": lengths})
    truth = pretrained.expected()
    assert np.abs(theirs - truth.values).max() <= ACCEPTANCE * truth.noise
    assert (ranking(theirs) == truth.decisions).all()


def test_a_model_that_sees_its_padding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.expected().noise > 0  # the truth, before the tokens change
    ids, lengths = pretrained.tokens()
    monkeypatch.setattr(pretrained, "tokens", lambda: (ids, lengths * 0 + ids.shape[1]))
    outcome = TRIALS[0].judge(load_bench("numpy"), "float32")
    assert outcome.eta > 4
    assert outcome.word == "order"
    crash = ModelTrial("crash", pretrained.QUESTION, lambda *_: 1 / 0).judge(load_bench("numpy"), "float32")  # type: ignore[arg-type, return-value]
    assert crash.error == "ZeroDivisionError: division by zero"


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
    outcomes = check_backend(load_bench("numpy"), dtypes=["float32"], only=real_cases())
    assert len(outcomes) == MINILM.encoder.depth


def test_erf_is_that_of_scipy() -> None:
    from scipy.special import erf as scipy_erf

    x = np.concatenate([np.linspace(-8, 8, 4001), [0.0, 1e-300, -1e-8]])
    assert (np.abs(erf(x, np) - scipy_erf(x)) <= (4 + np.minimum(x**2, 36)) * 2.0**-53).all()
