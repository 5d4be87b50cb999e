"""A slice of `benchmarks/whole_models`: ports of six architectures, right ones and ones with mistakes."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.whole_models.__main__ import run, triples
from benchmarks.whole_models.mistakes import MISTAKES
from benchmarks.whole_models.pairing import ARCHITECTURES

#: Nothing says yet how decays lie in a module that is no attention.
UNNAMED = {"decays reversed", "no decay", "read before written", "positions not turned"}


def test_every_mistake_has_a_name_of_its_own_and_a_cause_that_can_be_read() -> None:
    assert len(MISTAKES) >= 60
    assert len({(m.architecture, m.name, m.component) for m in MISTAKES}) == len(MISTAKES)
    assert {m.architecture for m in MISTAKES} == set(ARCHITECTURES)
    assert all(re.compile(m.cause) for m in MISTAKES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_said_of_a_right_port(architecture: str) -> None:
    trial = run(architecture, ())
    assert trial.accused == ()
    assert trial.text.startswith("AGREE")


@pytest.mark.parametrize("mistake", MISTAKES[3::12], ids=lambda m: f"{m.architecture}: {m.name}")
def test_a_mistake_is_named_where_it_is_and_nothing_beside_it(mistake: Any) -> None:
    trial = run(mistake.architecture, (mistake,))
    assert trial.found == (True,), trial.text
    assert trial.accused == (), trial.text
    assert trial.explained == (mistake.name not in UNNAMED,), trial.text


def test_three_mistakes_at_once_are_named_each() -> None:
    for trial in triples(2, ("llama", "bert")):
        assert trial.found == (True, True, True), trial.text
        assert trial.accused == (), trial.text
