"""Ports of models of PyTorch: right ones are never accused, wrong components are named, several at once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch
from shared.ports import BATCH, llama, slowed, small, tokens

from polyattn.parity import ModelComparison, compare_models, record


def names(found: ModelComparison) -> list[str]:
    return [wrong.name for wrong in found.wrong]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_right_port_with_sums_in_another_order_is_not_accused(seed: int) -> None:
    model = small(seed)
    found = compare_models(model, slowed(model), (BATCH,))
    assert found.agrees, str(found)
    assert (found.wrong, found.first) == ((), None)
    assert len(found.rows) == len(list(model.modules())) - 1  # a list of blocks is not called
    assert found.verdict.startswith("AGREE: all 32 taps")


def test_a_model_with_a_cache_is_called_again_as_it_was() -> None:
    model = llama()
    found = compare_models(model, slowed(model), (tokens,))
    assert found.agrees, str(found)
    assert {row.name for row in found.rows} >= {"model.layers.1.self_attn", "model.rotary_emb", "output"}


def test_three_mistakes_at_once_are_found_by_name() -> None:
    model = small()
    port = slowed(model)
    port.blocks[0].norm_1.eps = 1e-6
    port.blocks[1].attention.scale *= 1.01
    port.blocks[2].mlp[1] = torch.nn.GELU(approximate="tanh")
    found = compare_models(model, port, (BATCH,))
    assert names(found) == ["blocks.0.norm_1", "blocks.1.attention", "blocks.2.mlp.1"]
    assert found.first == "blocks.0.norm_1"
    assert found.verdict.startswith("DISAGREE: 3 of 32 components are wrong by themselves")
    downstream = next(row for row in found.rows if row.name == "blocks.2.norm_1")
    assert downstream.free > 4 > (downstream.forced or 0)


def test_an_epsilon_that_inputs_of_the_model_hide_is_seen_by_a_probe() -> None:
    model = small()
    for block in model.blocks:
        block.norm_1.eps = 1e-6
    port = copy.deepcopy(model)
    port.blocks[0].norm_1.eps = 1e-5
    big = BATCH * 10
    (wrong,) = compare_models(model, port, (big,)).wrong
    assert (wrong.name, wrong.probe) == ("blocks.0.norm_1", "small")
    assert "small inputs" in str(wrong)
    assert compare_models(model, port, (big,), probes=False).agrees


def test_a_container_is_named_where_its_parts_are_right() -> None:
    model = small()
    port = copy.deepcopy(model)
    port.blocks[1].norm_first = False
    (wrong,) = compare_models(model, port, (BATCH,)).wrong
    assert wrong.name == "blocks.1"
    assert wrong.cause is not None


def test_a_container_is_named_beside_a_wrong_part_where_it_is_wrong_with_the_right_one_too() -> None:
    model = small()
    port = copy.deepcopy(model)
    port.blocks[1].norm_first = False
    with torch.no_grad():
        port.blocks[1].mlp[2].weight[3, 4] += 0.01
    assert names(compare_models(model, port, (BATCH,))) == ["blocks.1.mlp.2", "blocks.1"]


def test_a_container_is_not_named_beside_the_part_that_explains_it() -> None:
    model = small()
    port = copy.deepcopy(model)
    with torch.no_grad():
        port.blocks[1].mlp[0].bias += 1e-3
    assert names(compare_models(model, port, (BATCH,))) == ["blocks.1.mlp.0"]


def test_a_container_that_feeds_its_parts_wrongly_is_named() -> None:
    model = small()
    port = copy.deepcopy(model)
    block = port.blocks[0]
    with torch.no_grad():
        block.attention.out.weight[0, 0] += 0.01

    def forward(x: Any) -> Any:
        x = x + block.attention(block.norm_1(x))
        block.norm_2(x)
        return x + block.mlp(x)  # not what the norm gave

    block.forward = forward
    found = compare_models(model, port, (BATCH,))
    assert names(found) == ["blocks.0.attention.out", "blocks.0"]
    assert (
        found.wrong[1].cause == "mlp is given the input + the output of attention, not the output of norm_2"
    )


def test_half_precision_is_judged_as_what_it_is() -> None:
    model = small().to(torch.bfloat16)
    found = compare_models(model, slowed(model), (torch.from_numpy(BATCH).to(torch.bfloat16),))
    assert found.agrees, str(found)
    assert 1e-3 < found.rows[-1].noise < 0.1
    port = copy.deepcopy(model)
    port.blocks[1].attention.scale *= 2
    assert "blocks.1.attention" in names(
        compare_models(model, port, (torch.from_numpy(BATCH).to(torch.bfloat16),))
    )


def test_a_port_in_half_precision_of_a_model_in_float32_is_allowed_its_roundings() -> None:
    model = small()
    port = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():  # the weights are those of the port already
        model.load_state_dict({name: x.float() for name, x in port.state_dict().items()})
    given = torch.from_numpy(BATCH).to(torch.bfloat16)
    found = compare_models(model, port, (given.float(),), port_batch=(given,))
    assert found.wrong == () or max(w.eta for w in found.wrong) < 40
    assert compare_models(model, copy.deepcopy(model), (given.float(),)).agrees


def test_dropout_that_is_on_is_noticed_on_either_side() -> None:
    model = small()
    model.blocks[0].mlp.append(torch.nn.Dropout(0.5).eval())
    port = copy.deepcopy(model)
    port.train()
    found = compare_models(model, port, (BATCH,))
    assert not found.agrees
    assert found.verdict.startswith("NOT JUDGED")
    assert "the port is not deterministic" in str(found)
    assert "training mode" in str(found)
    assert port.training
    assert port.blocks[0].mlp[3].training
    assert [w.name for w in found.wrong if w.cause and "each time" in w.cause] == ["blocks.0.mlp.3"]
    other = compare_models(port, model, (BATCH,))
    assert "the reference is not deterministic" in str(other)
    assert not other.agrees


def test_training_mode_is_said_and_leaves_no_trace() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(5))
    model.train()
    kept = copy.deepcopy(model.state_dict())
    port = copy.deepcopy(model)
    found = compare_models(model, port, (BATCH,))
    assert found.agrees, str(found)
    assert "the reference is in training mode, and was left in it" in found.notes
    assert all(torch.equal(x, kept[name]) for name, x in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_port_that_stops_halfway_is_compared_as_far_as_it_came() -> None:
    model = small()
    port = copy.deepcopy(model)
    port.blocks[0].norm_1.eps = 1e-2
    port.blocks[1].mlp[2] = torch.nn.Linear(7, 16)
    found = compare_models(model, port, (BATCH,))
    assert not found.agrees
    assert found.error is not None
    assert found.error.startswith("RuntimeError")
    assert names(found) == ["blocks.0.norm_1"]
    assert "the port stopped with RuntimeError" in found.verdict


def test_what_writes_into_its_input_is_given_it_whole() -> None:
    class Writing(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mul_(2)

    model = torch.nn.Sequential(torch.nn.Linear(16, 8), Writing(), torch.nn.ReLU(inplace=True)).eval()
    found = record(model, (BATCH,))
    assert (found.inputs("1")[0] < 0).any()
    assert (found["1"] < 0).any()  # before the next one wrote into it
    assert compare_models(model, copy.deepcopy(model), (BATCH,)).agrees


def test_one_module_in_two_places_is_two_taps() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 16)

        def forward(self, x: Any) -> Any:
            return self.layer(torch.tanh(self.layer(x)))

    model = Twice().eval()
    found = record(model, (BATCH,))
    assert list(found) == ["layer", "layer#2", "output"]
    port = copy.deepcopy(model)
    assert compare_models(model, port, (BATCH,)).agrees


def test_a_row_that_sees_nothing_may_be_nan_on_both_sides() -> None:
    class Row(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return (x + torch.tensor([[0.0], [-torch.inf], [0], [0], [0]])).softmax(-1)

    class Zeros(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return (x + torch.tensor([[0.0], [-torch.inf], [0], [0], [0]])).softmax(-1).nan_to_num()

    assert compare_models(Row(), Row(), (BATCH,)).agrees
    assert compare_models(Row(), Zeros(), (BATCH,)).rows[-1].free == np.inf


def test_a_float64_version_may_be_given_and_must_be_the_same_model() -> None:
    model = small()
    found = compare_models(model, slowed(model), (BATCH,), exact=copy.deepcopy(model).double())
    assert found.agrees, str(found)
    assert "float64" in found.measured
    other = copy.deepcopy(model).double()
    other.blocks[1].attention.scale *= 1.001
    with pytest.raises(ValueError, match=r"got another model: .* roundings at blocks\.1\.attention\.out"):
        compare_models(model, slowed(model), (BATCH,), exact=other)


def test_what_float64_changes_is_said() -> None:
    class Coarse(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return (x * (1 + 1e-3 * (x.dtype == torch.float64))).tanh()

    assert any("mistakes smaller than that are not seen" in note for note in record(Coarse(), (BATCH,)).notes)
