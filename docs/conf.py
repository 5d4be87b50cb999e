"""Sphinx configuration. What it makes needs nothing from the net: no fonts, no scripts, formulas as MathML."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version as _version
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

project = "polyattn"
release = version = _version("polyattn")
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "learn/*.ipynb", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_theme_options = {
    "dark_css_variables": {"color-foreground-muted": "#9096a0"}
}  # the theme's is too faint to read
html_title = f"polyattn {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = [("moving.js", {"defer": "defer"})]
html_search_scorer = str(Path(__file__).with_name("_static") / "scorer.js")
html_show_copyright = False
html_math_renderer = "mathml"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Array", "Floats", "Params", "ScoreMod", "Wish")}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_merge_streams = True  # lines that are printed one after the other are one block
nb_execution_timeout = 600  # seconds a cell; a busy machine compiles slowly
nb_mime_priority_overrides = [("html", "image/svg+xml", 0)]


def _as_written(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English: * and | in them mean product and absolute value, an indented part is a formula
    as it stands, and `words` in backticks are code."""
    if what == "data":
        lines[:] = _said_where_it_is_made(name.rpartition(".")[2], thing)
    lines[:] = _markup(lines)


def _said_where_it_is_made(name: str, thing: Any) -> list[str]:
    """The comment `#: ...` over a constant, which Sphinx sees in no other module than that."""
    for module in [module for module in sys.modules if module.startswith("polyattn")]:
        if getattr(sys.modules[module], name, None) is thing:
            with suppress(PycodeError):
                if said := ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name)):
                    return list(said)
    return []


def _markup(lines: list[str]) -> Iterator[str]:
    for is_example, paragraph in _paragraphs(lines):
        if is_example:
            yield from paragraph
        elif paragraph[0].startswith(" ") and not paragraph[0].lstrip().startswith("- "):
            yield from (".. code-block:: text", "", *(f"   {line}" for line in paragraph))
        else:
            for line in paragraph:
                words = re.split(r"(`+[^`]*`+)", line)
                for i, word in enumerate(words):
                    words[i] = f"``{word.strip('`')}``" if i % 2 else re.sub(r"([*|_])", r"\\\1", word)
                yield "".join(words)
        yield ""


def _paragraphs(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Whether it is an example, and the lines of each paragraph."""
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            paragraph = list(group)
            yield paragraph[0].lstrip().startswith(">>>"), paragraph


def _mathml(block: bool) -> Any:
    def visit(writer: Any, node: Any) -> None:
        from docutils.nodes import SkipNode

        formula = tex2mathml(node.astext(), as_block=block)
        writer.body.append(f'<div class="formula">{formula}</div>' if block else formula)
        raise SkipNode

    return visit


def _type_names(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> Any:
    """Type aliases by their names, in dataclasses too."""
    plain = [text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returns)]
    return tuple(plain)


def _skip(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a NamedTuple are in its signature."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _one_signature(app: Any) -> None:
    """Overloads are for type checkers: they say **options, the signature says every argument."""
    analyzer = ModuleAnalyzer.for_module("polyattn._attention")
    analyzer.analyze()
    analyzer.overloads.clear()


def _every_public_name_has_a_place(app: Any, env: Any) -> None:
    """A warning, which is an error in `make docs`, for each name of tests/house/surface.toml that no page of reference shows."""
    surface = Path(app.srcdir).parent / "tests" / "house" / "surface.toml"
    python = env.domains["py"]
    for name in unshown(
        tomllib.loads(surface.read_text(encoding="utf-8")), set(python.objects), set(python.modules)
    ):
        logging.getLogger(__name__).warning(
            "%s is public and on no page; show it in docs/reference/", name, location="reference/index"
        )


def unshown(surface: dict[str, list[str]], shown: set[str], modules: set[str]) -> list[str]:
    """The public names, "module.name", that are not shown: neither so nor, the same thing, as that of another module."""
    elsewhere: dict[str, list[Any]] = {}
    for name in shown:
        module, _, last = name.rpartition(".")
        if module in modules:
            elsewhere.setdefault(last, []).append(getattr(import_module(module), last, None))
    return [
        f"{module}.{name}"
        for module, names in surface.items()
        for name in names
        if f"{module}.{name}" not in shown
        and not any(thing is getattr(import_module(module), name) for thing in elsewhere.get(name, ()))
    ]


def _example_of_explain(app: Any, error: Exception | None) -> None:
    """The page that docs/explain.md shows, made of the model itself."""
    if error is None and app.builder.format == "html":
        from polyattn.models.explain import page

        made = page("The cat sat on the mat because it was tired", layer=5, head=11)
        (app.outdir / "explain-example.html").write_text(made, encoding="utf-8")


def _downloads_for_teachers(app: Any, error: Exception | None) -> None:
    """The sheet and the figures that docs/teachers/index.md offers."""
    if error is None and app.builder.format == "html":
        program = app.confdir / "teachers" / "downloads.py"
        subprocess.run([sys.executable, program, app.outdir / "teachers"], check=True)


def setup(app: Any) -> None:
    app.connect("builder-inited", _one_signature)
    app.connect("build-finished", _example_of_explain)
    app.connect("build-finished", _downloads_for_teachers)
    app.connect("env-check-consistency", _every_public_name_has_a_place)
    app.connect("autodoc-process-signature", _type_names)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _as_written)
    app.add_html_math_renderer("mathml", (_mathml(False), None), (_mathml(True), None))
