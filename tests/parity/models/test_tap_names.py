"""Which tap is which: what an author says, equal names, order and shape; and which input of one call is which of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import torch
from shared.ports import BATCH, small

from polyattn.parity import compare_models, tap
from polyattn.parity.models.feeding import fed
from polyattn.parity.models.naming import renamed

RNG = np.random.default_rng(3)
W = RNG.normal(size=(3, 16, 16)).astype(np.float32)


def reference(x: Any) -> Any:
    for i in range(3):
        x = tap(f"layer_{i}", np.tanh(x @ W[i]))
    return x


def port(x: Any) -> Any:
    tap("unlike", x[..., :3])
    for i in range(3):
        x = tap(f"stage{i}.out", np.tanh(x @ W[i]))
    return x


@pytest.mark.parametrize(
    ("glob", "target", "name", "expected"),
    [
        ("model.layers.*.mlp", "h.*.ff", "model.layers.12.mlp", "h.12.ff"),
        ("*.*", "*-*", "a.b", "a-b"),
        ("layers.*", "blocks.*", "layers.1.mlp", None),
        ("a.b", "c", "axb", None),
        ("norm", "ln_f", "norm", "ln_f"),
        ("a.*", "b", "a.3", "b"),
    ],
)
def test_globs(glob: str, target: str, name: str, expected: str | None) -> None:
    assert renamed(glob, target, name) == expected


def test_without_names_order_and_shape_are_taken_and_said() -> None:
    found = compare_models(reference, port, (BATCH,))
    assert {row.name: row.port_name for row in found.rows} == {
        "layer_0": "stage0.out",
        "layer_1": "stage1.out",
        "layer_2": "stage2.out",
        "output": "output",
    }
    assert found.agrees
    assert (
        "matched by order and shape: layer_0 = stage0.out, layer_1 = stage1.out, layer_2 = stage2.out"
        in str(found)
    )


@pytest.mark.parametrize(
    "names", [{"layer_*": "stage*.out"}, lambda name: name.replace("layer_", "stage") + ".out"]
)
def test_an_author_says_which_is_which(names: Any) -> None:
    found = compare_models(reference, port, (BATCH,), names=names)
    assert found.agrees
    assert [row.port_name for row in found.rows] == ["stage0.out", "stage1.out", "stage2.out", "output"]


def test_names_that_match_nothing_are_sentences() -> None:
    found = compare_models(
        reference, port, (BATCH,), names={"layers_*": "stage*.out", "layer_1": "stage1.ou"}
    )
    assert "names: 'layers_*' is no tap of the reference; there is layer_2, layer_1, layer_0" in found.notes
    assert (
        "names: stage1.ou is no tap of the port; there is stage1.out, stage2.out, stage0.out" in found.notes
    )
    assert [row.name for row in found.rows] == ["output"]
    twice = compare_models(reference, port, (BATCH,), names={"layer_*": "stage0.out"})
    assert "names: stage0.out of the port stands for several taps of the reference" in twice.notes


@pytest.mark.parametrize("names", [3, ["a"], {"a": 1}])
def test_what_are_no_names_is_refused(names: Any) -> None:
    with pytest.raises(TypeError, match=r"polyattn\.parity\.compare_models: expected names to be a dict"):
        compare_models(reference, port, (BATCH,), names=names)


def test_shapes_that_differ_are_a_sentence_with_the_order_of_axes() -> None:
    def turned(x: Any) -> Any:
        for i in range(3):
            x = np.tanh(x @ W[i])
            if i == 1:
                tap("layer_1", np.swapaxes(x, 0, 1))
        return tap("layer_2", x)[..., :2]

    found = compare_models(reference, turned, (BATCH,))
    causes = {row.name: row.cause for row in found.rows}
    assert causes["layer_1"] == (
        "has shape (5, 2, 16), where the reference has (2, 5, 16); its axes would be in the order (1, 0, 2)"
    )
    assert causes["output"].startswith("has shape (2, 5, 2), where the reference has (2, 5, 16)")
    assert not found.agrees


def test_a_port_without_a_batch_axis_is_compared() -> None:
    def flat(x: Any) -> Any:
        x = x[0]
        for i in range(3):
            x = tap(f"layer_{i}", np.tanh(x @ W[i]))
        return x

    assert compare_models(reference, flat, (BATCH[:1],)).agrees


def test_parts_that_are_others_but_in_something_right_are_not_accused() -> None:
    class Folded(torch.nn.Module):
        """The scale of the norm is in the linear map."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.ln = torch.nn.LayerNorm(16)
            self.linear = torch.nn.Linear(16, 8).eval()
            with torch.no_grad():
                self.linear.weight.copy_(model[1].weight * model[0].weight)
                self.linear.bias.copy_(model[1].bias + model[1].weight @ model[0].bias)

        def forward(self, x: Any) -> Any:
            return self.linear(self.ln(x))

    model = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 8)).eval()
    with torch.no_grad():
        model[0].weight.normal_()
    guessed = compare_models(model, Folded(model).eval(), (BATCH,))
    assert guessed.agrees, str(guessed)
    assert any("another part" in row.cause for row in guessed.rows)
    told = compare_models(model, Folded(model).eval(), (BATCH,), names={"0": "ln", "1": "linear"})
    assert [wrong.name for wrong in told.wrong] == ["0", "1"]


def test_nothing_in_common_is_an_error() -> None:
    def other(x: Any) -> Any:
        return {"loss": 1.0}

    with pytest.raises(ValueError, match="expected a tap of the port for some of the reference"):
        compare_models(reference, other, (BATCH,))


def test_inputs_go_by_order_then_by_keyword_then_by_likeness() -> None:
    x, mask, cos = BATCH, np.tri(5, dtype=bool), RNG.normal(size=(5, 4)).astype(np.float32)
    inputs, paths = (x, mask, cos), ("0", "mask", "rope.0")
    args, kwargs, kept = fed((x * 0, mask & False, cos * 0), {}, inputs, paths) or ((), {}, None)
    assert kept == ()
    assert np.array_equal(args[0], x)
    assert np.array_equal(args[2], cos)
    # another order, a mask of another kind, and something of its own
    own = (x * 0, np.zeros((5, 5), np.float32), cos * 1.01)
    args, kwargs, kept = fed(own, {"more": np.ones(3)}, inputs, paths) or ((), {}, None)
    assert kept == ("1", "more")
    assert np.array_equal(args[0], x)
    assert np.array_equal(args[2], cos)
    _, kwargs, kept = fed((x * 0,), {"mask": np.zeros((5, 5), bool)}, inputs, paths) or ((), {}, None)
    assert kept == ()
    assert np.array_equal(kwargs["mask"], mask)
    assert fed((x[..., :3],), {}, inputs, paths) is None
    assert fed((), {}, inputs, paths) is None


def test_a_component_that_kept_an_input_of_its_own_says_so() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: Any, mask: Any) -> Any:
            scores = x @ x.transpose(-1, -2)
            hidden = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            return hidden.softmax(-1) @ x

    class Whole(torch.nn.Module):
        def __init__(self, additive: bool, causal: bool) -> None:
            super().__init__()
            self.attend, self.additive, self.causal = Masked(), additive, causal

        def forward(self, x: Any) -> Any:
            mask = torch.ones(5, 5, dtype=torch.bool)
            mask = mask.tril() if self.causal else mask.triu()
            return self.attend(x, torch.where(mask, 0.0, -torch.inf) if self.additive else mask)

    model = Whole(False, True).eval()
    assert compare_models(model, Whole(True, True).eval(), (BATCH,)).agrees
    found = compare_models(model, Whole(True, False).eval(), (BATCH,))
    assert [wrong.name for wrong in found.wrong] == ["attend"]
    assert "it kept inputs of its own without a counterpart: 1" in (found.wrong[0].cause or "")
    (wrong,) = compare_models(model, Whole(False, False).eval(), (BATCH,)).wrong  # the mask can be given
    assert wrong.name == "output"


def test_weights_are_compared_by_the_names_of_components() -> None:
    from polyattn.parity.models.checking import _weight_name

    globs = {"blocks.*.mlp": "h.*.ff", "blocks.*": "h.*"}
    assert _weight_name(globs, "blocks.1.mlp.0.weight") == "h.1.ff.0.weight"
    assert _weight_name(globs, "blocks.1.norm.bias") == "h.1.norm.bias"
    assert _weight_name(globs, "head.weight") is None
    assert _weight_name(lambda name: f"m.{name}", "a.b") == "m.a.b"
    assert _weight_name(None, "a") == "a"
    assert compare_models(small(), small(), (BATCH,), weights=False).weights == ()
