"""Exercises of the chapter on rings of devices."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed
from exercises.zigzag import ZIGZAG

from polyattn import AuxRequest, attention

LSE = AuxRequest(lse=True)


@law
def cut_is_nothing(attend: Any) -> str:
    """Where the keys are cut into stretches changes nothing: one device, two or three give the same."""
    q, k, v = (draw(2, 6, 4, seed=seed) for seed in (1, 2, 3))
    whole = attend(q, k, v, 1)
    return next(
        (
            found
            for n in (2, 3)
            if (found := apart(attend(q, k, v, n), whole, f"on {n} devices instead of 1"))
        ),
        "",
    )


# ---- merged ----


def _both(found: Any, out: Any, lse: Any, what: str) -> str:
    """out and lse against what they should be."""
    lse, got = np.asarray(lse), np.asarray(found[1])
    if wrong := apart(found[0], out, f"{what}, out") or apart(np.exp(got), np.exp(lse), f"{what}, exp(lse)"):
        return wrong
    lost = np.isneginf(lse) & ~np.isneginf(got)
    return f"{what}, lse: {got[lost][0]:g}, not minus infinity" if lost.any() else ""


def _three() -> tuple[Any, Any]:
    """Two rows of three devices, with the averages 8, 4, 1 in sums of 1, 1, 2, the second row in reverse."""
    outs, sums = (
        np.array([[8.0, 1.0], [4.0, 4.0], [1.0, 8.0]]),
        np.array([[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]),
    )
    return np.repeat(outs[..., None], 3, axis=-1), np.log(sums)


@law
def shares_are_sums_of_weights(merged: Any) -> str:
    """8 and 4 with sums of 1, and 1 with a sum of 2, are 14/4 with a sum of 4."""
    return _both(
        merged(*_three()), np.full((2, 3), 3.5), np.log([4.0, 4.0]), "of 8, 4 and 1 in sums of 1, 1 and 2"
    )


@law
def large_scores_do_not_overflow(merged: Any) -> str:
    """1000 more on every score changes no average, and adds 1000 to lse."""
    outs, lses = _three()
    out, lse = merged(outs, 1000 + lses)
    found = out, np.asarray(lse) - 1000
    return _both(found, np.full((2, 3), 3.5), np.log([4.0, 4.0]), "with 1000 added to all scores, lse - 1000")


@law
def rows_may_be_far_apart(merged: Any) -> str:
    """1000 more on the scores of row 0 and 1000 less on those of row 1 change no average."""
    outs, lses = _three()
    out, lse = merged(outs, lses + np.array([1000, -1000]))
    what = "with 1000 added to row 0 and taken from row 1, which is taken back from lse"
    return _both(
        (out, np.asarray(lse) - np.array([1000, -1000])), np.full((2, 3), 3.5), np.log([4.0, 4.0]), what
    )


@law
def devices_may_be_far_apart(merged: Any) -> str:
    """1000 less on the scores of device 0: of 4 and 1 in sums of 1 and 2 remain 6/3 = 2, of 4 and 8 in 1 and 1 6."""
    outs, lses = _three()
    lses[0] -= 1000
    what = "with 1000 taken from the scores of device 0"
    return _both(merged(outs, lses), [[2.0] * 3, [6.0] * 3], np.log([3.0, 2.0]), what)


@law
def nothing_seen_changes_nothing(merged: Any) -> str:
    """A device that has seen nothing of a row, out 0 and lse -inf, leaves the others as they are; all of them stay nothing."""
    outs, lses = _three()
    outs[0], lses[0] = 0.0, -np.inf
    found = _both(merged(outs, lses), [[2.0] * 3, [6.0] * 3], np.log([3.0, 2.0]), "with nothing on device 0")
    nothing = np.zeros((3, 2, 3)), np.full((3, 2), -np.inf)
    return found or _both(
        merged(*nothing), np.zeros((2, 3)), np.full(2, -np.inf), "with nothing on all devices"
    )


@law
def devices_may_be_of_any_number(merged: Any) -> str:
    """One device gives what it has; of 1, 2, 3, 4, 5 in sums of 1 on five devices the average is 3, the sum 5."""
    outs, lses = np.arange(1.0, 6.0).reshape(5, 1, 1), np.zeros((5, 1))
    return _both(merged(outs[3:4], lses[3:4]), [[4.0]], [0.0], "of 4 in a sum of 1 on one device") or _both(
        merged(outs, lses), [[3.0]], np.log([5.0]), "of 1, 2, 3, 4, 5 in sums of 1 on five devices"
    )


@law
def averages_and_lses_stay(merged: Any) -> str:
    """What the devices found out is left as it was."""
    outs, lses = _three()
    return changed(merged, outs=outs, lses=lses)


def _averaged(outs: Any, lses: Any) -> Any:
    return outs.mean(0), np.logaddexp.reduce(lses)


def _by_exp(outs: Any, lses: Any) -> Any:
    sums = np.exp(lses)
    return (sums[..., None] * outs).sum(0) / sums.sum(0)[:, None], np.log(sums.sum(0))


def _by_logaddexp(outs: Any, lses: Any) -> Any:
    lse = np.logaddexp.reduce(lses)
    return (np.exp(lses - lse)[..., None] * outs).sum(0), lse


def _below(outs: Any, lses: Any, top: Any) -> Any:
    """Right, unless it is given a top that is wrong."""
    top = np.where(np.isneginf(top), 0, top)
    powers = np.exp(lses - top)
    total = powers.sum(0)
    return (powers[..., None] * outs).sum(0) / np.where(total == 0, 1, total)[:, None], top + np.log(total)


def _of_three(outs: Any, lses: Any) -> Any:
    return _below(outs[:3], lses[:3], lses[:3].max(0))


def _shared_out(outs: Any, lses: Any) -> Any:
    out, lse = _below(outs, lses, lses.max(0))
    outs *= np.exp(lses - lse)[..., None]
    return out, lse


# ---- causal_ring ----


def _row(causal_ring: Any, q: Any, k: Any, width: int = 1) -> Any:
    """Of three devices with one token each, whose values are 8, 4, 0: what the devices get."""
    held = ([np.full((1, width), number) for number in numbers] for numbers in (q, k, (8.0, 4.0, 0.0)))
    return np.concatenate(causal_ring(*held))[:, 0]


@law
def the_first_device_sees_itself_alone(causal_ring: Any) -> str:
    """Scores of 0 and values 8, 4, 0 on three devices: all other keys come later than those of device 0, which gets 8."""
    found = _row(causal_ring, np.zeros(3), np.zeros(3))
    return apart(found[0], 8.0, "on device 0 of three with one token each, values 8, 4, 0 and scores of 0")


@law
def all_keys_come_by(causal_ring: Any) -> str:
    """Scores of 0 and values 8, 4, 0 on three devices: 8, (8 + 4) / 2 = 6 and (8 + 4 + 0) / 3 = 4."""
    found = _row(causal_ring, np.zeros(3), np.zeros(3))
    return apart(
        found, [8.0, 6.0, 4.0], "of three devices with one token each, values 8, 4, 0 and scores of 0"
    )


@law
def scores_are_divided(causal_ring: Any) -> str:
    """Of width 4, q = 1 and k = log(2) / 2 * 3, 2, 2: device 2 gets 8/2 + 4/4 + 0/4 = 5."""
    found = _row(causal_ring, np.ones(3), np.log(2) / 2 * np.array([3, 2, 2]), width=4)
    what = (
        "on device 2 of three with one token each of width 4, q = 1, k = log(2) / 2 * 3, 2, 2, values 8, 4, 0"
    )
    return apart(found[2], 5.0, what)


@law
def scores_may_be_large(causal_ring: Any) -> str:
    """Queries 0, 1, -1 and keys 2000, 0, 0: device 1 reads 8, device 2 (4 + 0) / 2 = 2."""
    found = _row(causal_ring, (0.0, 1.0, -1.0), (2000.0, 0.0, 0.0))
    return apart(
        found, [8.0, 8.0, 2.0], "of queries 0, 1, -1, keys 2000, 0, 0 and values 8, 4, 0 on three devices"
    )


@law
def what_comes_later_is_below_all_scores(causal_ring: Any) -> str:
    """Queries of 1 and keys -2000, -2000, 0: 8, (8 + 4) / 2 = 6, and 0, whose score is 2000 larger."""
    found = _row(causal_ring, np.ones(3), (-2000.0, -2000.0, 0.0))
    return apart(
        found, [8.0, 6.0, 0.0], "of queries of 1, keys -2000, -2000, 0 and values 8, 4, 0 on three devices"
    )


@law
def a_device_may_hold_many_tokens(causal_ring: Any) -> str:
    """Four devices with five tokens each of width 8, and one with all 20, give what attention gives of the whole."""
    for count in (4, 1):
        held = [np.split(draw(20, 8, seed=seed), count) for seed in (1, 2, 3)]
        whole = attention(*map(np.concatenate, held), is_causal=True)
        what = f"of 20 tokens of width 8, {20 // count} on each device"
        if found := apart(np.concatenate(causal_ring(*held)), whole, what):
            return found
    return ""


@law
def what_the_devices_hold_stays(causal_ring: Any) -> str:
    """The lists are left as they were: keys travel in others."""
    qs, ks, vs = (list(draw(3, 2, 4, seed=seed)) for seed in (1, 2, 3))
    return changed(causal_ring, qs=qs, ks=ks, vs=vs)


def _ring(qs: Any, ks: Any, vs: Any, steps: int, size: int | None = None, scale: float | None = None) -> Any:
    results = []
    for i, q in enumerate(qs):
        seen: Any = np.zeros_like(vs[i]), np.full(len(q), -np.inf)
        for r in range(steps):
            j, apart = (i - r) % len(qs), len(q) if size is None else size
            how = {"query_offset": i * apart, "key_offset": j * apart, "scale": scale, "return_aux": LSE}
            out, aux = attention(q, ks[j], vs[j], is_causal=True, **how)
            lse = np.logaddexp(seen[1], aux.lse)
            share = np.exp(np.where(np.isneginf(lse), 0, aux.lse - lse))[:, None]
            seen = seen[0] + share * (out - seen[0]), lse
        results.append(seen[0])
    return results


def _at_once(qs: Any, ks: Any, vs: Any, hidden: float = -np.inf, top: Any = None) -> Any:
    q, k, v = map(np.concatenate, (qs, ks, vs))
    s = np.where(np.tri(len(q)), q @ k.T / q.shape[-1] ** 0.5, hidden)
    powers = np.exp(s - (s.max(-1, keepdims=True) if top is None else top(s)))
    return np.split(powers / powers.sum(-1, keepdims=True) @ v, len(qs))


def _travelled(qs: Any, ks: Any, vs: Any) -> Any:
    ks.insert(0, ks.pop())
    return _ring(qs, ks[1:] + ks[:1], vs, len(qs))


EXERCISES = (
    Exercise(
        (
            shares_are_sums_of_weights,
            large_scores_do_not_overflow,
            rows_may_be_far_apart,
            devices_may_be_far_apart,
            nothing_seen_changes_nothing,
            devices_may_be_of_any_number,
            averages_and_lses_stay,
        ),
        {
            "shares_are_sums_of_weights": _averaged,
            "large_scores_do_not_overflow": _by_exp,
            "rows_may_be_far_apart": lambda outs, lses: _below(outs, lses, lses.max()),
            "devices_may_be_far_apart": lambda outs, lses: _below(outs, lses, lses[0]),
            "nothing_seen_changes_nothing": _by_logaddexp,
            "devices_may_be_of_any_number": _of_three,
            "averages_and_lses_stay": _shared_out,
        },
    ),
    ZIGZAG,
    Exercise(
        (
            the_first_device_sees_itself_alone,
            all_keys_come_by,
            scores_are_divided,
            scores_may_be_large,
            what_comes_later_is_below_all_scores,
            a_device_may_hold_many_tokens,
            what_the_devices_hold_stays,
        ),
        {
            "the_first_device_sees_itself_alone": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs), size=0),
            "all_keys_come_by": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs) - 1),
            "scores_are_divided": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs), scale=1.0),
            "scores_may_be_large": lambda qs, ks, vs: _at_once(qs, ks, vs, top=np.max),
            "what_comes_later_is_below_all_scores": lambda qs, ks, vs: _at_once(qs, ks, vs, hidden=-100.0),
            "a_device_may_hold_many_tokens": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs), size=1),
            "what_the_devices_hold_stays": _travelled,
        },
    ),
)
