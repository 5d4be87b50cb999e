"""What the native paths of PyTorch must not let through: hidden NaN where queries go tile by tile, changed arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import polyattn_torch, torch

from polyattn import attention, masks
from polyattn.truth import Spec, eta, truth

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=shape) for shape in ((1, 4, 300, 8), (1, 2, 390, 8), (1, 2, 390, 8)))


@pytest.mark.rule("rule-7")
@pytest.mark.parametrize(
    ("mask", "hidden"),
    [
        (masks.causal(), slice(300, None)),
        (masks.causal() & masks.dilated(3) & ~masks.window(1, 1), slice(298, None)),
        (masks.window(5, 5) & masks.key_lengths(200), slice(200, None)),
        (masks.chunked(64) & masks.key_lengths(17), slice(17, 64)),
    ],
    ids=str,
)
def test_hidden_nan_stays_out_of_query_tiles_bit_for_bit(
    mask: Any, hidden: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    by_key_ranges = polyattn_torch.native._by_key_ranges
    monkeypatch.setattr(
        polyattn_torch.native, "_by_key_ranges", lambda p: calls.append(p) or by_key_ranges(p)
    )

    def run(k: np.ndarray, v: np.ndarray) -> list[torch.Tensor]:
        leaves = [torch.tensor(x, requires_grad=True) for x in (Q, k, v)]
        out = attention(*leaves, mask=mask, query_offset=0, implementation="native")
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.tensor(Q))]

    k, v = K.copy(), V.copy()
    k[:, :, hidden], v[:, :, hidden] = np.nan, np.inf
    for clean, found in zip(run(K, V), run(k, v), strict=True):
        assert torch.equal(clean, found)
    assert len(calls) == 2, "the path under test did not run"


@pytest.mark.parametrize("way", ["reference", "blockwise", "native", "auto"])
def test_a_mask_whose_array_or_ids_change_in_place_is_read_anew(way: str) -> None:
    q, k, v = (torch.tensor(x) for x in (Q, K[:, :, :300], V[:, :, :300]))
    ids, allowed = torch.zeros(300, dtype=torch.int32), torch.ones((1, 1, 300, 300), dtype=torch.bool)
    by_ids, by_array = masks.segments(ids), masks.from_array(allowed)
    for mask in (by_ids, by_array):
        attention(q, k, v, mask=mask, implementation=way)
    ids[150:], allowed[..., 150:] = 1, False
    apart = (np.arange(300)[:, None] < 150) == (np.arange(300) < 150)
    for mask, seen in ((by_ids, apart), (by_array, (np.arange(300) < 150)[None])):
        out = attention(q, k, v, mask=mask, implementation=way)
        spec = Spec(Q, K[:, :, :300], V[:, :, :300], allowed=seen[None, None])
        assert eta(out.numpy(), truth(spec)["out"], "float64") <= 4


def test_values_that_cannot_be_read_have_a_shape() -> None:
    x = torch.zeros((1, 2, 5, 4), device="meta")
    for way in ("reference", "native", "auto"):
        out = attention(x, x, x, is_causal=True, implementation=way)
        assert (out.device.type, tuple(out.shape)) == ("meta", (1, 2, 5, 4))
