"""The example that reads dates: its data, its model, and a short training on three libraries."""

from __future__ import annotations

import contextlib
import datetime
import io
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp

from polyattn import masks, weights
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.truth.rounding import noise

Array = np.ndarray[Any, Any]

FOLDER = Path(__file__).parents[2] / "examples" / "seq2seq_dates"
STEPS, HELD_OUT = 120, 32


def _script(name: str) -> ModuleType:
    """A file of the example, under its own name, by which the others import it."""
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dates() -> ModuleType:
    return _script("dates")


@pytest.fixture(scope="module")
def translator(dates: ModuleType) -> ModuleType:
    return _script("translator")


@pytest.fixture(scope="module")
def train(translator: ModuleType) -> ModuleType:
    module = _script("train")
    del sys.modules["train"]  # other examples have one too
    return module


# data


def _read(text: str, months: tuple[str, ...]) -> datetime.date:
    """The one reading of a text by the rule that dates.py states, found in another way than by its patterns."""
    words = re.findall(r"[a-z]+", text.lower())
    month = [i for i, name in enumerate(months, 1) if {name.lower(), name[:3].lower()} & set(words)]
    if re.fullmatch(r"\d{8}", text):
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    values = [int(digits) for digits in re.findall(r"\d+", text)]
    if month:
        (year,), (day,) = [n for n in values if n >= 1900], [n for n in values if n < 1900]
        return datetime.date(year, month[0], day)
    return datetime.date(*(values if values[0] >= 1900 else values[::-1]))


def test_every_text_has_one_reading_by_the_stated_rule(dates: ModuleType) -> None:
    rng = random.Random(0)
    for date in dates.split(rng, 3000)[1]:
        text = dates.write(date, rng)
        assert _read(text, dates.MONTHS) == date, text


def test_the_longest_text_fits_and_nothing_is_wasted(dates: ModuleType) -> None:
    rng = random.Random(0)
    wednesday = datetime.date(1998, 9, 23)
    texts = [dates.write(wednesday, rng) for _ in range(1000)]
    assert max(map(len, texts)) == dates.SOURCE_LENGTH
    assert max(map(len, dates.WEEKDAYS)) == len("Wednesday")
    assert max(map(len, dates.MONTHS)) == len("September")


def test_texts_come_back_from_their_numbers(dates: ModuleType) -> None:
    rng = random.Random(1)
    texts = [dates.write(date, rng) for date in dates.split(rng, 500)[1]]
    assert [dates.letters(row) for row in dates.numbers(texts, dates.SOURCE_LENGTH)] == texts


def test_no_date_is_both_learnt_and_tested(dates: ModuleType) -> None:
    known, held_out = dates.split(random.Random(2), 1000)
    assert len(held_out) == 1000
    assert not set(known) & set(held_out)
    assert len({*known, *held_out}) == 200 * 365 + 49  # 1900 was no leap year, 2000 was
    assert {date.year for date in known} == set(range(1900, 2100))
    assert dates.split(random.Random(2), 1000)[1] == held_out != dates.split(random.Random(3), 1000)[1]


# model


@pytest.mark.parametrize("name", ["multi-head", "additive"])
def test_the_model_sees_neither_the_future_nor_what_fills_a_text(translator: ModuleType, name: str) -> None:
    model = translator.Translator.of(translator.CROSS_ATTENTION[name])
    params = model.init(0, like=np.zeros(()))
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(1, 60, (2, 12)), rng.integers(1, 60, (2, 10))
    seen = (masks.key_lengths([7, 12]), masks.causal())
    before = model(params, sources, targets, *seen)
    targets[:, 6:] = 3
    sources[0, 7:] = 3
    after = model(params, sources, targets, *seen)
    assert (before[:, :6] == after[:, :6]).all()
    assert (before[:, 6:] != after[:, 6:]).any(axis=-1).all()
    sources[:, 6] += 1
    assert (model(params, sources, targets, *seen) != after).any(axis=-1).all()


# training


@dataclass
class Trained:
    """What one short run of the command left behind."""

    out: Path
    figure: Path
    printed: str
    sources: Array
    targets: Array
    answers: dict[str, dict[str, Array]]  # variant -> library -> what it wrote, with the weights in the file


@pytest.fixture(scope="module")
def trained(train: ModuleType, dates: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("dates")
    figure, printed = out / "figure.png", io.StringIO()
    arguments = {"--steps": STEPS, "--held-out": HELD_OUT, "--seed": 0, "--out": out, "--figure": figure}
    answers: dict[str, dict[str, Array]] = {name: {} for name in train.CROSS_ATTENTION}
    translate = train.translate

    def remembered(model: Any, file: Path, sources: Array, library: str) -> Array:
        written: Array = translate(model, file, sources, library)
        answers[file.stem][library] = written
        return written

    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "translate", remembered)
        train.main([str(x) for pair in arguments.items() for x in pair])
    rng = random.Random(0)
    sources, targets = dates.examples(dates.split(rng, HELD_OUT)[1], rng)
    return Trained(out, figure, printed.getvalue(), sources, targets, answers)


@dataclass
class Reader:
    """A trained model, its logits for the held-out texts, and what rounding to float32 may do to them."""

    name: str
    model: Any
    params: dict[str, Any]
    compute: Callable[..., Any]  # (params, sources, targets) -> logits
    true: Array
    bound: float
    answers: dict[str, Array]  # library -> what it writes


@pytest.fixture(scope="module", params=["multi-head", "additive"])
def reader(request: pytest.FixtureRequest, trained: Trained, translator: ModuleType) -> Reader:
    name = request.param
    model = translator.Translator.of(translator.CROSS_ATTENTION[name])
    file = trained.out / f"{name}.safetensors"
    params = weights.load(file, like=np.zeros(()), layer=model)

    def compute(params: dict[str, Any], sources: Any, targets: Any) -> Any:
        seen = (translator.source_mask(sources), masks.causal())
        return model(params, sources, translator.shifted(targets), *seen)

    def computed(number: Callable[[Array], Array]) -> Array:
        logits: Array = compute(_converted(params, number), trained.sources, trained.targets)
        return logits

    return Reader(
        name, model, params, compute, computed(_float64), 4 * noise(computed, draws=2), trained.answers[name]
    )


def _float64(x: Array) -> Array:
    return x.astype(np.float64)


def _converted(params: dict[str, Any], number: Callable[[Array], Any]) -> dict[str, Any]:
    return weights.unflatten({name: number(x) for name, x in weights.flatten(params).items()})


def _loss(logits: Array, targets: Array) -> float:
    log_softmax = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return -float(np.take_along_axis(log_softmax, targets[..., None], axis=-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi-head", "additive"])
def test_numpy_trains_by_the_gradients_of_jax(
    name: str, train: ModuleType, translator: ModuleType, dates: ModuleType
) -> None:
    """Of both the distance from JAX in float64: NumPy rounds as much as JAX does, and no curve tells them apart."""
    model = translator.Translator.of(translator.CROSS_ATTENTION[name])
    rng = random.Random(0)
    known, _ = dates.split(rng, HELD_OUT)
    texts = dates.examples(known[:4], rng)
    params = model.init(0, like=np.zeros((), np.float32))
    with jax.enable_x64(True):
        true_loss, true = train.by_jax(
            model, *jax.tree.map(jnp.asarray, (jax.tree.map(_float64, params), *texts))
        )
        true = weights.flatten(jax.tree.map(np.asarray, true))
    distance = {}
    for library, derived in (("jax", train.by_jax), ("numpy", train.by_numpy)):
        given = (params, *texts)
        loss, found = derived(model, *(jax.tree.map(jnp.asarray, given) if library == "jax" else given))
        assert abs(float(loss) / float(true_loss) - 1) <= 64 * UNIT_ROUNDOFF["float32"]
        flat = weights.flatten(found)
        assert flat.keys() == true.keys()
        moved = [path for path in true if not path.endswith("b_k")]  # which no score feels
        distance[library] = max(
            np.abs(np.asarray(flat[path]) - true[path]).max() / np.abs(true[path]).max() for path in moved
        )
    assert distance["numpy"] <= 4 * distance["jax"] < 1e-4
    runs: dict[str, list[float]] = {"jax": [], "numpy": []}
    for library, losses in runs.items():
        train.train(model, known, steps=6, seed=0, backend=library, losses=losses)
    jax_losses, numpy_losses = map(np.asarray, runs.values())
    assert (np.diff(jax_losses) < 0).any()
    assert (
        np.abs(numpy_losses / jax_losses - 1).max() < np.abs(jax_losses[1:] / jax_losses[:-1] - 1).min() / 100
    )


@pytest.mark.slow
def test_a_short_training_beats_every_model_that_does_not_read(reader: Reader, trained: Trained) -> None:
    """73049 dates are equally likely: who ignores the source pays ln 73049 for ten characters, or more."""
    baseline = np.log(200 * 365 + 49) / 10
    targets = trained.targets
    untrained = reader.model.init(0, like=np.zeros(()))
    loss = _loss(reader.true, targets)
    assert loss < baseline
    assert loss < _loss(reader.compute(untrained, trained.sources, targets), targets) / 3
    others = np.roll(trained.sources, 1, axis=0)  # the text of another date
    assert _loss(reader.compute(_converted(reader.params, _float64), others, targets), targets) > baseline


@pytest.mark.slow
@pytest.mark.parametrize("library", ["NumPy", "JAX", "PyTorch"])
def test_the_three_libraries_compute_the_same_from_the_same_file(
    library: str, reader: Reader, trained: Trained, train: ModuleType
) -> None:
    array, compiled = train.LIBRARIES[library]
    params = _converted(reader.params, array)
    logits = compiled(reader.compute)(params, array(trained.sources), array(trained.targets))
    assert np.abs(np.asarray(logits) - reader.true).max() <= reader.bound


@pytest.mark.slow
@pytest.mark.parametrize("library", ["NumPy", "JAX", "PyTorch"])
def test_with_a_cache_every_library_writes_what_the_whole_model_predicts(
    library: str, reader: Reader, trained: Trained
) -> None:
    written = reader.answers[library]
    predicted = reader.compute(_converted(reader.params, _float64), trained.sources, written)
    best = np.sort(predicted, axis=-1)
    decided = best[..., -1] - best[..., -2] > 2 * reader.bound  # beyond what rounding can turn over
    assert decided.mean() > 0.9
    assert (written == predicted.argmax(axis=-1))[decided].all()


@pytest.mark.slow
def test_the_alignment_is_a_distribution_over_the_characters_that_are_there(
    reader: Reader, trained: Trained
) -> None:
    weight = reader.model.alignment(reader.params, trained.sources, trained.targets)
    heads = 1 if reader.name == "additive" else 4
    assert weight.shape == (HELD_OUT, heads, 10, 36)
    assert (weight >= 0).all()
    assert (weight[np.broadcast_to((trained.sources == 0)[:, None, None, :], weight.shape)] == 0).all()
    # each weight errs by a few roundings of its own size, and the sum by at most 36 more
    assert np.abs(weight.sum(axis=-1, dtype=np.float64) - 1).max() <= 64 * 2.0**-24


@pytest.mark.slow
def test_the_command_prints_the_exact_match_of_each_library_and_draws(
    trained: Trained, reader: Reader
) -> None:
    row = next(line for line in trained.printed.splitlines() if f" {reader.name} " in line and "│" in line)
    for written in reader.answers.values():
        assert f"{(written == trained.targets).all(axis=1).mean():.2%}" in row
    assert trained.figure.read_bytes().startswith(b"\x89PNG")
    assert trained.figure.stat().st_size < 150_000
