"""What a block sums otherwise, what a part is given, and what is left out in front of one."""

from __future__ import annotations

import numpy as np
import pytest

from polyattn.parity.components import Facts, explain
from polyattn.parity.components.products import explain_products
from polyattn.parity.components.rewired import Part, explain_wiring
from polyattn.parity.models.feeding import fed

UNIT = 1e-12
rng = np.random.default_rng(0)
X, A, B, N, M = rng.normal(size=(5, 2, 7, 16))  # input, what attention, MLP and the two norms gave


def said(given: dict[str, np.ndarray], out: np.ndarray) -> str | None:
    """A pre-norm block in which parts are given something else, and that ends with `out`."""
    right = {"norm1": X, "attn": N, "norm2": X + A, "mlp": M}
    gave = {"norm1": N, "attn": A, "norm2": M, "mlp": B}
    parts = [
        Part(n, n.startswith("norm"), gave[n], right[n], given.get(n), np.full((2, 7, 1), UNIT)) for n in gave
    ]
    return explain_wiring("other", {"0": X}, parts, X + A + B, out, unit=UNIT)


@pytest.mark.parametrize(
    ("given", "out", "words"),
    [
        ({"norm2": A}, A + B, "residual (the input) missing"),
        ({"norm2": X}, X + A + B, "in parallel"),
        ({"norm2": N + A}, N + A + B, "residual taken after the norm"),
        ({"norm2": 2 * X + A}, 2 * X + A + B, "residual multiplied by 2"),
        (
            {"norm1": X + A, "attn": X, "norm2": N + B, "mlp": N},
            M,
            "the norms stand behind the sums, not before the parts",
        ),
    ],
)
def test_a_sum_that_is_another_is_said(given, out, words) -> None:
    assert words in (said(given, out) or "")


def test_a_right_block_and_what_is_no_sum_are_not_explained() -> None:
    assert said({}, X + A + B) is None
    assert said({"norm2": rng.normal(size=X.shape)}, rng.normal(size=X.shape)) is None


def test_gates_and_norms_in_front_of_a_part() -> None:
    noise = np.full((2, 7, 1), UNIT)
    gate = A / (1 + np.exp(-A))
    heads = B.reshape(2, 7, 4, 4)
    normed = (heads / np.sqrt((heads * heads).mean(-1, keepdims=True) + 1e-6)).reshape(B.shape)
    outputs = {"the output of g": A}
    assert "SiLU" in (explain_products(outputs, normed * gate, normed, unit=noise) or "")
    assert "each 4 entries" in (explain_products(outputs, normed * gate, B * gate, unit=noise) or "")
    assert "each 4 entries" in (explain_products({}, normed, B, unit=noise) or "")
    assert explain_products(outputs, normed * gate, M, unit=noise) is None


def test_orders_of_patches() -> None:
    x, w, b = rng.normal(size=(2, 3, 8, 8)), rng.normal(size=(5, 3, 4, 4)), rng.normal(size=5)
    cut = x.reshape(2, 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5)

    def through(parts: np.ndarray, bias: np.ndarray = b) -> np.ndarray:
        return parts.reshape(2, 4, 48) @ w.reshape(5, 48).T + bias

    facts = Facts("other", {"patches.weight": w, "patches.bias": b})
    for seen, words in (
        (through(cut.transpose(0, 1, 2, 4, 5, 3)), "row, column, channel, not channel, row, column"),
        (through(cut.transpose(0, 2, 1, 3, 4, 5)), "patches in the order of columns"),
        (through(cut[:, :, :, ::-1]), "channels of the image in reverse order"),
        (through(cut, 0 * b), "bias of the patches missing"),
    ):
        assert words in (explain(facts, None, (x,), through(cut), seen, unit=UNIT) or "")


def test_an_input_goes_where_nothing_else_fits_and_a_single_one_may_be_longer() -> None:
    memory = rng.normal(size=(2, 9, 16))
    args, _, kept = fed(
        (X, -memory, np.ones(3, bool)), {}, (A, np.zeros((4, 4)), memory), ("0", "bias", "states")
    )
    assert np.array_equal(args[0], A)
    assert np.array_equal(args[1], memory)
    assert kept == ("2",) or kept == ("0.2",)
    args, _, kept = fed((X,), {}, (memory,), ("0",))
    assert args[0].shape == memory.shape
    assert kept == ()
