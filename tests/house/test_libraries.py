"""`pytest --libraries`: what is left out is another library's, and what is asked for must be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pytest_says(*arguments: str, path: Path | None = None) -> tuple[int, str]:
    """The status and the words of `pytest --collect-only`, with a folder before all others on the path."""
    first = [] if path is None else [str(path)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    return done.returncode, done.stdout + done.stderr


def test_libraries_not_asked_for_are_left_out() -> None:
    status, words = pytest_says("--libraries", "numpy,strict", "tests/contract/test_dropout.py")
    assert status == 0
    for kept in ("[numpy", "[strict-device1]", "test_dropout_is_unbiased"):
        assert kept in words
    for gone in ("[jax", "[torch", "test_threefry_equals_the_one_of_jax", "test_compiled_torch"):
        assert gone not in words


def test_a_library_that_nobody_knows_is_an_error() -> None:
    status, words = pytest_says("--libraries", "numpy,mlx", "tests/contract/test_laws.py")
    assert status == 4
    assert "--libraries: expected some of numpy, strict, jax, torch, got 'mlx'; check its spelling" in words


def test_a_library_that_is_asked_for_and_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError('no jax here')\n")
    status, words = pytest_says("--libraries", "jax", "tests/contract/test_laws.py", path=tmp_path)
    assert status == 4
    assert "--libraries: jax was asked for and is missing: no jax here" in words
