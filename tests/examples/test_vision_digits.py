"""A vision transformer learns digits in PyTorch, and its file gives the same answers everywhere."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from shared.running import drawn, mapped
from sklearn.datasets import load_digits

from polyattn import AuxRequest, weights
from polyattn.truth.rounding import noise

FOLDER = Path(__file__).parents[2] / "examples/vision_digits"
STEPS = 150


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """train.py, on one thread, as its main function sets it."""
    spec = importlib.util.spec_from_file_location("vision_digits_train", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    parts = example.digits()
    module, losses = example.train(parts["train"], STEPS, seed=1)
    file = tmp_path_factory.mktemp("vision") / "digits.safetensors"
    weights.save(module.params(), file)
    return SimpleNamespace(losses=losses, file=file, unseen=parts["validation"])


@pytest.mark.slow
def test_training_learns_to_read_digits(example: ModuleType, trained: SimpleNamespace) -> None:
    images, labels = trained.unseen
    right = (example.logits_of(trained.file, images, "NumPy").argmax(-1) == labels).mean()
    commonest = np.bincount(labels).max() / len(labels)
    assert right > 0.7 > 4 * commonest  # the baseline: always to say the commonest digit
    first, last = np.mean(trained.losses[:20]), np.mean(trained.losses[-20:])
    assert first > 0.9 * np.log(10)  # begins without knowledge: log 10 is the loss of ten equal guesses
    assert last < 0.6 * first


@pytest.mark.slow
def test_the_saved_file_gives_every_library_the_same_answers(
    example: ModuleType, trained: SimpleNamespace
) -> None:
    images = trained.unseen.images[:64]
    params = weights.load(trained.file, like=images, layer=example.MODEL)
    bound = 4 * noise(lambda number: example.MODEL(mapped(number, params), number(images)))
    assert 1e-7 < bound < 1e-3
    true = example.MODEL(mapped(lambda w: w.astype(np.float64), params), images.astype(np.float64))
    for library in example.LIBRARIES:
        found = example.logits_of(trained.file, images, library)
        assert found.dtype == np.float32
        assert np.abs(found - true).max() <= bound, library
        assert (found.argmax(-1) == true.argmax(-1)).all(), library


def test_the_command_saves_and_prints_what_it_measured(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--steps", "5", "--seed", "2", "--validate", "--out", str(tmp_path)])
    *_, steps, numpy, jax, torch_, same = capsys.readouterr().out.splitlines()
    assert steps.startswith("5 steps on 1197 images")
    images, labels = example.digits()["validation"]
    answers = example.logits_of(tmp_path / "vision_digits.safetensors", images, "NumPy").argmax(-1)
    right = f"{(answers == labels).sum()} of 240 unseen images right"
    for library, line in zip(example.LIBRARIES, (numpy, jax, torch_), strict=True):
        assert line.startswith(f"{library:8}{right}")
    assert same.startswith("the same answer to every image")
    drawn_image = imread(tmp_path / "figure.png")
    red, _, blue, _ = np.moveaxis(drawn_image, -1, 0)
    assert 0.02 < (red - blue > 0.1).mean() < 0.5  # the patches below, not the images above


def test_a_training_is_a_function_of_its_seed(example: ModuleType) -> None:
    data = example.digits()["train"]
    first, again, other = (example.train(data, 2, seed)[1] for seed in (3, 3, 4))
    assert first == again != other


def test_the_three_parts_hold_every_image_once(example: ModuleType) -> None:
    parts = example.digits()
    assert {name: len(part.labels) for name, part in parts.items()} == {
        "held out": 360,
        "validation": 240,
        "train": 1197,
    }

    def listed(images: Any, labels: Any) -> list[tuple[int, ...]]:
        return sorted((int(y), *map(int, x)) for x, y in zip(images.reshape(-1, 64), labels, strict=True))

    images, labels = (np.concatenate(both) for both in zip(*parts.values(), strict=True))
    grey = np.round(images * example.SCALE + example.MEAN)
    assert listed(grey, labels) == listed(load_digits().images, load_digits().target)
    assert set(parts["held out"].labels) == set(range(10))


def test_shifts_move_a_whole_image_by_at_most_a_pixel(example: ModuleType) -> None:
    image = load_digits().images[:1] + 1.0  # no pixel is background
    scaled = (image - example.MEAN) / example.SCALE
    background = -example.MEAN / example.SCALE
    expected = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = np.full((8, 8), background)
            for i in range(8):
                for j in range(8):
                    if 0 <= i - down < 8 and 0 <= j - right < 8:
                        moved[i, j] = scaled[0, i - down, j - right]
            expected.add(moved.tobytes())
    found = example.shifted(np.repeat(scaled, 200, axis=0), np.random.default_rng(0))
    assert {np.ascontiguousarray(x).tobytes() for x in found} == expected  # all nine, and nothing else


def test_without_positions_the_order_of_patches_does_not_count(example: ModuleType) -> None:
    images = np.random.default_rng(0).normal(size=(3, 8, 8))
    turned = np.concatenate([images[:, 4:, :], images[:, :4, :]], axis=1)  # the same patches in other places
    params = drawn(example.MODEL)
    assert np.abs(example.MODEL(params, images) - example.MODEL(params, turned)).max() > 0.1
    params["positions"] = np.zeros_like(params["positions"])
    bound = 4 * noise(lambda number: example.MODEL(mapped(number, params), number(images)))
    params, images, turned = (
        mapped(lambda w: w.astype(np.float32), params),
        images.astype(np.float32),
        turned.astype(np.float32),
    )
    apart = np.abs(example.MODEL(params, images) - example.MODEL(params, turned)).max()
    assert apart <= 2 * bound < 0.01  # each of the two may be `bound` from the truth


def test_rollout_counts_the_paths_of_a_token(example: ModuleType) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8))
    aux = example.MODEL.run(drawn(example.MODEL), x, return_aux=AuxRequest(weights=True)).aux
    assert len(aux) == example.MODEL.depth == 2
    shares = example.rollout(aux)
    assert shares.shape == (2, 17, 17)
    first, second = (sum(block.weights[1, head] for head in range(4)) / 4 for block in aux)
    # Both blocks look, one of them, or neither: a quarter each.
    paths = (second @ first + first + second + np.eye(17)) / 4
    # Nothing cancels: at most 17 products, 16 sums and some 12 other roundings an entry, on either side.
    u = 2.0**-53
    assert (np.abs(shares[1] - paths) <= 2 * 45 * u * paths).all()
    assert (np.abs(shares.sum(-1) - 1.0) <= (45 + 17) * u).all()


def test_the_words_of_an_image_are_its_patches(example: ModuleType) -> None:
    failed, tried = doctest.testmod(sys.modules[example.VisionTransformer.__module__])
    assert tried
    assert not failed
