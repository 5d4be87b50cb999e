"""Sphinx configuration."""

from importlib.metadata import version as _version

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
