"""The handwritten derivative of the engine: gradients for libraries without autodiff."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import Blockwise, attention, attention_vjp, mods
from polyattn.parity import Spec, eta
from polyattn.parity.case import Case, Later
from polyattn.parity.cases import cases
from polyattn.testing import NumpyBench
from polyattn.truth import truth

# A function as score_mod has no derivative on NumPy; 67 x 131 scores are too many tiles of one; three normalisers have no fold.
LEFT = ("functions on positions", "many keys", "sparsemax", "entmax15", "top k and sinks")
CASES = [c for c in cases() if c.name not in LEFT]
SHORT = {"query": "dq", "key": "dk", "value": "dv", "bias": "dbias", "sinks": "dsinks", "scale": "dscale"}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("tile", [1, 4, 64])
def test_the_pullback_of_numpy_equals_the_true_gradient(case: Case, tile: int) -> None:
    sample = case.sample(0, "float32")
    spec = sample.spec
    cotangent = np.random.default_rng(1).choice([-1.0, 1.0], size=(*spec.shape[:3], spec.v.shape[-1]))

    def convert(x: Any) -> Any:
        return NumpyBench().array(x, "float32") if isinstance(x, np.ndarray) else x

    options = {n: x.make(convert) if isinstance(x, Later) else convert(x) for n, x in sample.options.items()}
    arrays = {n: convert(x) for n, x in sample.arrays.items()}
    with np.errstate(invalid="ignore"):  # NaN that was planted in hidden keys
        _, pullback = attention_vjp(**{**options, **arrays}, implementation=Blockwise(tile, tile))
        gradients = pullback(convert(sample.from_spec(cotangent)))
    judged = truth(spec, cotangent)
    gradients.pop("score_mod", None)  # of a table: the truth has it not
    assert gradients.keys() == arrays.keys()
    for name, gradient in gradients.items():
        true = judged[SHORT[name]]
        assert eta(sample.to_spec(gradient, true.value.shape), true, "float32") <= 4, name


def test_the_gradient_of_lse_is_the_weighted_key() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 9, 4))
    _, pullback = attention_vjp(q, k, v, is_causal=True, sinks=np.zeros(2), implementation=Blockwise(4, 3))
    zero, one = np.zeros((1, 2, 9, 4)), np.ones((1, 2, 9))
    judged = truth(Spec(q, k, k, allowed=np.tril(np.ones((9, 9), bool))[None, None]))["out"]
    assert eta(pullback(zero, one)["query"] / 0.5, judged, "float64") <= 4
    assert (pullback(zero, one)["value"] == 0).all()


def test_broadcast_arguments_get_gradients_of_their_own_shape() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, 3, 4, 5, 6)),
        rng.normal(size=(1, 3, 2, 5, 6)),
        rng.normal(size=(2, 1, 2, 5, 3)),
    )
    bias, scale = rng.normal(size=(3, 1, 1, 5)), rng.normal(size=4)
    out, pullback = attention_vjp(q, k, v, bias=bias, scale=scale)
    cotangent = rng.normal(size=out.shape)
    tensors = {"query": q, "key": k, "value": v, "bias": bias, "scale": scale}
    leaves = {n: torch.tensor(x, requires_grad=True) for n, x in tensors.items()}
    attention(
        leaves["query"], leaves["key"], leaves["value"], bias=leaves["bias"], scale=leaves["scale"], implementation="reference"
    ).backward(torch.tensor(cotangent))  # fmt: skip
    for name, gradient in pullback(cotangent).items():
        assert gradient.shape == tensors[name].shape
        other = leaves[name].grad.numpy()
        assert np.abs(gradient - other).max() <= 64 * 2.0**-53 * np.abs(other).max(), name


def test_layout_blhd_has_gradients_of_its_layout() -> None:
    q, k, v, d = np.random.default_rng(0).normal(size=(4, 2, 7, 3, 4))
    out, pullback = attention_vjp(q, k, v, layout="BLHD", is_causal=True)
    turned, turned_pullback = attention_vjp(*(x.swapaxes(1, 2) for x in (q, k, v)), is_causal=True)
    assert (out == turned.swapaxes(1, 2)).all()
    for name, gradient in pullback(d).items():
        assert (gradient == turned_pullback(d.swapaxes(1, 2))[name].swapaxes(1, 2)).all()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_parameters_of_built_in_mods_have_gradients_on_every_tile(bidirectional: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v, d = (torch.tensor(x) for x in rng.normal(size=(4, 2, 4, 11, 8)))
    parameters = [
        torch.tensor(3.0).double(),
        torch.tensor(rng.normal(size=4)),
        torch.tensor(rng.normal(size=(8, 4))),
    ]

    def gradients(implementation: Any) -> Any:
        cap, slopes, table = leaves = [p.clone().requires_grad_() for p in parameters]
        bias = mods.relative_position_bias(table, bidirectional=bidirectional, max_distance=12)
        mod = mods.compose(mods.softcap(cap), lambda s, b, h, q, kv: s * 1.5, mods.alibi(slopes), bias)
        out = attention(q, k, v, is_causal=True, score_mod=mod, implementation=implementation)
        return torch.autograd.grad(out, leaves, d)

    for ours, true in zip(gradients(Blockwise(4, 3)), gradients("reference"), strict=True):
        assert (ours - true).abs().max() <= 256 * 2.0**-53 * true.abs().max()


@pytest.mark.parametrize("tile", [3, 64])
def test_the_arrays_of_a_score_mod_have_gradients(tile: int) -> None:
    """They were computed, and dropped. PyTorch's autograd through the definition says what they are."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4,), (2, 4), (8, 4), ())]
    q, k, v = rng.normal(size=(3, 2, 4, 7, 5))
    d_out = rng.normal(size=q.shape)

    def made(one: Any, two: Any, table: Any, cap: Any) -> mods.Mod:
        capped = mods.softcap(abs(cap) + 2.0)
        return mods.compose(mods.alibi(one), mods.alibi(two), capped, mods.relative_position_bias(table))

    mod = made(*arrays)
    out, pullback = attention_vjp(
        q, k, v, score_mod=mod, is_causal=True, implementation=Blockwise(tile, tile)
    )
    found = pullback(d_out)["score_mod"]
    slopes = [torch.tensor(x, requires_grad=True) for x in arrays]
    there = attention(
        *map(torch.tensor, (q, k, v)), score_mod=made(*slopes), is_causal=True, implementation="reference"
    )
    (there * torch.tensor(d_out)).sum().backward()
    assert _near(out, there.detach().numpy())
    true = [slopes[0].grad, slopes[1].grad, slopes[3].grad * np.sign(arrays[3]), slopes[2].grad]
    assert [x.shape for x in found] == [tuple(x.shape) for x in true]
    assert all(_near(x, y.numpy()) for x, y in zip(found, true, strict=True))


def _near(x: Any, y: Any) -> bool:
    """Sums of at most 2 x 4 x 7 x 7 numbers, each with a few roundings, in two orders."""
    return bool(np.abs(x - y).max() <= 256 * 2.0**-53 * np.abs(y).max())


@pytest.mark.parametrize(
    ("cotangents", "error", "sentence"),
    [
        ((np.zeros((2, 3)),), ValueError, "expected d_out of the shape of out, (1, 2, 9, 4), got (2, 3); it is the gradient of a loss for out"),
        ((np.zeros((1, 2, 9, 4)), np.zeros((1, 2, 9, 4))), ValueError, "expected d_lse of the shape of lse, (1, 2, 9), got (1, 2, 9, 4); it is the gradient of a loss for lse"),
        ((torch.zeros((1, 2, 9, 4)),), TypeError, "expected d_out to be an array of the library of query (numpy), got one of torch; convert it, or keep one library per call"),
        ((1.0,), TypeError, "expected d_out to be an array of an array API library (NumPy, JAX, PyTorch, ...), got float; convert it, for example with numpy.asarray"),
    ],
)  # fmt: skip
def test_what_is_no_cotangent_is_refused(cotangents: Any, error: type[Exception], sentence: str) -> None:
    q = np.zeros((1, 2, 9, 4))
    with pytest.raises(error) as caught:
        attention_vjp(q, q, q)[1](*cotangents)
    assert str(caught.value) == f"polyattn.attention_vjp: {sentence}"
