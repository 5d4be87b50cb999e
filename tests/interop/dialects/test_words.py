"""The words of other libraries, as `polyattn.calls` answers them, against the signatures in the table of dialects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import polyattn
from polyattn import attention, attention_vjp, layers, masks, mods, trace
from polyattn.additive import additive_attention
from polyattn.calls import members, words_of
from polyattn.dialects import DIALECTS
from polyattn.layers import MultiHeadAttention

ANSWERS = words_of("attention")
OURS = set(inspect.signature(attention).parameters)
X = np.ones((1, 2, 3, 4), np.float32)


def parameters() -> Iterator[tuple[str, str]]:
    """Every parameter that a dialect has and attention has not, with the dialect."""
    for dialect in DIALECTS.values():
        for parameter in dialect.parameters:
            if parameter.name not in OURS:
                yield parameter.name, dialect.name


def test_every_word_of_a_dialect_is_answered_in_the_name_of_those_who_have_it() -> None:
    speakers: dict[str, set[str]] = {}
    for word, dialect in parameters():
        speakers.setdefault(word, set()).add(dialect)
    assert len(speakers) > 50
    answered = {
        word: {d for answer in ANSWERS.get(word, ()) for d in answer.dialects} for word in sorted(speakers)
    }
    assert answered == speakers
    invented = {word for word, answers in ANSWERS.items() if any(a.dialects for a in answers)} - set(speakers)
    assert invented == set()


@pytest.mark.parametrize("f", [attention, attention_vjp, trace])
@pytest.mark.parametrize("word", sorted({word for word, _ in parameters()}))
def test_a_word_of_a_dialect_ends_in_the_line_to_write(f: Callable[..., Any], word: str) -> None:
    with pytest.raises(TypeError) as error:
        f(X, X, X, **{word: None})
    said, names = str(error.value), tuple(inspect.signature(f).parameters)
    fitting = next((answer for answer in ANSWERS[word] if answer.fits(names)), None)
    assert said.startswith(f"polyattn.{f.__name__}: expected ")
    assert f", got {word}=" in said
    if fitting is None:  # as return_lse= for attention_vjp, which has no return_aux
        assert f is not attention
        return
    assert (
        f"(polyattn.dialects.DIALECTS['{fitting.dialects[0]}'].attention takes such a call as it is)" in said
    )
    assert said.endswith(f"; {fitting.line}")
    assert fitting.dialects[0] in DIALECTS


def test_a_name_of_ours_is_nobody_elses() -> None:
    assert OURS & set(ANSWERS) == {"implementation", "return_aux"}  # which attention_vjp and trace have not
    assert set(inspect.signature(additive_attention).parameters) & set(ANSWERS) == {
        "implementation",
        "return_aux",
    }


@pytest.mark.parametrize("name", list(members()))
def test_a_method_that_layers_have_not_is_answered(name: str) -> None:
    layer = MultiHeadAttention(8, 2)
    assert not hasattr(layer, name)
    with pytest.raises(AttributeError) as error:
        getattr(layer, name)
    assert str(error.value) == (
        f"polyattn.layers.MultiHeadAttention: expected a layer to be a value without state, got .{name}; "
        f"{members()[name]}"
    )


@pytest.mark.parametrize("table", ["attention", "layers", "settings"])
def test_what_is_to_be_written_is_there(table: Any) -> None:
    """Names of polyattn in the lines exist, and what a line names instead is what the answer expects."""
    rooms = {"masks": masks, "mods": mods, "layers": layers, "polyattn": polyattn}
    for word, answers in words_of(table).items():
        for answer in answers:
            for room, name in re.findall(r"\b(masks|mods|layers|polyattn)\.(\w+)", answer.line):
                assert hasattr(rooms[room], name), (word, answer.line)
            assert answer.here
            assert "{" not in answer.line, word
            assert answer.dialects or answer.others, word
            assert set(answer.dialects) <= set(DIALECTS), word
