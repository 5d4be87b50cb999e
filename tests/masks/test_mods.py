"""Score modifications: golden values, order, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyattn
from polyattn import Blockwise, mods
from polyattn.mods import alibi_slopes, relative_bucket
from polyattn.parity import Spec, eta
from polyattn.testing import Bench
from polyattn.truth import truth

GOLDEN_SLOPES = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    3: [2**-4, 2**-8, 2**-2],
    4: [2**-2, 2**-4, 2**-6, 2**-8],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    8: [2.0**-i for i in range(1, 9)],
    12: [2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)],
    16: [2.0 ** (-i / 2) for i in range(1, 17)],
}


@pytest.mark.parametrize("heads", GOLDEN_SLOPES)
def test_alibi_slopes_for_any_number_of_heads(heads: int) -> None:
    assert alibi_slopes(heads) == GOLDEN_SLOPES[heads]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 12), (16, 64)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_relative_buckets_are_those_of_t5(bidirectional: bool, buckets: int, farthest: int) -> None:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-200, 201)
    ours = relative_bucket(distance, buckets, bidirectional=bidirectional, max_distance=farthest)
    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional=bidirectional, num_buckets=buckets, max_distance=farthest
    )
    assert (ours == theirs.numpy()).all()


@pytest.mark.rule("rule-1")
def test_softcap_comes_before_the_mask() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 1, 4, 4)) * 8
    hidden = np.ones((1, 1, 4, 4), bool)
    hidden[..., 2:] = False
    out = polyattn.attention(q, k, v, mask=hidden, score_mod=mods.softcap(2.0))
    assert eta(out, truth(Spec(q, k, v, allowed=hidden, softcap=2.0))["out"], "float64") <= 4
    assert (out == polyattn.attention(q, k[..., :2, :], v[..., :2, :], score_mod=mods.softcap(2.0))).all()


def test_compose_applies_the_first_modification_first() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 5, 4))
    first = mods.compose(mods.softcap(1.0), mods.alibi(2))
    distance = abs(np.arange(5)[:, None] - np.arange(5)) * np.array([2**-4, 2**-8])[:, None, None]
    out = polyattn.attention(q, k, v, score_mod=first)
    assert eta(out, truth(Spec(q, k, v, softcap=1.0, shift=-distance[None]))["out"], "float64") <= 4
    swapped = polyattn.attention(q, k, v, score_mod=mods.compose(mods.alibi(2), mods.softcap(1.0)))
    assert (out != swapped).any()


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: mods.softcap(0.0), ValueError, "polyattn.mods.softcap: expected a cap between 0 and 2**60, got 0.0; leave the mod out for no cap"),
        (lambda: mods.softcap(-1), ValueError, "polyattn.mods.softcap: expected a cap between 0 and 2**60, got -1; leave the mod out for no cap"),
        (lambda: mods.softcap(np.array(-2.0)), ValueError, "polyattn.mods.softcap: expected a cap between 0 and 2**60, got -2.0; leave the mod out for no cap"),
        (lambda: mods.softcap("2"), TypeError, "polyattn.mods.softcap: expected a number or a 0-d array, got '2'; pass cap > 0"),
        (lambda: mods.alibi(0), ValueError, "polyattn.mods.alibi_slopes: expected heads >= 1, got 0; pass the number of heads"),
        (lambda: mods.alibi(np.ones((2, 1, 1))), ValueError, "polyattn.mods.alibi: expected slopes of shape (Hq,) or (B, Hq), got (2, 1, 1); give one per head, or one per batch item and head"),
        (lambda: mods.relative_position_bias(np.ones(8)), ValueError, "polyattn.mods.relative_position_bias: expected a table of shape (buckets, Hq), got (8,); give one column per head"),
        (lambda: mods.relative_position_bias(np.ones((8, 2)), max_distance=2), ValueError, "polyattn.mods.relative_position_bias: expected at least 4 buckets and max_distance beyond the 2 exact ones, got 8 and 2; T5 has 32 buckets and 128"),
        (lambda: mods.compose(np.ones(3)), TypeError, "polyattn.mods.compose: expected functions (score, b, h, q_idx, kv_idx) -> score, got an array of shape (3,) and dtype float64; an array of additive values is attention's bias="),
    ],
)  # fmt: skip
def test_wrong_modifications_are_refused_with_a_sentence(make, error, sentence) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence


def test_alibi_with_too_few_slopes_is_refused() -> None:
    q = np.zeros((1, 4, 3, 2))
    with pytest.raises(ValueError) as caught:
        polyattn.attention(q, q, q, score_mod=mods.alibi([0.5, 0.25]))
    assert str(caught.value) == (
        "polyattn.attention: expected score_mod to have parameters for 4 heads, got 2; give one slope or column per head, and per batch item only for all of them"
    )


@pytest.mark.parametrize("implementation", ["reference", Blockwise(3, 4)])
def test_alibi_slopes_per_batch_item_are_those_of_each_item(eager: Bench, implementation: Any) -> None:
    rng = np.random.default_rng(0)
    drawn, given = (rng.normal(size=s).astype(np.float32).astype(float) for s in ((3, 2, 4, 7, 5), (2, 4)))
    q, k, v = (eager.array(x, "float32") for x in drawn)
    slopes = eager.array(given, "float32")
    shift = -given[:, :, None, None] * np.abs(np.arange(7)[:, None] - np.arange(7))
    judged = truth(Spec(*drawn, shift=shift, allowed=np.tri(7, dtype=bool)[None, None]))["out"]

    def attend(q: Any, k: Any, v: Any, slopes: Any) -> Any:
        mod = mods.alibi(slopes)
        return polyattn.attention(q, k, v, score_mod=mod, is_causal=True, implementation=implementation)

    assert eta(eager.numpy(attend(q, k, v, slopes)), judged, "float32") <= 4
    for i in range(2):
        alone = attend(q[i : i + 1, ...], k[i : i + 1, ...], v[i : i + 1, ...], slopes[i, ...])
        assert eta(eager.numpy(alone), type(judged)(*(x[i : i + 1] for x in judged)), "float32") <= 4


def test_alibi_slopes_of_too_few_items_are_refused() -> None:
    q = np.zeros((3, 2, 3, 2))
    with pytest.raises(ValueError) as caught:
        polyattn.attention(q, q, q, score_mod=mods.alibi(np.ones((2, 2))))
    assert str(caught.value) == (
        "polyattn.attention: expected score_mod to have parameters for 3 batch items, got 2; give one slope or column per head, and per batch item only for all of them"
    )
