"""Sphinx configuration."""

from importlib.metadata import version as _version
from typing import Any

project = "polyattn"
release = version = _version("polyattn")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing"]
autodoc_typehints = "none"
nb_execution_mode = "force"
nb_execution_raise_on_error = True


def _as_written(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English with formulas: * and | in them mean product and absolute value, not markup."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[i] = line.replace("*", r"\*").replace("|", r"\|")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _as_written)
