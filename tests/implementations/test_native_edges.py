"""What the native paths of PyTorch must not let through: hidden NaN where queries go tile by tile, changed arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import polyattn_torch, torch

from polyattn import AuxRequest, attention, masks, mods
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
        polyattn_torch.native, "_by_key_ranges", lambda p, mask: calls.append(p) or by_key_ranges(p, mask)
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


HIDDEN_ROWS: dict[str, dict[str, Any]] = {
    "lengths": {"mask": masks.query_lengths(3)},
    "lengths and causal": {"mask": masks.query_lengths(3) & masks.causal(), "query_offset": 0},
    "array": {"mask": torch.arange(300)[:, None].expand(300, 390) < 3},
    "array of one head": {
        "mask": (torch.arange(300)[:, None] < 3) | (torch.arange(4)[:, None, None] > 0).expand(4, 300, 390)
    },
    "bias": {"bias": torch.where(torch.arange(300)[:, None].expand(300, 390) < 3, 0.5, -torch.inf)},
    "bias of rows": {"bias": torch.where(torch.arange(300)[:, None] < 3, 0.5, -torch.inf)},
    "positions": {"mask": masks.causal(), "query_offset": -297},
    "everything": {"mask": masks.query_lengths(0)},
    "sinks": {"mask": masks.query_lengths(3), "sinks": torch.zeros(4, dtype=torch.float64)},
}


@pytest.mark.rule("rule-6", "rule-7", "rule-23")
@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize(
    ("how", "way"),
    [
        (how, way)
        for how in HIDDEN_ROWS
        for way in ("reference", "blockwise", "native", "auto")
        if (how, way) != ("sinks", "native")  # no kernel of the CPU has a sink beside a mask
    ],
)
def test_poison_in_a_query_row_that_sees_nothing_reaches_nobody(how: str, way: str, rows: int) -> None:
    options = {
        name: x[..., :rows, :] if isinstance(x, torch.Tensor) and x.ndim > 1 else x
        for name, x in HIDDEN_ROWS[how].items()
    }
    if how == "positions":
        options["query_offset"] = -rows + 3
    q, k, v = Q[:, :, :rows], K, V
    with torch.no_grad():
        seen = attention(
            torch.tensor(q),
            *map(torch.tensor, (k, v)),
            **options,
            return_aux=AuxRequest(lse=True),
            implementation="reference",
        )[1].lse.isfinite()
    hidden = ~seen.numpy()
    assert hidden.any()

    def run(q: np.ndarray, cotangent: np.ndarray, grad: bool = True) -> list[torch.Tensor]:
        leaves = [torch.tensor(x, requires_grad=grad) for x in (q, k, v)]
        out = attention(*leaves, **options, implementation=way)
        return [out.detach(), *(torch.autograd.grad(out, leaves, torch.tensor(cotangent)) if grad else ())]

    clean = run(q, q)
    assert not clean[0][hidden].any()
    assert not clean[1][hidden].any()
    for poison in (np.nan, np.inf):
        spoilt = np.where(hidden[..., None], poison, q)
        for found in (run(spoilt, q), run(q, spoilt), run(spoilt, q, grad=False)):
            for x, expected in zip(found, clean, strict=False):
                assert torch.equal(x, expected)


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


@pytest.mark.rule("rule-12", "rule-13")
@pytest.mark.parametrize("way", ["reference", "blockwise", "fused", "auto"])
@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda s: 1.0, "real floating scores, got float;"),
        (lambda s: True, "real floating scores, got bool;"),
        (lambda s: None, "real floating scores, got NoneType;"),
        (lambda s: s > 0, "real floating scores, got torch.bool;"),
        (lambda s: s.int(), "real floating scores, got torch.int32;"),
        (lambda s: s[..., :1], "scores of the shape of score, "),
        (lambda s: s.sum(), "scores of the shape of score, "),
    ],
)
def test_a_score_mod_that_returns_no_scores_is_one_sentence(way: str, returned: Any, got: str) -> None:
    x = torch.tensor(Q[..., :6, :]).float()
    for mod in (lambda s, *at: returned(s), mods.compose(mods.softcap(2.0), lambda s, *at: returned(s))):
        with pytest.raises((TypeError, ValueError)) as caught:
            attention(x, x, x, score_mod=mod, query_offset=0, implementation=way)
        start = "polyattn.attention: expected score_mod(score, b, h, q_idx, kv_idx) to return "
        assert str(caught.value).startswith(start + got)


def test_the_kernel_that_another_thread_asks_for_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sdpa_kernel` is a switch of the whole process: attention turns none, whatever runs."""
    turned: list[Any] = []
    for name in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_math_sdp", "enable_cudnn_sdp"):
        monkeypatch.setattr(torch.backends.cuda, name, turned.append)
    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", lambda *x, **_: turned.append(x))
    q = torch.randn(1, 2, 300, 8, requires_grad=True)
    for options in ({}, {"is_causal": True}, {"mask": masks.sliding_window(9)}, {"sinks": torch.zeros(2)}):
        attention(q, q, q, **options).sum().backward()
    assert turned == []
