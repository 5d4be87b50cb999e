"""The one function with a switch for every convention, and the stages of the truth, against what vouches for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import trace
from polyattn.conventions.answers import answer
from polyattn.conventions.call import call_of
from polyattn.parity.case import Case, Later
from polyattn.parity.cases import cases
from polyattn.truth import Judged, eta, oracle, truth

#: What a call without conventions of its own cannot say.
UNSAID = (
    "causal offset per item", "dropout", "functions on positions", "scale per head",
    "sigmoid", "softpick", "sparsemax", "entmax15", "top k and sinks", "sigmoid and dropout",
    "packed with keys of their own", "packed with themselves", "packed windows slopes and sinks",
)  # fmt: skip


def options(case: Case, seed: int) -> tuple[Any, dict[str, Any]]:
    sample = case.sample(seed, "float64")
    made = {name: x.make(lambda x: x) if isinstance(x, Later) else x for name, x in sample.options.items()}
    return sample, sample.arrays | made


@pytest.mark.parametrize("case", [c for c in cases() if c.name not in UNSAID], ids=lambda c: c.name)
def test_the_answer_of_the_contract_is_the_truth(case: Case) -> None:
    sample, given = options(case, 4)
    call = call_of(*(given.pop(name) for name in ("query", "key", "value")), given)
    assert eta(answer(call).out, truth(sample.spec)["out"], "float64") <= 4


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
def test_the_stages_of_the_truth_are_those_of_the_oracle_and_of_a_trace(case: Case) -> None:
    sample, given = options(case, 5)
    stages: dict[str, Judged] = {}
    judged = truth(sample.spec, see=stages.__setitem__)
    assert next(iter(stages)) == "scores"
    last = ["lse"] if "lse" in judged else []
    assert list(stages)[-3 - len(last) :] == ["row maximum", "weights", "output", *last]
    assert (stages["output"].value == judged["out"].value).all()
    if case.name != "many keys":  # where the oracle takes long
        assert eta(oracle(sample.spec).weights, stages["weights"], "float64") <= 4
    folded = case.name == "functions on positions"  # the spec has its function inside the scale
    if not folded and sample.out_shape is None and "layout" not in given:
        traced = {stage.name: np.asarray(stage.value) for stage in trace(**given)}
        assert [name for name in traced if name in stages] == list(stages)
        assert {name: eta(traced[name], stages[name], "float64") <= 4 for name in stages} == dict.fromkeys(
            stages, True
        )
