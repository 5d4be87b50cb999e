"""The fold of the online softmax, still, in frames and as an SVG that moves, is the library's."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pictures.drawn import ROW, VALUES, written

from polyattn import pictures
from polyattn.normalizers import softmax
from polyattn.pictures.folding import fold

pytest.importorskip("matplotlib")


def test_the_fold_is_that_of_the_library_and_ends_as_the_softmax() -> None:
    found = fold("test", ROW, VALUES, 3)
    partial = softmax.lift(ROW[None, :3], VALUES[:3])
    for step in found.steps[1:]:
        before = partial
        partial = softmax.merge(
            before, softmax.lift(ROW[None, step.start : step.stop], VALUES[step.start : step.stop])
        )
        assert (step.top, step.sum) == (partial.top.item(), partial.sum.item())
        assert step.factor == np.exp(before.top - partial.top).item()
        assert (step.out == softmax.finish(partial)[0]).all()
    last = found.steps[-1]
    assert last.weights.sum() == pytest.approx(1.0, abs=2**-50)  # eight roundings of 2^-53
    assert (np.abs(last.weights - softmax.SOFTMAX.weights(ROW)) <= 2**-50).all()
    assert last.weights[5] == 0


def test_a_row_that_begins_with_hidden_keys_or_has_no_other() -> None:
    steps = fold("test", np.array([-np.inf, 1.0]), None, 1).steps
    assert (steps[0].top, steps[0].sum, steps[1].factor, steps[1].sum) == (-np.inf, 0.0, 0.0, 1.0)
    written(pictures.online_softmax(np.array([-np.inf, -np.inf])))


def test_the_bars_after_the_last_tile_stand_at_the_circles() -> None:
    figure = pictures.online_softmax(ROW, VALUES, tile=4)
    for axes in figure.axes[3], figure.axes[5]:
        circles = axes.lines[0].get_ydata()
        bars = np.array([bar.get_height() for bar in axes.patches])
        assert (np.abs(bars - circles) <= 2**-48).all()


def test_an_animation_has_a_frame_a_tile_and_is_written(tmp_path: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    moving = pictures.online_softmax_animation(ROW, VALUES, tile=2)
    moving.save(tmp_path / "fold.gif", writer="pillow", dpi=50)
    with image.open(tmp_path / "fold.gif") as gif:
        assert gif.n_frames == 4
        frames = []
        for i in range(4):
            gif.seek(i)
            frames.append(gif.convert("RGB").tobytes())
    assert len(set(frames)) == 4


@pytest.mark.parametrize("values", [None, VALUES], ids=["weights", "average"])
def test_a_moving_svg_is_inert_says_every_step_and_stands_at_the_end(values: Any) -> None:
    picture = pictures.online_softmax_svg(ROW, values, tile=3)
    elements = list(ElementTree.fromstring(picture).iter())
    assert {element.tag.rpartition("}")[2] for element in elements} == {
        "svg", "title", "desc", "style", "path", "text", "circle", "g",
    }  # fmt: skip
    assert not [
        name for element in elements for name in element.attrib if name.startswith("on") or "href" in name
    ]
    assert "url(" not in picture
    assert picture.count("@media (prefers-reduced-motion:reduce)") == 1
    steps = fold("test", ROW, values, 3).steps
    words = [element.text for element in elements if element.tag.endswith("text")]
    assert [word for word in words if word and word.startswith("m = ")] == [
        f"m = {step.top:.3g}, l = {step.sum:.3g}" for step in steps
    ]
    still = re.findall(r"style=\"transform:scaleY\(([-\d.]+)\)", picture)[: len(ROW)]
    assert still == [f"{110 * weight:.2f}" for weight in softmax.SOFTMAX.weights(ROW)]
    used = set(re.findall(r"animation:(fold\S+) ", picture))
    assert used == set(re.findall(r"@keyframes (\S+?){", picture))


def test_a_moving_svg_needs_no_matplotlib() -> None:
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nimport numpy as np\nfrom polyattn import pictures\n"
        "print(pictures.online_softmax_svg(np.zeros(3))[:4])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "<svg"
