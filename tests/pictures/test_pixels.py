"""Every picture is, to the pixel, the one that was looked at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pictures.drawn import BASELINE, DPI, PICTURES, save

mpl = pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
PINNED = re.search(r"^matplotlib==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
#: Root mean square over pixels, of 255. One version of matplotlib brings one FreeType, and draws the same pixels again
#: (0.00 measured, 2026-12-01); a picture that lost its shortest label is 0.30 away or more, which a test below holds to.
TOLERANCE = 0.2


def away(name: str, path: Path) -> float:
    from matplotlib.testing.compare import compare_images

    found = compare_images(str(BASELINE / f"{name}.png"), str(path), tol=0, in_decorator=True)
    return 0.0 if found is None else float(found["rms"])


@pytest.fixture(autouse=True)
def _of_the_version_whose_pixels_are_kept() -> None:
    assert PINNED is not None
    if not mpl.__version__.startswith(f"{PINNED[1]}."):
        pytest.skip(f"the pixels are those of matplotlib {PINNED[1]}, this is {mpl.__version__}")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_that_was_looked_at(name: str, tmp_path: Path) -> None:
    save(name, tmp_path / f"{name}.png")
    assert away(name, tmp_path / f"{name}.png") <= TOLERANCE, "python tests/pictures/drawn.py draws it anew"


@pytest.mark.parametrize("name", ["mask", "heads", "online-softmax"])
def test_a_label_that_is_missing_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = PICTURES[name]

    def without() -> object:
        figure = draw()
        figure.set_dpi(DPI)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # everything else stays where it is
        shown = [text for text in figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]
        min(shown, key=lambda text: len(text.get_text())).set_visible(False)
        return figure

    monkeypatch.setitem(PICTURES, name, without)
    save(name, tmp_path / f"{name}.png")
    assert away(name, tmp_path / f"{name}.png") > TOLERANCE


def test_what_is_kept_is_small_and_is_all() -> None:
    kept = list(BASELINE.glob("*.png"))
    assert {path.stem for path in kept} == set(PICTURES)
    assert sum(path.stat().st_size for path in kept) < 400_000
