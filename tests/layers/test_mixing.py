"""Talking heads and multi-token attention beside what they generalise; masks, hidden keys, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import torch
from shared.running import LIBRARIES, applied, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, attention, layers, masks
from polyattn.layers import MultiTokenAttention, TalkingHeadsAttention
from polyattn.mixing import multi_token_attention, talking_heads_attention
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.truth.rounding import noise

Q, K, V = normal(2, 4, 5, 6, seed=1), normal(2, 2, 7, 6, seed=2), normal(2, 2, 7, 3, seed=3)
ONE, TWO = normal(4, 4, seed=4), normal(4, 4, seed=5)
KERNEL, GROUPS = normal(4, 2, 3, seed=6), normal(2, 2, 2, seed=7)
CAUSAL = np.tri(5, 7, 2)
END: dict[str, Any] = {"is_causal": True, "query_offset": "end"}


def few_roundings(true: np.ndarray[Any, Any]) -> float:
    """The room of two float64 ways to one result of short sums."""
    return 64 * UNIT_ROUNDOFF["float64"] * float(np.abs(true).max())


def talking(q: Any, k: Any, v: Any, one: Any, two: Any) -> Any:
    """Einsums over all heads at once, where the layers' formula goes head by head."""
    k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
    s = np.einsum("bhls,hg->bgls", q @ k.swapaxes(-1, -2) / np.sqrt(6.0), one)
    w = np.einsum("bhls,hg->bgls", formulas.softmax(s, CAUSAL), two)
    return w @ v


def multi_token(q: Any, k: Any, v: Any, kernel: Any, groups: Any) -> Any:
    """The paper's loops over the neighbourhood of every score."""
    k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
    s = q @ k.swapaxes(-1, -2) / np.sqrt(6.0) * CAUSAL
    t = np.zeros(s.shape)
    for h, i, j, a, b in np.ndindex(4, 5, 7, 2, 3):
        row, column = i - a, j - (b - 1)
        if row >= 0 and 0 <= column < 7:
            t[:, h, i, j] = t[:, h, i, j] + kernel[h, a, b] * s[:, h, row, column]
    w = formulas.softmax(t, CAUSAL)
    return np.einsum("bugls,ugf->bufls", w.reshape(2, 2, 2, 5, 7), groups).reshape(w.shape) @ v


@pytest.mark.parametrize("library", ["numpy", "autograd", "strict", "torch"])
def test_grouped_heads_and_rows_at_the_end_are_as_the_papers_write_them(library: str) -> None:
    bench = bench_of(library)
    for f, formula, maps in (
        (talking_heads_attention, talking, (ONE, TWO)),
        (multi_token_attention, multi_token, (KERNEL, GROUPS)),
    ):
        true = formula(Q, K, V, *maps)
        found = bench.numpy(f(*(bench.array(x, "float64") for x in (Q, K, V, *maps)), **END))
        assert np.abs(found - true).max() <= few_roundings(true)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "layer",
    [
        TalkingHeadsAttention(8, 4, context_dim=6),
        MultiTokenAttention(8, 4, context_dim=6, query_width=3, key_width=4, group_size=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_at_first_it_is_multi_head_attention(library: str, layer: Any) -> None:
    plain = layers.MultiHeadAttention(8, 4, context_dim=6, qkv_bias=False, out_bias=False)
    bench, x, context = bench_of(library), normal(2, 5, 8, seed=1), normal(2, 7, 6, seed=2)
    params = mapped(bench.numpy, layer.init(0, like=bench.array(x, "float32")))
    shared = {name: params[name] for name in plain.shapes()}
    found, true = (applied(library, which, p, x, context) for which, p in ((layer, params), (plain, shared)))
    room = 4 * noise(lambda n: formulas.multihead(mapped(n, shared), n(x), n(context))[0])
    assert np.abs(found - true).max() <= 2 * room < 1e-4  # both err


def test_the_identity_and_a_kernel_of_one_entry_are_attention() -> None:
    true, one = attention(Q, K, V, **END), np.eye(4)
    kernel = np.zeros((4, 2, 3))
    kernel[:, 0, 1] = 1.0
    for found in (
        talking_heads_attention(Q, K, V, one, one, **END),
        multi_token_attention(Q, K, V, kernel, **END),
    ):
        assert np.abs(found - true).max() <= few_roundings(V)


def test_rows_that_see_nothing_are_0_and_hidden_keys_reach_nobody() -> None:
    allowed = np.ones((5, 7), bool)
    allowed[:, 3], allowed[2] = False, False
    k, v, q = K.copy(), V.copy(), Q.copy()
    k[..., 3, :], v[..., 3, :], q[..., 2, :] = np.nan, np.inf, np.nan
    for f, maps in ((talking_heads_attention, (ONE, TWO)), (multi_token_attention, (KERNEL, GROUPS))):
        clean, poisoned = f(Q, K, V, *maps, mask=allowed), f(q, k, v, *maps, mask=allowed)
        assert np.array_equal(clean, poisoned)
        assert (clean[:, :, 2] == 0).all()
        given = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
        f(*given, *map(torch.tensor, maps), mask=torch.tensor(allowed)).sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in given)


def test_a_convolution_sees_no_later_row_and_no_later_key() -> None:
    layer = MultiTokenAttention(8, 2, query_width=3, key_width=5, group_size=2, is_causal=True)
    params, x = drawn(layer), normal(2, 6, 8, seed=1)
    before = layer(params, x)
    for t in range(1, 6):
        changed = np.concatenate([x[:, :t], 9.0 + x[:, t:]], 1)
        assert np.array_equal(layer(params, changed)[:, :t], before[:, :t])


def test_scores_and_mixed_weights_can_be_seen() -> None:
    out, aux = talking_heads_attention(
        Q, K, V, ONE, TWO, **END, return_aux=AuxRequest(weights=True, scores=True)
    )
    assert np.abs(aux.weights @ np.repeat(V, 2, 1) - out).max() <= few_roundings(out)
    assert np.isneginf(aux.scores).sum() == 8 * (CAUSAL == 0).sum()
    assert (aux.weights < 0).any()  # no averages


def test_masks_act_between_the_two_steps() -> None:
    lengths = masks.key_lengths([7, 3])
    found = talking_heads_attention(Q, K, V, ONE, TWO, mask=lengths)
    alone = talking_heads_attention(Q[1], K[1, :, :3], V[1, :, :3], ONE, TWO)
    assert np.abs(found[1] - alone).max() <= few_roundings(alone)


WHO = "polyattn.mixing"
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "w_scores": (
        lambda: talking_heads_attention(Q, K, V, ONE[:3], TWO),
        f"{WHO}.talking_heads_attention: expected w_scores of shape (4, 4), got (3, 4); query has 4 heads",
    ),
    "kernel": (
        lambda: multi_token_attention(Q, K, V, KERNEL[0]),
        f"{WHO}.multi_token_attention: expected kernel of shape (4, n, n), got (2, 3); query has 4 heads",
    ),
    "groups": (
        lambda: multi_token_attention(Q, K, V, KERNEL, GROUPS[:1]),
        f"{WHO}.multi_token_attention: expected w_heads (H / C, C, C) for 4 heads, got (1, 2, 2); C heads mix with one "
        "another",
    ),
    "lse": (
        lambda: talking_heads_attention(Q, K, V, ONE, TWO, return_aux=AuxRequest(lse=True)),
        f"{WHO}.talking_heads_attention: expected return_aux to ask for weights or scores, got lse; mixed weights are no "
        "softmax of one row",
    ),
    "group_size": (
        lambda: MultiTokenAttention(8, 4, query_width=1, key_width=1, group_size=3),
        "polyattn.layers.MultiTokenAttention: expected group_size to divide num_heads, got group_size=3 and num_heads=4; "
        "every group has equally many heads",
    ),
    "heads": (
        lambda: TalkingHeadsAttention(8, 3),
        "polyattn.layers.TalkingHeadsAttention: expected num_heads to divide embed_dim, got embed_dim=8 and num_heads=3; "
        "change one of them, or give head_dim",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence
