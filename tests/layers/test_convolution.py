"""The short causal convolution: its formula, its tail, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, Floats, applied, normal

from polyattn.convolution import causal_convolution
from polyattn.parity import ACCEPTANCE
from polyattn.truth.definition import Judged
from polyattn.truth.measure import eta

BATCH, TOKENS, CHANNELS = 2, 9, 5


def problem(kernel: int = 4) -> dict[str, Floats]:
    return {
        "x": normal(BATCH, TOKENS, CHANNELS),
        "weight": normal(kernel, CHANNELS, seed=1),
        "bias": normal(CHANNELS, seed=2),
        "tail": normal(BATCH, kernel - 1, CHANNELS, seed=3),
    }


def run(library: str, p: dict[str, Floats], dtype: str = "float32") -> Any:
    return applied(library, lambda p: causal_convolution(**p), p, dtype=dtype)


def judge(p: dict[str, Floats]) -> Judged:
    """A sum of k products and a bias; a token has k / 2 of its roundings."""
    every, taps = np.concatenate([p["tail"], p["x"]], axis=1).astype(np.longdouble), p["weight"]

    def summed(every: Floats, taps: Floats, bias: Floats) -> Floats:
        return formulas.convolution(every, taps)[:, len(taps) - 1 :] + bias

    return Judged(
        summed(every, taps, p["bias"]), len(taps) / 2 * summed(abs(every), abs(taps), abs(p["bias"]))
    )


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kernel", [1, 2, 4, 12])  # 12 reaches back further than x
def test_it_is_the_sum_over_the_last_tokens(library: str, kernel: int) -> None:
    p = problem(kernel)
    out, tail = run(library, p)
    assert eta(out, judge(p), "float32") <= ACCEPTANCE
    np.testing.assert_array_equal(tail, np.concatenate([p["tail"], p["x"]], axis=1)[:, TOKENS:])


def test_float64_stays_float64() -> None:
    p = problem()
    assert eta(run("numpy", p, "float64")[0], judge(p), "float64") <= ACCEPTANCE


def test_the_bound_notices_a_tail_that_is_forgotten() -> None:
    p = problem()
    del p["tail"]
    assert eta(run("numpy", p)[0], judge(problem()), "float32") > 1000 * ACCEPTANCE


def test_it_is_the_convolution_of_pytorch() -> None:
    p = {name: torch.from_numpy(x) for name, x in problem().items() if name != "tail"}
    conv = torch.nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(p["weight"].mT[:, None, :])
        conv.bias.copy_(p["bias"])
        theirs = conv(p["x"].mT)[..., :TOKENS].mT
    without = problem() | {"tail": np.zeros((BATCH, 3, CHANNELS))}
    for out in (theirs, causal_convolution(**p)[0]):
        assert eta(out.numpy(), judge(without), "float64") <= ACCEPTANCE


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "jax"])  # whose compiler fuses
def test_pieces_of_any_length_are_the_whole_to_the_bit(library: str) -> None:
    p = problem()
    whole, last = run(library, p)
    for cuts in ([1] * TOKENS, [0, 4, 5], [2, 7]):
        outs, tail, start = [], p["tail"], 0
        for n in cuts:
            piece = p | {"x": p["x"][:, start : start + n], "tail": tail}
            out, tail = run(library, piece)
            outs.append(out)
            start += n
        np.testing.assert_array_equal(np.concatenate(outs, axis=1), whole)
        np.testing.assert_array_equal(tail, last)


def test_half_precision_is_summed_in_float32() -> None:
    p = problem()
    for library in ("numpy", "torch"):
        wide, _ = run(library, p)
        out, _ = run(library, p, "float16")
        np.testing.assert_array_equal(out, wide.astype(np.float16))


def test_gradients_are_those_of_the_formula() -> None:
    """Linear in everything: each entry of a gradient is a sum of at most B T products."""
    p = problem()
    del p["tail"]
    cotangent = normal(BATCH, TOKENS, CHANNELS, seed=9)

    def loss(out: Any) -> Any:
        return (out * (torch.from_numpy(cotangent) if isinstance(out, torch.Tensor) else cotangent)).sum()

    ours, true = ({name: torch.tensor(x, requires_grad=True) for name, x in p.items()} for _ in range(2))
    loss(causal_convolution(**ours)[0]).backward()
    loss(formulas.convolution(true["x"], true["weight"]) + true["bias"]).backward()
    found = jax.jit(jax.grad(lambda p: loss(causal_convolution(**p)[0])))(
        {name: jnp.asarray(x, jnp.float32) for name, x in p.items()}
    )
    for name, x in true.items():
        size = BATCH * TOKENS * float(x.grad.abs().max())
        assert (ours[name].grad - x.grad).abs().max() <= 2.0**-53 * size
        assert np.abs(np.asarray(found[name]) - x.grad.numpy()).max() <= 2.0**-24 * size


X, W = np.zeros((2, 3, 4)), np.zeros((2, 4))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no array": (lambda: causal_convolution([1.0], W), TypeError, "x to be an array of an array API library (NumPy, JAX, PyTorch, ...), got list; convert it, for example with numpy.asarray"),
    "integers": (lambda: causal_convolution(X.astype(int), W), TypeError, "x of a real floating dtype, got int64; cast it"),
    "rank": (lambda: causal_convolution(X[0, 0], W), ValueError, "x of shape (..., tokens, channels), got (4,); add the axes that are missing"),
    "weight": (lambda: causal_convolution(X, W[:, None, :]), ValueError, "weight of shape (k, 4), a row for each of k >= 1 tokens, got (2, 1, 4); the weight of torch.nn.Conv1d is weight[:, 0, :].T"),
    "no taps": (lambda: causal_convolution(X, W[:0]), ValueError, "weight of shape (k, 4), a row for each of k >= 1 tokens, got (0, 4); the weight of torch.nn.Conv1d is weight[:, 0, :].T"),
    "bias": (lambda: causal_convolution(X, W, W), ValueError, "bias of shape (4,), a number for each channel, got (2, 4); reshape it"),
    "tail": (lambda: causal_convolution(X, W, tail=X), ValueError, "tail of shape (2, 1, 4) beside x of shape (2, 3, 4) and weight of shape (2, 4), got (2, 3, 4); a tail is what the call before returned"),
    "dtypes": (lambda: causal_convolution(X, W.astype(np.float32)), TypeError, "weight of the dtype of x, float64, got float32; cast one of the two"),
    "libraries": (lambda: causal_convolution(X, torch.tensor(W)), TypeError, "weight to be an array of the library of x, numpy, got one of torch; convert it"),
    "a word": (lambda: causal_convolution(X, W, padding=3), TypeError, "arguments among x, weight, bias, tail, got padding=; leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_a_sentence(what: str) -> None:
    call, kind, sentence = REFUSED[what]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == f"polyattn.convolution.causal_convolution: expected {sentence}"
