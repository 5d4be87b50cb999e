"""A rotary in what was meant: the truth turns query and key, and their gradients back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from polyattn import attention
from polyattn.conventions.call import call_of
from polyattn.parity import compare
from polyattn.parity.meaning import meaning_of
from polyattn.rotary import Linear, Rotary, YaRN
from polyattn.truth import ACCEPTANCE, eta

RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, 4, 3, 8))
K, V = RNG.normal(size=(2, 2, 2, 40, 8))
INPUTS = {"query": Q, "key": K, "value": V}
ROTARIES = {
    "half": Rotary(),
    "neighbours": Rotary(interleaved=True),
    "a part": Rotary(width=4, base=500.0),
    "yarn": Rotary(scaling=YaRN(factor=4.0, original_length=16)),
}


def turned(rotary: Rotary, arange: Any, drop: bool = False) -> Any:
    def f(q: Any, k: Any, v: Any) -> Any:
        turned_q = rotary(q, arange(37, 40))
        return attention(
            turned_q, k if drop else rotary(k, arange(0, 40)), v, is_causal=True, query_offset=37
        )

    return f


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ROTARIES)
def test_both_agree_on_what_is_turned(name: str, dtype: str) -> None:
    rotary = ROTARIES[name]
    meant = {"is_causal": True, "query_offset": "end", "rotary": rotary}
    found = compare(
        turned(rotary, torch.arange),
        turned(rotary, np.arange),
        INPUTS,
        on=("torch", "numpy"),
        meant=meant,
        dtype=dtype,
        names=("torch", "numpy"),
    )
    assert found.agrees, str(found)
    assert set(found.sides[0].etas) == {"out", "dq", "dk", "dv"}
    wrong = compare(
        turned(rotary, torch.arange, drop=True),
        turned(replace(rotary, base=9000.0), torch.arange),
        INPUTS,
        on=("torch", "torch"),
        meant=meant,
        dtype=dtype,
        names=("no keys", "base"),
    )
    assert all(side.etas[q] > ACCEPTANCE for side in wrong.sides for q in ("out", "dq", "dk"))


def test_true_gradients_are_directional_derivatives() -> None:
    call = call_of(Q, K, V, {"rotary": ROTARIES["yarn"], "is_causal": True, "query_offset": 37})
    cotangent = RNG.normal(size=Q.shape)
    judged = meaning_of(call, "float64").judged(cotangent)
    for name, letter in (("dq", "q"), ("dk", "k")):
        direction = RNG.normal(size=getattr(call, letter).shape)
        step = 1e-5

        def at(sign: float, letter: str = letter, direction: Any = direction, step: float = step) -> Any:
            moved = replace(call, **{letter: getattr(call, letter) + sign * step * direction})
            return (meaning_of(moved, "float64").judged()["out"].value * cotangent).sum()

        difference = (at(1.0) - at(-1.0)) / (2 * step)
        assert abs((judged[name].value * direction).sum() - difference) <= 10 * step**2 * float(
            (judged[name].condition * np.abs(direction)).sum()
        )


def test_the_truth_turns_as_the_library_does() -> None:
    for rotary in ROTARIES.values():
        call = call_of(Q, K, V, {"rotary": rotary})
        meaning = meaning_of(call, "float64")
        spec = meaning.spec
        plain = replace(call, q=rotary(Q, np.arange(3)), k=rotary(K, np.arange(40)), rotary=None)
        out = meaning_of(plain, "float64").judged()["out"].value
        assert eta(out, meaning.judged()["out"], "float64") <= ACCEPTANCE
        assert spec.q_size is not None
        assert (spec.q_size >= np.abs(spec.q)).all()


def test_sections_are_refused() -> None:
    rotary = Rotary(sections=(2, 2))
    with pytest.raises(
        ValueError, match=r"compare: expected a rotary with one axis of positions, got sections \(2, 2\)"
    ):
        compare(attention, attention, INPUTS, on=("numpy", "numpy"), meant={"rotary": rotary})


def test_the_script_has_the_rotary() -> None:
    rotary = Rotary(scaling=Linear(factor=2.0))
    found = compare(
        attention, attention, INPUTS, on=("numpy", "numpy"), meant={"rotary": rotary}, gradients=False
    )
    expected = "'rotary': rotary.Rotary(base=10000.0, width=None, interleaved=False, scaling=rotary.Linear(factor=2.0), "
    assert expected in found.script()
