"""Everything public is listed in surface.toml; it is reached from `polyattn` alone, and importing that is cheap."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import polyattn

ROOT = Path(__file__).parents[2]
SURFACE: dict[str, list[str]] = tomllib.loads((Path(__file__).parent / "surface.toml").read_text())
ROOMS = [module.removeprefix("polyattn.") for module in SURFACE if module != "polyattn"]
EAGER = {"arrays", "calls", "implementations", "masks", "mods", "normalizers", "places", "problem", "dropout"}


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("module", SURFACE)
def test_a_module_has_the_public_names_that_are_listed_and_no_others(module: str) -> None:
    found = import_module(module)
    assert sorted(found.__all__) == sorted(SURFACE[module])
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_every_public_room_is_listed() -> None:
    private = {"__main__", "cli", "draw", "models"}  # a command, its drawings, and what needs an extra
    there = {m.name for m in pkgutil.iter_modules(polyattn.__path__) if not m.name.startswith("_")}
    assert there - private == set(ROOMS)


def test_nothing_hides_a_module() -> None:
    packages = [m.name for m in pkgutil.walk_packages(polyattn.__path__, "polyattn.") if m.ispkg]
    hidden = [
        f"{package}.{module.name}"
        for package in ("polyattn", *packages)
        for module in pkgutil.iter_modules(import_module(package).__path__)
        if not isinstance(vars(import_module(package)).get(module.name, polyattn), ModuleType)
    ]
    assert len(packages) > 10
    assert hidden == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_reached_from_polyattn_alone(room: str) -> None:
    assert python(f"import polyattn; print(polyattn.{room}.__name__)") == f"polyattn.{room}"


def loaded(code: str) -> set[str]:
    """The modules that a program adds to those of a bare interpreter."""
    before = "import sys; before = set(sys.modules)"
    after = "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    return set(json.loads(python(f"{before}; {code}; {after}")))


def test_importing_polyattn_loads_the_array_api_alone_and_no_room_that_can_wait() -> None:
    modules = loaded("import polyattn")
    foreign = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert foreign == {"polyattn", "array_api_compat"}
    assert [room for room in ROOMS if f"polyattn.{room}" in modules and room not in EAGER] == []


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_an_adapter_without_its_library_says_which_is_missing(library: str) -> None:
    hide = (
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{library}': raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    said = python(
        f"import sys\n{hide}try:\n    import polyattn_{library}\nexcept ImportError as error:\n    print(error)"
    )
    assert said == (
        f"polyattn_{library}: expected the package {library}, got: No module named '{library}'; install it, pip "
        f"install 'polyattn[{library}]'"
    )


def test_the_test_of_loaded_modules_can_fail() -> None:
    modules = loaded("import polyattn; polyattn.testing")
    assert {"polyattn.testing", "numpy"} <= modules


def test_a_name_that_is_nowhere_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'polyattn' has no attribute 'attentoin'"):
        polyattn.attentoin  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_written_once_and_the_changelog_is_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "polyattn/__init__.py"
    written = [
        str(path.relative_to(ROOT))
        for folder in ("polyattn", "backends", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^(__version__|version|release) = [\"']", path.read_text(), re.MULTILINE)
    ]
    assert written == ["polyattn/__init__.py"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == polyattn.__version__
