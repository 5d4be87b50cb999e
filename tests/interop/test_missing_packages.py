"""Whoever asks an adapter without its library is told which package to install, or which one to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASKED = {
    "from polyattn_torch import Module": ("torch", "polyattn_torch", "pip install 'polyattn[torch]'"),
    "import polyattn_torch.flex": ("torch", "polyattn_torch", "pip install 'polyattn[torch]'"),
    "from polyattn_jax import nnx_module": ("jax", "polyattn_jax", "pip install 'polyattn[jax]'"),
    "import polyattn_jax; polyattn_jax.nnx_module(None)": (
        "flax",
        "polyattn_jax.nnx_module",
        "pip install flax",
    ),
    "import polyattn_jax; polyattn_jax.equinox_module(None)": (
        "equinox",
        "polyattn_jax.equinox_module",
        "pip install equinox",
    ),
}


def last_line(code: str, before: str = "") -> str:
    path = os.pathsep.join(
        filter(None, [before, str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("code", ASKED)
def test_a_package_that_is_missing_is_named(code: str) -> None:
    package, who, advice = ASKED[code]
    hidden = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        f'            raise ModuleNotFoundError("No module named {package!r}", name={package!r})\n'
        "sys.meta_path.insert(0, Hidden())\n"
    )
    assert last_line(hidden + code) == (
        f"ModuleNotFoundError: {who}: expected the package {package}, got: No module named '{package}'; install it, {advice}"
    )


@pytest.mark.parametrize(("package", "adapter"), [("torch", "polyattn_torch"), ("jax", "polyattn_jax")])
def test_a_package_that_is_there_and_broken_is_another_sentence(
    package: str, adapter: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('libfoo.so.7 is missing')\n")
    assert last_line(f"import {adapter}", str(tmp_path)) == (
        f"ImportError: {adapter}: expected the package {package}, got: libfoo.so.7 is missing; mend that installation"
    )
