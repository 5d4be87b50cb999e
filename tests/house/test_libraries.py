"""`pytest --libraries`: what is left out is another library's, and what is asked for must be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared.libraries import Absent

ROOT = Path(__file__).parents[2]


QUICK = ("tests/contract", "tests/masks", "tests/implementations", "tests/layers")  # of `make quick`
WITHOUT = """
import sys
from importlib.machinery import PathFinder

import pytest

missing = sys.argv[1].split(",")


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
sys.exit(pytest.main(sys.argv[2:]))
"""


def pytest_says(*arguments: str, missing: str = "") -> tuple[int, str]:
    """The status and the words of pytest where some modules, joined by commas, are not installed."""
    command = [sys.executable, "-c", WITHOUT, missing, "-q", "-p", "no:cacheprovider", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    return done.returncode, done.stdout + done.stderr


def test_libraries_not_asked_for_are_left_out() -> None:
    status, words = pytest_says(
        "--collect-only", "--libraries", "numpy,strict", "tests/contract/test_dropout.py"
    )
    assert status == 0
    for kept in ("[numpy", "[strict-device1]", "test_dropout_is_unbiased"):
        assert kept in words
    for gone in ("[jax", "[torch", "test_threefry_equals_the_one_of_jax", "test_compiled_torch"):
        assert gone not in words


def test_a_library_that_nobody_knows_is_an_error() -> None:
    status, words = pytest_says("--libraries", "numpy,mlx", "tests/contract/test_laws.py")
    assert status == 4
    assert (
        "--libraries: expected some of numpy, autograd, strict, jax, torch, got 'mlx'; check its spelling"
        in words
    )


def test_a_library_that_is_asked_for_and_missing_is_an_error() -> None:
    status, words = pytest_says("--libraries", "jax", "tests/contract/test_laws.py", missing="jax")
    assert status == 4
    assert "--libraries: jax was asked for and is missing: No module named 'jax'" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", ["torch", "jax,jaxlib", "matplotlib", "torch,jax,jaxlib,autograd,matplotlib"]
)
def test_what_quick_runs_is_collected_whatever_is_missing(missing: str) -> None:
    status, words = pytest_says("--collect-only", *QUICK, missing=missing)
    assert status == 0, words[-2000:]
    assert "[numpy" in words


def test_without_a_library_its_tests_are_skipped_and_the_others_run() -> None:
    status, words = pytest_says("-rs", "-v", "tests/contract/test_refusals.py", missing="torch")
    assert status == 0, words[-2000:]
    assert "torch is not installed" in words
    assert "passed" in words


def test_make_quick_runs_these_folders() -> None:
    assert " ".join(QUICK) in (ROOT / "Makefile").read_text()


def test_what_is_absent_skips_the_test_that_touches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Absent("nothing")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    made = nothing.numpy.zeros(3)[0]

    class Below(nothing.Module):
        pass

    assert isinstance(made, Absent)
    assert Below.__mro__ == (Below, object)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "a test")
    for touch in (lambda: made.shape, lambda: made(), lambda: made[0], lambda: hasattr(made, "dtype")):
        with pytest.raises(pytest.skip.Exception, match="nothing is not installed"):
            touch()
