"""The pages of docs/ are true: their programs run, in order, in one namespace."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from polyattn import layers
from polyattn.layers import PRESETS

DOCS = Path(__file__).parents[2] / "docs"
MECHANISMS = [
    f"mechanisms/{path.name}" for path in sorted(DOCS.glob("mechanisms/*.md")) if path.stem != "index"
]
CODE = sorted([*DOCS.glob("**/*.md"), *DOCS.parent.glob("examples/*/README.md")])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(
    "page",
    [
        "index.md",
        "howto/decode.md",
        "howto/long.md",
        "howto/mismatch.md",
        "howto/port.md",
        "howto/variant.md",
        "first.md",
        "layers.md",
        "onnx.md",
        "masks.md",
        "masks-gallery.md",
        "positions.md",
        "linear.md",
        "models.md",
        "whole-models.md",
        "normalizers.md",
        "gradients.md",
        "caches.md",
        "flex.md",
        "ports.md",
        "pictures.md",
        *MECHANISMS,
    ],
)
def test_the_programs_of_a_page_run(
    page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    programs = re.findall(r"```(?:python|\{code-cell\}(?:\n:[^\n]*\n)?)\n(.*?)```", text, re.DOTALL)
    assert programs
    namespace: dict[str, Any] = {}
    said = ""
    for program in programs:
        exec(compile(program, page, "exec"), namespace)
        said += (printed := capsys.readouterr().out)
        # What is printed as one number is a difference of two ways to the same result.
        assert all(float(line) < 1e-5 for line in printed.splitlines() if re.fullmatch(r"[\d.e-]+", line))
    assert said


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(DOCS.parent)))
def test_no_line_of_code_is_longer_than_a_page_is_wide(path: Path) -> None:
    blocks = re.findall(
        r"^```(?:python|sh|\{code-cell\})\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE
    )
    assert [line for block in blocks for line in block.splitlines() if len(line) > 110] == []


def test_the_table_of_presets_is_that_of_the_code() -> None:
    page = (DOCS / "layers.md").read_text()
    said = {
        "epsilon": lambda use: f"{use['epsilon']:.0e}".replace("e-0", "e-"),
        "activation": lambda use: use["activation"],
        "norm": lambda use: "first" if use["norm_first"] else "last",
        "dropout": lambda use: f"{use['dropout_rate']:g}",
    }
    assert "| | " + " | ".join(f'`"{name}"`' for name in PRESETS) + " |" in page
    for row, entry in said.items():
        assert f"| {row} | " + " | ".join(entry(use) for use in PRESETS.values()) + " |" in page


def test_the_page_of_layers_names_every_one_that_is_attention() -> None:
    page = (DOCS / "layers.md").read_text()
    attentions = [name for name in layers.__all__ if name.endswith(("Attention", "Block"))]
    assert len(attentions) > 10
    assert [name for name in attentions if f"`{name}" not in page] == []


def test_what_the_page_shows_as_given_must_be_given() -> None:
    for layer, argument in (
        (layers.GroupedQueryAttention, "num_kv_heads"),
        (layers.CausalSelfAttention, "context_length"),
    ):
        with pytest.raises(TypeError, match=f"expected {argument} too"):
            layer(8, 4)


def test_every_public_module_has_a_page_of_reference() -> None:
    surface = tomllib.loads((Path(__file__).parent / "surface.toml").read_text(encoding="utf-8"))
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    for module in [module for module, names in surface.items() if names]:
        assert f".. automodule:: {module}\n" in (DOCS / "reference" / f"{module}.md").read_text(
            encoding="utf-8"
        )
        assert f"[{module}]({module}.md)" in index
