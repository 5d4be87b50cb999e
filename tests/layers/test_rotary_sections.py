"""Positions on several axes: against the modules of Qwen2-VL and Qwen3-VL, and against one axis at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch
from shared.running import LIBRARIES, applied, bench_of, normal

from polyattn.rotary import Rotary, YaRN

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
HALF = 64  # pairs of a width of 128
#: float32 powers round their exponent, and the angle rounds once, times the position.
ROOM = (math.log(1e6) + 16) * 2.0**-24


def grid(batch: int, axes: int = 3) -> Any:
    """Positions of six tokens on every axis."""
    return np.random.default_rng(0).integers(0, 50, size=(axes, batch, 6))


def cos_and_sin(rotary: Rotary, positions: Any) -> tuple[Any, Any]:
    x = np.concatenate([np.ones((1, 1, 6, HALF)), np.zeros((1, 1, 6, HALF))], -1)
    out = rotary(np.broadcast_to(x, (positions.shape[1], 1, 6, 2 * HALF)), positions)[:, 0]
    return out[..., :HALF], out[..., HALF:]


@pytest.mark.parametrize("model", ["Qwen2-VL", "Qwen3-VL"])
def test_sections_are_those_of_the_model_whose_config_was_read(model: str) -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, Qwen2VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding

    sizes = {"hidden_size": 256, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    if model == "Qwen2-VL":
        config: Any = Qwen2VLTextConfig(**sizes, rope_parameters=rope | {"mrope_section": [16, 24, 24]})
        module: Any = Qwen2VLRotaryEmbedding(config)
    else:
        more = {"mrope_section": [24, 20, 20], "mrope_interleaved": True}
        config = Qwen3VLTextConfig(**sizes, head_dim=128, rope_parameters=rope | more)
        module = Qwen3VLTextRotaryEmbedding(config)
    positions = grid(2)
    theirs = module(torch.zeros(1), torch.tensor(positions))
    rotary = Rotary.from_config(config)
    for x, y in zip(cos_and_sin(rotary, positions), theirs, strict=True):
        assert np.abs(x - y[..., :HALF].numpy()).max() <= 50 * ROOM + 4 * 2.0**-24
    other = {"chunked": "interleaved", "interleaved": "chunked"}[rotary.section_order]
    swapped = Rotary(base=1e6, sections=(24, 20, 20), section_order=other)  # type: ignore[arg-type]
    assert np.abs(cos_and_sin(swapped, positions)[0] - theirs[0][..., :HALF].numpy()).max() > 0.1


def test_axial_sections_are_those_of_a_vision_encoder() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import (
        Qwen2VLVisionConfig,
        Qwen2VLVisionRotaryEmbedding,
    )

    config = Qwen2VLVisionConfig(embed_dim=256, num_heads=2)
    config.num_attention_heads, config.head_dim = 2, 128
    config.rope_parameters = {"rope_type": "axial", "rope_theta": 10000.0}
    positions = grid(1, 2)
    given = torch.tensor(positions[:, 0])  # their comment says (2, N), their code reads (N, 2)
    theirs = Qwen2VLVisionRotaryEmbedding(config)(torch.zeros(1), given.T)
    rotary = Rotary(sections=(32, 32), section_order="axial")
    for x, y in zip(cos_and_sin(rotary, positions), theirs, strict=True):
        assert np.abs(x[0] - y[:, :HALF].numpy()).max() <= 50 * ROOM + 4 * 2.0**-24


@pytest.mark.parametrize("order", ["chunked", "interleaved", "axial"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_pair_turns_by_its_own_axis_alone(library: str, order: Any) -> None:
    sections, x = (3, 2, 3) if order != "interleaved" else (4, 2, 2), normal(2, 3, 6, 16)
    positions = grid(2).astype(np.int32)
    rotary = Rotary(sections=sections, section_order=order)
    axis = {
        "chunked": [0, 0, 0, 1, 1, 2, 2, 2],
        "axial": [0, 0, 0, 1, 1, 2, 2, 2],
        "interleaved": [0, 1, 2, 0, 1, 2, 0, 0],
    }[order]
    each = [[i / n for i in range(n)] for n in sections] if order == "axial" else [[i / 8 for i in range(8)]]
    frequency = 10000.0 ** -np.array([e for exponents in each for e in exponents])
    assert rotary.frequencies(16) == pytest.approx(frequency, rel=4 * 2.0**-53)
    angle = np.stack([positions[a] * f for a, f in zip(axis, frequency, strict=True)], -1)[:, None]
    turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angle)
    true = np.concatenate([turned.real, turned.imag], -1)
    at = bench_of(library).array(positions)
    room = 2 * np.abs(x).max() * (2 * math.pi * 2.0**-23 + 8 * 2.0**-24)
    out = applied(library, lambda params, x: rotary(x, at), {}, x)
    assert np.abs(out - true).max() <= room
    out = applied(library, lambda params, x: rotary(x, at, layout="BLHD"), {}, x.swapaxes(1, 2))
    assert np.abs(out.swapaxes(1, 2) - true).max() <= room
    out = applied(library, lambda params, x: rotary(x, at[:, 0, ...]), {}, x[:1])
    assert np.abs(out - true[:1]).max() <= room


@pytest.mark.parametrize("order", ["chunked", "interleaved"])
def test_text_has_the_same_position_on_all_axes_and_is_turned_as_by_one(order: Any) -> None:
    x, positions = normal(2, 3, 6, 16), np.arange(6) + 70_000
    scaling = YaRN(4.0, 64)
    several = Rotary(sections=(4, 2, 2), section_order=order, scaling=scaling, interleaved=True)
    one = Rotary(scaling=scaling, interleaved=True)
    assert (several(x, np.stack([positions] * 3)) == one(x, positions)).all()


X = np.zeros((2, 3, 6, 16))
REFUSED = [
    (lambda: Rotary(sections=(3, 2, 2))(X, np.zeros((3, 6), int)), ValueError, "polyattn.rotary.Rotary: expected sections of 8 pairs together, half of the width 16, got (3, 2, 2); the sum of them is 7"),
    (lambda: Rotary(sections=(4, 2, 2))(X, np.arange(6)), ValueError, "polyattn.rotary.Rotary: expected positions of shape (3, 6) or (3, B, 6), one on each axis for each token of x (2, 3, 6, 16) in layout BHLD, got (6,); text has the same on all axes"),
    (lambda: Rotary(sections=(2, 3, 3), section_order="interleaved"), ValueError, "polyattn.rotary.Rotary: expected the first of interleaved sections to be the largest, got (2, 3, 3); axes take pairs in turn, and the first what is left"),
    (lambda: Rotary(section_order="axial"), ValueError, "polyattn.rotary.Rotary: expected sections with section_order='axial', got None; say how many pairs each axis has"),
    (lambda: Rotary(sections=(8,), section_order="spiral"), ValueError, "polyattn.rotary.Rotary: expected section_order 'chunked' (Qwen2-VL), 'interleaved' (Qwen3-VL) or 'axial' (vision encoders), got 'spiral'; pass one of these"),
    (lambda: Rotary(sections=8), TypeError, "polyattn.rotary.Rotary: expected sections as a tuple of integers, the pairs of each axis, got 8; Qwen2-VL has (16, 24, 24)"),
    (lambda: Rotary(sections=(8, 0)), ValueError, "polyattn.rotary.Rotary: expected every section >= 1, got 0; pass a larger number"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_with_a_sentence(make: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence
