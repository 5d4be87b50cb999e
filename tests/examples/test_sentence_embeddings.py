"""The search finds what a sentence means, and every library ranks alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples/sentence_embeddings"


@pytest.fixture(scope="module")
def search() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sentence_embeddings_search", FOLDER / "search.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_search_prints_what_its_readme_says(
    search: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["--figure", str(tmp_path / "figure.png")])
    *found, last = capsys.readouterr().out.splitlines()
    assert "\n".join(found) in (FOLDER / "README.md").read_text()
    assert last.startswith("the same rankings from NumPy, JAX and PyTorch")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
