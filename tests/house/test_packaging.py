"""The house stands as it is described: imports are free, folders and entry points match."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    tools = {"cli.py", "draw.py", "testing.py", "graph.py"}
    mathematics = [
        p
        for p in (ROOT / "polyattn").rglob("*.py")
        if not {"parity", "weights", "dialects", "truth", "conventions", "models"}
        & set(p.relative_to(ROOT).parts)
        and p.name not in tools
    ]
    assert len(mathematics) > 10
    for path in mathematics:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):  # doctests begin with >>>
                assert words[1].partition(".")[0] not in ("numpy", "jax", "torch"), f"{path.name}: {line}"


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
