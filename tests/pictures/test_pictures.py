"""The numbers behind the pictures are the library's, whatever an array holds and whatever a token says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pictures.drawn import HOSTILE, PICTURES, attended, written
from shared.libraries import jnp, torch

from polyattn import masks, mods, pictures
from polyattn.pictures.canvas import spread
from polyattn.pictures.words import LONGEST, spoken
from polyattn.rotary import Linear, Rotary, YaRN
from polyattn.testing import StrictBench, load_bench

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_on_any_paper(name: str) -> None:
    page = PICTURES[name]()._repr_svg_()
    assert ElementTree.fromstring(page).tag.endswith("svg")
    assert "#767676" in page


@pytest.mark.parametrize("name", PICTURES)
def test_no_words_of_a_picture_are_cut_or_lie_on_others(name: str) -> None:
    from matplotlib.text import Annotation, Text

    figure = PICTURES[name]()
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    boxes, beyond = [], _beyond_the_limits(figure)
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible():
            continue
        if text.axes is not None and not isinstance(text, Annotation) and text in text.axes.texts:
            continue  # inside a cell
        box = text.get_window_extent() if not isinstance(text, Annotation) else Text.get_window_extent(text)
        if box.width <= 1 or id(text) in beyond:
            continue
        inside = (box.x0 > -1, box.y0 > -1, box.x1 < width + 1, box.y1 < height + 1)
        assert all(inside), text.get_text()
        boxes.append((text.get_text(), box.shrunk(0.8, 0.6)))
    for i, (words, box) in enumerate(boxes):
        for other, another in boxes[i + 1 :]:
            assert not box.overlaps(another), (words, other)


def _beyond_the_limits(figure: Any) -> set[int]:
    """The labels of ticks that an axis holds and does not draw, by id."""
    found = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                found |= {id(tick.label1), id(tick.label2)}
    return found


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: pictures.weights(x[0, ...]),
        lambda x: pictures.heads(x),
        lambda x: pictures.over_image(x[0, ...], x[1, ...]),
        lambda x: pictures.alignment(x[0, ...], ["a"] * 7, ["b"] * 7),
        lambda x: pictures.online_softmax(x[0, 6, ...], x[1, ...], tile=3),
        lambda x: pictures.mismatch(x, x),
    ],
)
@pytest.mark.parametrize("library", ["strict", "jax", "torch"])
def test_arrays_of_every_library_give_the_same_picture(library: str, draw: Callable[[Any], Any]) -> None:
    bench = StrictBench() if library == "strict" else load_bench(library)
    found = attended().astype(np.float32)
    assert written(draw(bench.array(found, "float32"))) == written(draw(found))


def test_half_precision_and_what_has_a_gradient_is_read() -> None:
    for x in (
        torch.full((2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True),
        jnp.full((2, 2), 0.5, dtype=jnp.bfloat16),
    ):
        assert (pictures.weights(x).axes[0].images[0].get_array() == 0.5).all()


def test_a_map_shows_the_weights_and_says_them() -> None:
    found = attended()[0]
    figure = pictures.weights(found)
    axes = figure.axes[0]
    assert (axes.images[0].get_array() == found).all()
    said = {text.get_position(): text.get_text() for text in axes.texts}
    assert said[(0, 0)] == "1"
    assert float(said[(1, 2)]) == round(found[2, 1], 2)
    assert list(pictures.weights(found, numbers=False).axes[0].texts) == []
    assert list(pictures.weights(np.zeros((13, 13))).axes[0].texts) == []


def test_one_list_of_tokens_is_for_both_axes_of_a_square_and_else_for_its_own() -> None:
    def labels(figure: Any) -> tuple[list[str], list[str]]:
        axes = figure.axes[0]
        return [t.get_text() for t in axes.get_yticklabels()], [t.get_text() for t in axes.get_xticklabels()]

    assert labels(pictures.weights(np.eye(2), ["a", "b"])) == (["a", "b"], ["a", "b"])
    assert labels(pictures.weights(np.eye(2), keys=["a", "b"])) == (["a", "b"], ["a", "b"])
    assert labels(pictures.weights(np.eye(2), ["a", "b"], ["c", "d"])) == (["a", "b"], ["c", "d"])
    assert labels(pictures.weights(np.ones((2, 3)), keys=["a", "b", "c"]))[1] == ["a", "b", "c"]


def test_axes_and_colours_are_called_what_they_are() -> None:
    def said(figure: Any) -> tuple[str, str, str]:
        axes, scale = figure.axes
        return axes.get_ylabel(), axes.get_xlabel(), scale.get_ylabel()

    assert said(pictures.weights(np.eye(2))) == ("query", "key", "weight")
    figure = pictures.weights(np.eye(2), rows="$T", columns="word", colours="a\nb")
    assert said(figure) == ("$T", "word", "a\\nb")
    written(figure)


def test_heads_are_on_one_scale() -> None:
    found = attended()
    figure = pictures.heads(found)
    limits = {axes.images[0].get_clim() for axes in figure.axes[:4]}
    assert limits == {(0.0, found.max())}


def test_one_query_of_many_keys_is_more_than_a_thread() -> None:
    for figure in (pictures.weights(np.ones((1, 50))), pictures.mask(masks.causal(), 1, 50)):
        figure.draw_without_rendering()
        assert figure.axes[0].get_window_extent().height > 30


def test_nan_is_marked_and_no_weight_is_infinite() -> None:
    found = attended()[0].copy()
    found[2, 1] = np.nan
    (marks,) = pictures.weights(found).axes[0].lines
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([1], [2])
    with pytest.raises(
        ValueError, match=r"expected weights, which are finite, got 1 infinite numbers; are these scores"
    ):
        pictures.weights(np.array([[0.0, -np.inf]]))


@pytest.mark.parametrize("token", HOSTILE)
def test_a_token_is_one_line_of_signs_that_the_font_has(token: str) -> None:
    said = spoken(token)
    assert said.isprintable()
    assert 0 < len(said) <= LONGEST + 10
    written(pictures.weights(np.eye(1), [token], title=token))


def test_a_picture_of_hostile_tokens_means_them_as_they_are() -> None:
    figure = pictures.weights(np.eye(7), HOSTILE)
    labels = figure.axes[0].get_xticklabels()
    assert not any(label.get_parse_math() for label in labels)
    assert [label.get_text() for label in labels][:3] == ["$\\\\frac{", "a\\nb\\tc", "\\u202egnp.exe"]
    assert len({label.get_text() for label in labels}) == 7
    written(figure)


def test_hostile_words_elsewhere() -> None:
    written(pictures.heads(np.ones((1, 7, 7)), HOSTILE))
    written(pictures.mask(masks.causal(), HOSTILE))
    written(pictures.alignment(np.full((7, 7), 1 / 7), HOSTILE, HOSTILE))
    written(pictures.over_length([1, 2], {token: [1, 2] for token in HOSTILE}, unit="$\n", title=HOSTILE[0]))
    written(pictures.mismatch(np.eye(2), np.ones((2, 2)), names=("$a", "b$\n")))


def test_a_mask_is_drawn_as_it_is_and_its_tiles_as_the_engine_sees_them() -> None:
    mask = masks.sliding_window(5) | masks.prefix(3)
    figure = pictures.mask(mask, 16, 12, tile=(4, 5))
    axes = figure.axes[0]
    assert (axes.images[0].get_array() == mask.dense(16, 12)).all()
    letters = [text.get_text() for text in axes.texts]
    assert letters == [tile.name[0] for line in mask.tiles(16, 12, (4, 5)) for tile in line]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == letters.count("P")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[1] == f"{letters.count('P')} P = partial: computed and masked"


def test_a_mask_may_be_an_array_of_an_item_and_a_head() -> None:
    allowed = np.random.default_rng(0).random((2, 3, 4, 5)) < 0.5
    figure = pictures.mask(allowed, b=1, h=2)
    assert (figure.axes[0].images[0].get_array() == allowed[1, 2]).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_clock_points_where_the_formula_says(interleaved: bool) -> None:
    where = np.array([0, 3, 11])
    rotary = Rotary(width=6, interleaved=interleaved)
    figure = pictures.rotary_angles(rotary, where)
    hands = [(line.get_xdata()[1], line.get_ydata()[1]) for line in figure.axes[0].lines]
    for pair, frequency in enumerate(rotary.frequencies(6)):
        for i, position in enumerate(where):
            x, y = hands[3 * pair + i]
            assert np.arctan2(pair - y, x - i) == pytest.approx(
                np.angle(np.exp(1j * position * frequency)), abs=2**-45
            )


def test_an_amplitude_is_the_length_of_a_hand_and_a_scaling_slows_it() -> None:
    figure = pictures.rotary_angles(Rotary(width=4, scaling=Linear(2.0)), np.arange(2))
    assert figure.axes[0].lines[1].get_ydata()[1] == pytest.approx(-0.46 * np.sin(0.5), abs=2**-50)
    yarn = Rotary(width=4, scaling=YaRN(8.0, 64))
    written(pictures.rotary_angles(yarn, np.arange(3)))


def test_waves_are_the_cosines() -> None:
    figure = pictures.rotary_angles(Rotary(width=8), np.arange(40))
    (line,) = figure.axes[0].lines[1:]
    assert (np.abs(line.get_ydata() - np.cos(np.arange(40))) <= 2**-45).all()


def test_alibi_is_that_of_the_mod_and_says_the_slopes() -> None:
    figure = pictures.alibi_slopes(6, length=9)
    slopes = mods.alibi_slopes(6)
    for line, slope in zip(figure.axes[0].lines, slopes, strict=True):
        assert line.get_ydata().tolist() == [-slope * d for d in range(9)]
    said = {text.get_text() for text in figure.axes[0].texts}
    assert said == {f"head {i}: {slope:.3g}" for i, slope in enumerate(slopes)}


@pytest.mark.parametrize("devices", [1, 2, 5])
def test_a_ring_is_a_latin_square_that_begins_at_home(devices: int) -> None:
    texts = [int(text.get_text()) for text in pictures.ring(devices).axes[0].texts]
    square = np.array(texts).reshape(devices, devices)
    assert (np.sort(square, axis=0) == np.arange(devices)[:, None]).all()
    assert (np.sort(square, axis=1) == np.arange(devices)).all()
    assert (square[:, 0] == np.arange(devices)).all()
    for step in range(devices - 1):  # what a device holds it hands to the next one
        assert (np.roll(square[:, step], 1) == square[:, step + 1]).all()


def test_lines_over_length_end_where_nothing_was_measured() -> None:
    figure = pictures.over_length(
        np.array([1, 2, 4]), {"a": [1.0, None, 3.0], "b": [1.0, 2.0, None]}, unit="s"
    )
    first, second = figure.axes[0].lines
    assert np.isnan(first.get_ydata()).tolist() == [False, True, False]
    assert (first.get_marker(), first.get_linestyle()) != (second.get_marker(), second.get_linestyle())
    assert {"1", "2", "5"} <= {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_a_mismatch_is_found_where_it_is() -> None:
    right = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    wrong = right.copy()
    wrong[1, 2, 3, 1] += 8.0
    figure = pictures.mismatch(wrong, right)
    assert figure.get_suptitle() == (
        "|observed - expected|: at most 8, at item 1, head 2, row 3, entry 1; 1 of 120 numbers differ"
    )
    shown = figure.axes[0].images[0].get_array()
    assert shown.count() == 1
    assert shown[2, 3] == pytest.approx(8.0, abs=2**-49)
    wrong[0, 0, 0, 0] = np.nan
    assert (
        pictures.mismatch(wrong, right)
        .get_suptitle()
        .startswith("observed nan, expected 0.126, at item 0, head 0, row 0")
    )
    assert pictures.mismatch(wrong, wrong).get_suptitle() == "observed and expected are the same, bit for bit"


def test_names_move_apart_no_more_than_they_must() -> None:
    assert spread([0.2, 0.5, 0.9], 0.1) == pytest.approx([0.2, 0.5, 0.9])
    assert spread([0.4, 0.4], 0.2) == pytest.approx([0.3, 0.5])
    assert spread([1.0, 1.0, 1.0], 0.25) == pytest.approx([0.5, 0.75, 1.0])


def test_the_settings_of_the_user_do_not_break_a_picture() -> None:
    from matplotlib import rc_context

    with rc_context({"text.usetex": True, "axes.facecolor": "black", "text.parse_math": True}):
        figure = pictures.weights(np.eye(2), ["$a", "b$"])
    written(figure)


def test_pyplot_is_never_loaded() -> None:
    code = (
        "import sys\nimport numpy as np\nfrom polyattn import pictures\npictures.heads(np.ones((1, 2, 2)))._repr_svg_()\n"
        "pictures.online_softmax_animation(np.ones(2)).to_jshtml()\nprint('matplotlib.pyplot' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_without_matplotlib_a_sentence_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nimport numpy as np\nfrom polyattn import pictures\n"
        "try:\n    pictures.weights(np.eye(2))\nexcept ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("polyattn.pictures.weights: expected the package matplotlib, which draws, got: ")
    assert said.strip().endswith("pip install 'polyattn[plot]'")
