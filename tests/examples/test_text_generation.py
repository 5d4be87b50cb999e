"""A language model on characters: three libraries write the same text from one file."""

from __future__ import annotations

import doctest
import importlib.util
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shared.running import mapped

from polyattn import weights
from polyattn.generation import likeliest
from polyattn.truth.rounding import noise

FOLDER = Path(__file__).parents[2] / "examples/text_generation"
FILE = FOLDER / "model.safetensors"
LIBRARIES = ("numpy", "jax", "torch")


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The files of the example by name; train.py under another one, for other examples have a train.py too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        files = {}
        for name in ("language_model", "generate", "ngram", "train"):
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            files[name] = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, files[name])
            spec.loader.exec_module(files[name])
        yield SimpleNamespace(**files)


@pytest.fixture(scope="module")
def text() -> str:
    return (FOLDER / "shakespeare.txt").read_bytes().decode("ascii")


def _loaded(example: SimpleNamespace, library: str) -> tuple[Any, Any]:
    """The model, and its params from the shipped file."""
    model = example.language_model.language_model()
    return model, weights.load(FILE, like=example.generate.one_of(library), layer=model)


def test_all_libraries_write_the_same_text(example: SimpleNamespace) -> None:
    prompt = "MACBETH.\nIs this a dagger which I see before me,"
    written = example.train.same_text(FILE, prompt, 48, likeliest)  # raises unless it is the same
    assert len(written.text) == 48
    model, params = _loaded(example, "numpy")
    tokens = np.asarray([example.language_model.encode(prompt)])
    true = mapped(lambda x: x.astype(np.float64), params)
    bound = 4 * noise(lambda number: model(mapped(number, true), tokens))
    assert written.apart <= 2 * bound < 1e-3 < written.margin


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_command_writes_what_the_readme_shows(
    example: SimpleNamespace, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example.generate.main(["--backend", library, "--seed", "1", "--length", "87"])
    assert capsys.readouterr().out.rstrip("\n") in (FOLDER / "README.md").read_text()


def test_a_text_may_be_longer_than_every_training_sequence(example: SimpleNamespace, text: str) -> None:
    length = example.train.LENGTH
    model, params = _loaded(example, "numpy")
    tokens = example.language_model.encode(text[-5 * length :])
    bits = example.train.bits(model, params, np.asarray([tokens]))[0]
    assert bits[2 * length :].mean() < 1.5 * bits[: 2 * length].mean()


def test_the_file_has_the_bits_per_character_that_the_readme_states(example: SimpleNamespace) -> None:
    model, params = _loaded(example, "torch")
    tokens, start = example.train.read()
    f = partial(example.train.bits, model)
    stated = re.search(r"^  torch +(\d\.\d{4})$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert stated is not None
    # half of the last digit, and as much again for rounding
    assert abs(example.train.evaluate(f, params, tokens, start) - float(stated[1])) < 1e-4


@pytest.mark.slow
def test_a_short_training_beats_the_frequencies_of_the_characters(
    example: SimpleNamespace, text: str, tmp_path: Path
) -> None:
    tokens, start = example.train.read()
    tokens = tokens[: start + 2048]
    model = example.language_model.language_model(dim=48, num_heads=2, hidden_dim=96, depth=2)
    params, curve = example.train.train(model, tokens, start, 80, 0, looks=1)
    frequencies = example.ngram.NGram(example.ngram.count(text[:start], 1), 1, model.embedding.size, 1.0)
    baseline = frequencies.bits(text[: start + 2048], start)
    assert curve.training[0] > 0.95 * math.log2(model.embedding.size)  # it begins without knowledge
    assert np.mean(curve.training[-10:]) < baseline - 0.5
    assert curve.held_out[80] < baseline - 0.5

    file, bits = tmp_path / "model.safetensors", partial(example.train.bits, model)
    weights.save(params, file)
    found = [curve.held_out[80]]
    for library in ("numpy", "torch"):
        loaded = weights.load(file, like=example.generate.one_of(library), layer=model)
        found.append(example.train.evaluate(bits, loaded, tokens, start))
    true = weights.load(file, like=np.zeros(()))
    rows = tokens[None, -129:].astype(np.int64)
    allowed = 4 * noise(lambda number: bits(mapped(number, true), rows))
    assert np.ptp(found) <= allowed < 1e-3


@pytest.mark.slow
def test_a_training_is_a_function_of_its_seed(example: SimpleNamespace) -> None:
    tokens, start = example.train.read()
    model = example.language_model.language_model(dim=12, num_heads=1, hidden_dim=8, depth=1)
    part = tokens[: start + 100]
    (first, curve), (again, other) = (
        example.train.train(model, part, start, 3, 3, looks=1) for _ in range(2)
    )
    assert curve == other
    first, again = weights.flatten(first), weights.flatten(again)
    assert all((x == again[name]).all() for name, x in first.items())


@pytest.mark.parametrize("held_out", [1, 127, 128, 129, 5000])
def test_the_evaluation_counts_every_held_out_character_once(example: SimpleNamespace, held_out: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 68, 6000, dtype=np.int32)
    seen: Counter[int] = Counter()

    def f(params: Any, some: Any) -> Any:
        seen.update(len(row) for row in some)
        return some[:, 1:].astype(np.float32)

    params = {"any": np.zeros(1, np.float32)}
    found = example.train.evaluate(f, params, tokens, len(tokens) - held_out)
    assert found == pytest.approx(tokens[-held_out:].mean(), rel=1e-12)
    assert seen == {2 * example.train.LENGTH + 1: -(-held_out // example.train.LENGTH)}


def test_an_ngram_model_gives_probabilities(example: SimpleNamespace) -> None:
    model = example.ngram.NGram(example.ngram.count("abracadabra", 3), 3, 5, 2.0)
    for context in ("ab", "ra", "zz", "ca"):
        total = sum(2.0 ** -model.bits(context + follower, 2) for follower in "abcdr")
        assert total == pytest.approx(1.0, rel=1e-12)


def test_an_ngram_model_is_the_formula(example: SimpleNamespace) -> None:
    model = example.ngram.NGram(example.ngram.count("aab", 2), 2, 4, 1.0)
    single = (2 + 2 * (1 / 4)) / (3 + 2)  # "a": twice of 3, two kinds of characters
    pair = (1 + 2 * single) / (2 + 2)  # "aa": once of the 2 times that something followed "a"
    assert model.bits("aa", 1) == pytest.approx(-math.log2(pair), rel=1e-12)


def test_the_baseline_is_tuned_without_the_held_out_text(example: SimpleNamespace, text: str) -> None:
    part = text[:20_000]
    best = example.ngram.tuned(part, [2, 3], 68)
    cut = len(part) * 9 // 10
    rest = example.ngram.count(part[:cut], 3)
    assert best.counts == example.ngram.count(part, best.order)
    for order in (2, 3):
        for weight in (2.0, 8.0, 32.0):
            other = example.ngram.NGram(rest, order, 68, weight)
            assert example.ngram.NGram(rest, best.order, 68, best.weight).bits(part, cut) <= other.bits(
                part, cut
            )


def test_the_text_is_plain_and_only_shakespeare(example: SimpleNamespace, text: str) -> None:
    assert set(text) == set(example.language_model.CHARACTERS)
    assert not re.search(r"(?i)gutenberg|\be-?texts?\b|copyright|http|www\.|ascii", text)
    assert not re.search(r"^ | $|  |\n{3}|\r|\t", text, re.MULTILINE)
    titles = re.findall(r"^(.+)\n\nACT I\.", text, re.MULTILINE)
    assert titles == [
        "OTHELLO, THE MOOR OF VENICE",
        "JULIUS CAESAR",
        "TWELFTH NIGHT; OR, WHAT YOU WILL",
        "THE TEMPEST",
        "MACBETH",
    ]
    assert 300_000 < len(text) < 600_000


def test_characters_are_numbers_and_back(example: SimpleNamespace, text: str) -> None:
    module: ModuleType = example.language_model
    assert doctest.testmod(module).failed == 0
    assert module.decode(module.encode(text[:1000])) == text[:1000]
    with pytest.raises(ValueError, match=r"expected only the characters .*, got '7é' too"):
        module.encode("café 7")


def test_the_shipped_file_is_small(example: SimpleNamespace) -> None:
    assert FILE.stat().st_size < 1_500_000
    assert (FOLDER / "figure.png").stat().st_size < 150_000
