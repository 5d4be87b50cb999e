"""A new dialect is one entry of the table and one probe: everything else is made of these two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyattn import attention, masks, mods
from polyattn.cli import app
from polyattn.dialects import DIALECTS, QUESTIONS, Claim, Dialect, explain
from polyattn.dialects.libraries import PEERS, Library, Peer
from polyattn.dialects.markdown import table_markdown
from polyattn.dialects.peers import peer_table
from polyattn.dialects.probes import check
from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.table import FAMILIES
from polyattn.parity.cases import cases

# The entry.
TOY = Dialect(
    name="toy",
    what="toy.attend",
    package="numpy",
    version="1",
    signature="q: query, k: key, v: value, *, hide: mask = None, causal: causal = False, scale: scale = None",
    answers=claims(
        tested=USUAL
        | {
            "layout": "BLHD",
            "bool mask": "ignore",
            "float mask": "as bool",
            "empty bias row": "no bias",
            "bias": "none",
            "causal": "last rows",
            "poison": "cannot leak",
        }
    ),
)


def attend(given: Mapping[str, Any]) -> Any:
    """The library: what it answers is written here a second time, with `polyattn.attention`."""
    q, k, v, hide = given["q"], given["k"], given["v"], given.get("hide")
    return attention(
        *(x.astype(q.dtype) for x in (q, k, v)),
        layout="BLHD",
        mask=None if hide is None else ~hide if hide.dtype == bool else hide != 0,
        is_causal=given.get("causal", False),
        query_offset="end",
        scale=given.get("scale"),
    )


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "Toys", (TOY,))
    monkeypatch.setitem(DIALECTS, "toy", TOY)
    monkeypatch.setitem(PEERS, "toy", Peer("toy", "toy", "numpy", lambda: Library(attend)))  # the probe


def test_its_claims_are_put_to_the_library() -> None:
    assert [said for question in QUESTIONS if (said := check("toy", question))] == []


def test_a_wrong_claim_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(TOY, answers={**TOY.answers, "bool mask": Claim("attend", True)})
    monkeypatch.setitem(DIALECTS, "toy", wrong)
    assert (
        check("toy", "bool mask")
        == "toy: True in a bool mask: the table says 'may attend'; it fits 'is ignored'"
    )


def test_it_is_translated_and_what_it_does_not_carry_is_refused() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 8)).astype(np.float32)
    said = TOY.from_polyattn(q, k, v, is_causal=True, mask=masks.prefix(3), query_offset=0)
    assert set(said) == {"q", "k", "v", "hide", "causal"}
    meant = attention(q, k, v, is_causal=True, mask=masks.prefix(3)).swapaxes(1, 2)
    assert np.array_equal(TOY.attention(**said), meant)
    assert np.array_equal(attend(said), meant)
    with pytest.raises(
        ValueError, match=r"has words for \(values added to the scores: none\), got a score_mod"
    ):
        TOY.from_polyattn(q, k, v, score_mod=mods.softcap(2.0))


def test_it_is_on_the_page_among_the_traps_in_the_verdicts_and_on_the_command_line() -> None:
    assert "### Toys\n\n- `toy`: toy.attend (1)\n" in table_markdown()
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 8)).astype(np.float32)
    allowed = np.arange(4) < 3
    found = explain("toy", "jax.nn", q, k, v, mask=allowed[None, None, None])
    assert [trap.question for trap in found.bites] == ["bool mask"]
    outcomes = {
        o.case: o for o in peer_table([c for c in cases() if c.name in ("mask polarity", "sinks")], ["toy"])
    }
    assert outcomes["mask polarity"].agrees
    assert outcomes["sinks"].sentence.startswith(
        "expected what toy has words for (sinks in the denominator: none)"
    )
    assert "toy.attend" in CliRunner().invoke(app, ["dialects"]).output
