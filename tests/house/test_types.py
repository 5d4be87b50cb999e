"""To a type checker the result of a call is an array of the type that went in: NumPy's stays NumPy's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = '''
import numpy as np
from numpy.typing import NDArray
from polyattn import AuxRequest, attention, attention_vjp, layers, trace
from polyattn.additive import additive_attention
from polyattn.differential import differential_attention
from polyattn.latent import latent_attention
from polyattn.linear import linear_attention
from polyattn.mixing import multi_token_attention, talking_heads_attention
from polyattn.rotary import Rotary, rotate, sinusoidal
from polyattn.selection import moba_attention, selected_attention


class Tensor:
    """Of any library."""


q: NDArray[np.float64] = np.zeros((2, 3))
t = Tensor()
aux = AuxRequest(lse=True)
out, pullback = attention_vjp(q, q, q)
layer, norm = layers.MultiHeadAttention(8, 2), layers.LayerNorm(8, epsilon=1e-5)
params = layer.init(0, like=q)
'''
ARRAY = "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.float64]]"
SAID = {
    "attention(q, q, q)": ARRAY,
    "attention(t, t, t, is_causal=True, scale=0.5)": "Tensor",
    "attention(q, q, q, return_aux=aux)": f"tuple[{ARRAY}, AttentionAux]",
    "latent_attention(t, t, t, t, is_causal=True)": "Tensor",
    "differential_attention(q, q, q, 0.5)": ARRAY,
    "selected_attention(t, t, t, t)": "Tensor",
    "moba_attention(q, q, q, block_size=2, count=2)": ARRAY,
    "talking_heads_attention(t, t, t, t, t, is_causal=True)": "Tensor",
    "multi_token_attention(q, q, q, q)": ARRAY,
    "out": ARRAY,
    "trace(t, t, t).out": "Tensor",
    "additive_attention(q, q, q, q)": ARRAY,
    "additive_attention(q, q, q, q, return_aux=aux)": f"tuple[{ARRAY}, AttentionAux]",
    "linear_attention(t, t, t)": "tuple[Tensor, Tensor]",
    "layer(params, q)": ARRAY,
    "layer(params, q, t, is_causal=True)": ARRAY,
    "norm(params, t)": "Tensor",
    "layers.Linear(8, 5)(params, t)": "Tensor",
    'layers.MLP(8, 5, activation="gelu")(params, q)': ARRAY,
    "Rotary()(q, q)": ARRAY,
    "rotate(q, q, q)": ARRAY,
    "sinusoidal(2, 2, t)": "Tensor",
}


def revealed(tmp_path: Path, expressions: list[str]) -> tuple[list[str], str]:
    """What mypy takes these expressions for, and all that it says."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + "".join(f"reveal_type({expression})\n" for expression in expressions))
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path), str(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MYPYPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
    ).stdout  # fmt: skip
    types = re.findall(r'^.*program\.py:\d+: note: Revealed type is "(.*)"$', said, re.MULTILINE)
    return [re.sub(r"\b(?:polyattn\._attention|program)\.", "", found) for found in types], said


@pytest.mark.slow
def test_what_comes_out_has_the_type_of_what_goes_in(tmp_path: Path) -> None:
    types, said = revealed(tmp_path, list(SAID))
    assert "error" not in said, said
    assert dict(zip(SAID, types, strict=True)) == SAID
