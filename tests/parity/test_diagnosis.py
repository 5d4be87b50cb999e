"""`diagnose`: parts of outputs, printed ones, plain ones, profiles, masks given as arrays, fitted numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from polyattn import attention, masks
from polyattn.conventions.answers import answer
from polyattn.conventions.call import Call, call_of
from polyattn.conventions.fits import Fit, Observed
from polyattn.conventions.recognised import recognised
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.parity import Diagnosis, diagnose
from polyattn.parity.diagnosis import fitted, search
from polyattn.rotary import Rotary

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 2, 4, 20, 16))
CAUSAL = np.tril(np.ones((20, 20), bool))
PADDING = np.arange(20) < np.array([17, 20])[:, None, None, None]


def said(d: Diagnosis) -> str:
    """What it says, without the figures that depend on the machine."""
    text = re.sub(r"; fitted numbers beside \d+ of \d+ changes were not tried", "", str(d))
    return re.sub(r"\d+ explanations", "_ explanations", re.sub(r"eta (inf|[\d.e+-]*\d)", "eta _", text))


# outputs that are plainly something


@pytest.mark.parametrize(
    ("output", "meant", "sentence"),
    [
        (np.zeros_like(Q), {}, "an output of zeros alone: nothing was computed, or written"),
        (np.full_like(Q, np.nan), {}, "an output of NaN alone"),
        (np.full_like(Q, 0.3), {}, "an output of one number, 0.3, everywhere"),
        (V, {"is_causal": True}, "the values themselves: every row returns the value of its own key"),
        (
            np.broadcast_to(V.mean(-2, keepdims=True), V.shape),
            {"is_causal": True},
            "the mean of all values: all weights equal, scores and mask not used",
        ),
        (
            np.cumsum(V, -2) / np.arange(1, 21)[:, None],
            {"is_causal": True},
            "the mean of the values that a row sees: all weights equal, scores not used",
        ),
        (
            np.broadcast_to(attention(Q, K, V)[:, 2:3], Q.shape),
            {},
            "head 2 repeated for every head",
        ),
        (np.broadcast_to(attention(Q, K, V)[1:], Q.shape), {}, "batch item 1 repeated for every item"),
    ],
)
def test_an_output_that_is_plainly_something_is_called_so(
    output: Floats, meant: dict[str, Any], sentence: str
) -> None:
    d = diagnose(output, Q, K, V, **meant)
    assert d.findings[0].sentences == (sentence,)
    if (call := d.findings[0].call) is not None:
        assert np.abs(answer(call, d.findings[0].settings).out - output).max() < 1e-9


# parts of outputs


@pytest.mark.parametrize("rows", [[3, 9, 15], slice(2, 12), slice(None, None, 4), [19, 0, 7]])
@pytest.mark.parametrize("whole", [True, False])
def test_rows_of_an_output_are_enough(rows: Any, whole: bool) -> None:
    out = attention(Q, K, V, is_causal=True, scale=1.0)
    garbage = RNG.normal(size=out.shape)
    garbage[:, :, rows] = out[:, :, rows]
    d = diagnose(garbage if whole else out[:, :, rows], Q, K, V, is_causal=True, rows=rows)
    assert said(d) == "matches scale = 1 (scores not divided): eta _; as stated: eta _"


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize("flat", [True, False])
def test_heads_and_elements_of_an_output_are_enough_in_every_layout(layout: str, flat: bool) -> None:
    out = attention(Q, K, V, scale=1.0)
    q, k, v = (x.swapaxes(1, 2) if layout == "BLHD" else x for x in (Q, K, V))
    part = out[:, [1, 3]].swapaxes(1, 2)
    counts = np.ones(part.shape, bool)
    counts[1, 15:] = False
    part = np.where(counts, part, np.nan)
    if flat:
        part, counts = (x.reshape(2, 20, 32) for x in (part, counts))
    elif layout == "BHLD":
        part, counts = part.swapaxes(1, 2), counts.swapaxes(1, 2)
    d = diagnose(part, q, k, v, layout=layout, heads=[1, 3], where=counts)
    assert said(d) == "matches scale = 1 (scores not divided): eta _; as stated: eta _"
    assert diagnose(part, q, k, v, layout=layout, heads=[1, 3], where=counts, scale=1.0).agrees


def test_every_step_of_the_search_leaves_out_what_does_not_count() -> None:
    counts = np.ones((2, 1, 20, 1), bool)
    counts[1, :, 13:] = False

    def spoilt(out: Floats) -> Floats:
        return np.where(counts, out, 3.0)

    two = diagnose(spoilt(attention(Q, K, V)), Q, K, V, where=counts, is_causal=True, scale=0.4)
    assert said(two).startswith(
        "matches scale = 1/sqrt(16) (the default, not the scale that was asked for) and causal"
    )
    merged = attention(Q, K, V).reshape(2, 20, 4, 16).swapaxes(1, 2)
    assert said(diagnose(spoilt(merged), Q, K, V, where=counts)).startswith("matches heads merged wrongly")
    dropped = diagnose(spoilt(attention(Q, K, V, dropout_rate=0.25, dropout_seed=3)), Q, K, V, where=counts)
    assert said(dropped).startswith("matches dropout of the weights left on (rate about 0.2")
    mean = diagnose(spoilt(np.broadcast_to(V.mean(-2, keepdims=True), V.shape)), Q, K, V, where=counts)
    assert said(mean).startswith("matches the mean of all values")
    out = attention(Q, K, V)
    out[0] *= 1.01
    profile = diagnose(spoilt(out), Q, K, V, where=counts).profile
    assert profile is not None
    assert "batch 0 only" in profile.sentence


def test_the_rounding_of_a_print_is_allowed_for() -> None:
    out = attention(Q, K, V, scale=1.0, is_causal=True)
    printed = out.round(3)
    assert diagnose(printed, Q, K, V, is_causal=True, scale=1.0, decimals=3).agrees
    assert not diagnose(printed, Q, K, V, is_causal=True, scale=1.0).agrees
    assert said(diagnose(printed.tolist(), Q, K, V, is_causal=True, decimals=3)) == (
        "matches scale = 1 (scores not divided): eta _; as stated: eta _"
    )
    assert not diagnose(printed + 0.002, Q, K, V, is_causal=True, scale=1.0, decimals=3).agrees


# positions


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (CAUSAL, (True, None, 0, None)),
        (CAUSAL & PADDING, (True, None, 0, PADDING)),
        (CAUSAL & (np.arange(20) > np.arange(20)[:, None] - 4), (True, (3, None), 0, None)),
        (np.abs(np.arange(20) - np.arange(20)[:, None]) <= 2, (False, (2, 2), 0, None)),
        (np.arange(20) > np.arange(20)[:, None] - 4, (False, (3, None), 0, None)),
        (CAUSAL[8:], (True, None, 8, None)),
        (CAUSAL[:12], (True, None, 0, None)),
        (PADDING, None),
        (RNG.random((20, 20)) < 0.7, None),
        (CAUSAL | (np.arange(20) < 3), None),
    ],
)
def test_causality_and_windows_in_an_array_are_recognised(mask: Floats, words: Any) -> None:
    rows = mask.shape[-2] if mask.shape[-2] > 1 else 20
    call = call_of(Q[:, :, :rows], K, V, {"mask": mask})
    found = recognised(call)
    if words is None:
        assert found is None
        return
    assert found is not None
    assert (found.is_causal, found.window, found.offset) == words[:3]
    assert (found.mask is None) is (words[3] is None)
    assert np.array_equal(answer(found).out, answer(call).out)


def test_conventions_of_a_mask_in_an_array_are_tried() -> None:
    ahead = attention(Q, K, V, mask=masks.window(None, 1))
    assert said(diagnose(ahead, Q, K, V, mask=CAUSAL)) == (
        "matches causal mask off by one: a token sees the next one: eta _; as stated: eta _"
    )
    q = Q[:, :, :12]
    aligned = attention(q, K, V, is_causal=True, query_offset=0)
    assert said(diagnose(aligned, q, K, V, mask=CAUSAL[8:])) == (
        "matches causal mask aligned top-left (first query with first key): eta _; as stated: eta _"
    )
    both = {"mask": CAUSAL & PADDING}
    padded = attention(Q, K, V, mask=PADDING)
    assert said(diagnose(padded, Q, K, V, **both)) == "matches causal mask ignored: eta _; as stated: eta _"
    assert said(diagnose(attention(Q, K, V, is_causal=True), Q, K, V, **both)) == (
        "matches mask ignored (its padding, not its causality or window): eta _; as stated: eta _"
    )
    assert (
        said(diagnose(attention(Q, K, V), Q, K, V, **both)) == "matches mask ignored: eta _; as stated: eta _"
    )


def test_each_batch_item_may_have_an_offset_of_its_own() -> None:
    offsets, q = np.array([3, 11]), Q[:, :, :8]
    rotary, keys = Rotary(), np.arange(20)
    meant: dict[str, Any] = {"is_causal": True, "query_offset": offsets}
    at = offsets[:, None] + np.arange(8)
    assert diagnose(attention(q, K, V, **meant), q, K, V, **meant).agrees
    right = attention(rotary(q, at), rotary(K, keys), V, **meant)
    assert diagnose(right, q, K, V, rotary=rotary, **meant).agrees
    late = attention(rotary(q, at + 1), rotary(K, keys), V, **meant)
    assert said(diagnose(late, q, K, V, rotary=rotary, **meant)) == (
        "matches rotary positions of the queries off by one: eta _; as stated: eta _"
    )
    wrong = attention(q, K, V, is_causal=True, query_offset=0)
    assert said(diagnose(wrong, q, K, V, **meant)) == (
        "matches causal mask aligned top-left (first query with first key): eta _; as stated: eta _"
    )
    assert said(diagnose(1.001 * right, q, K, V, rotary=rotary, pairs=False, **meant)) == (
        "no known convention explains this (as stated: eta _; _ explanations tried); fitted numbers, as each batch item has "
        "an offset of its own, were not tried\n"
        "  wrong: all batch items; all heads; all rows; the output is multiplied by 1.001"
    )


# profiles


def test_a_profile_says_where_an_output_is_wrong() -> None:
    out = attention(Q, K, V, is_causal=True)
    out[1, :, 12:] += np.linspace(0.1, 2.0, 8)[:, None] * (V[1, :, 7:8] - out[1, :, 12:])
    d = diagnose(out, Q, K, V, is_causal=True, pairs=False)
    assert d.profile is not None
    assert d.profile.sentence == (
        "wrong: batch 1 only; all heads; rows 12-19 of 20, growing with the row; the error lies in the direction of value 7"
    )
    lines = str(d.profile).splitlines()
    assert lines[0] == d.profile.sentence
    assert lines[1] == f"0,0 |{' ' * 20}|"
    assert re.fullmatch(r"1,0 \| {12}[^ ]{8}\|", lines[5])
    assert lines[5][17:25] == "".join(sorted(lines[5][17:25], key=" .:-=+*#%@".index))
    own = attention(Q, K, V)
    own[:, 1:3, ::4] += 0.5 * V[:, 1:3, ::4]
    assert said(diagnose(own, Q, K, V, pairs=False)).endswith(
        "wrong: all batch items; heads 1-2 of 4; rows 0, 4, ..., 16 of 20; the error lies in the direction of the row's own "
        "value"
    )
    entries = attention(Q, K, V)
    entries[..., :8] += 0.1
    profile = diagnose(entries, Q, K, V, pairs=False).profile
    assert profile is not None
    assert "entries 0-7 of 16" in profile.sentence


def test_a_profile_is_drawn_and_shows_itself() -> None:
    out = attention(Q, K, V)
    out[0, 3, 5:9] *= 1.1
    d = diagnose(out, Q, K, V, pairs=False)
    page = d._repr_html_()
    squares = [x for x in ElementTree.fromstring(page).iter() if x.tag.endswith("path")]
    assert len(squares) == 4
    assert d.figure().get_suptitle().startswith("wrong: batch 0 only; head 3 only; rows 5-8 of 20")
    with pytest.raises(ValueError, match=r"expected an output that is wrong somewhere, got one that agrees"):
        diagnose(attention(Q, K, V), Q, K, V).figure()


def test_a_large_profile_has_sixteen_lines_of_sixty_four_characters() -> None:
    q, k, v = np.random.default_rng(1).normal(size=(3, 3, 8, 150, 4))
    profile = diagnose(attention(q, k, v) + 0.1, q, k, v, pairs=False).profile
    assert profile is not None
    lines = profile.picture().splitlines()
    assert lines[-1] == "and 8 more"
    assert len(lines) == 17
    assert {len(line) for line in lines[:-1]} == {len("2,7 ||") + 64}


# numbers that are fitted


def scale_fits(call: Call, seen: Observed, settings: Settings = CONTRACT) -> Iterator[Fit]:
    """One scale among a few that nobody lists, if it explains almost all of the part."""
    for scale in (0.123, 0.3):
        altered = replace(call, scale=scale)
        expected = answer(altered, settings, seen.rows)
        off = np.abs(seen.out - expected.out) > 4 * seen.unit(expected)
        if (off & (True if seen.trusted is None else seen.trusted)).mean() < 0.05:
            yield Fit("scale", f"scale = {scale}", altered, settings)


def nothing(call: Call, seen: Observed, settings: Settings = CONTRACT) -> Iterator[Fit]:
    return iter(())


def test_fitted_numbers_come_after_listed_causes_and_before_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "fits", scale_fits)
    d = diagnose(attention(Q, K, V, scale=0.123), Q, K, V)
    assert said(d) == "matches scale = 0.123: eta _; as stated: eta _"
    assert d.findings[0].call is not None
    assert d.findings[0].call.scale == 0.123
    both = attention(Q, K, V, scale=0.3)
    assert said(diagnose(both, Q, K, V, is_causal=True)) == (
        "matches causal mask ignored and scale = 0.3: eta _; as stated: eta _"
    )
    assert diagnose(both, Q, K, V, is_causal=True, pairs=False).findings == ()
    merged = both.reshape(2, 20, 4, 16).swapaxes(1, 2)
    assert said(diagnose(merged, Q, K, V)) == (
        "matches heads merged wrongly: (B, H, L, D) viewed as (B, L, H D) without a transpose and scale = 0.3: eta _; "
        "as stated: eta _"
    )
    part = both.copy()
    part[0, 1, 4:6] = 0.5
    assert said(diagnose(part, Q, K, V)).startswith("matches scale = 0.3: eta _; explains 158 of 160 rows")


def test_what_was_left_untried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "fits", nothing)
    noise = np.random.default_rng(5).normal(size=Q.shape)
    assert re.search(
        r"; fitted numbers beside \d+ of \d+ changes were not tried\n", str(diagnose(noise, Q, K, V))
    )
    monkeypatch.setattr(search, "LARGE", 100)
    assert (
        "; pairs with another softmax, at 3200 scores, were not tried; pairs with a fitted number, at 3200 scores, were not "
        "tried\n" in str(diagnose(noise, Q, K, V))
    )
