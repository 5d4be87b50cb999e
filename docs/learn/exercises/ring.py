"""Exercises of the chapter on rings of devices."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

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
    return apart(found[0], out, f"{what}, out") or apart(np.exp(found[1]), np.exp(lse), f"{what}, exp(lse)")


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
    return _both((out, lse - 1000), np.full((2, 3), 3.5), np.log([4.0, 4.0]), "with 1000 added to all scores")


@law
def nothing_seen_changes_nothing(merged: Any) -> str:
    """A device that has seen nothing of a row, out 0 and lse -inf, leaves the others as they are; all of them stay nothing."""
    outs, lses = _three()
    outs[0], lses[0] = 0.0, -np.inf
    found = _both(merged(outs, lses), [[2.0] * 3, [6.0] * 3], np.log([3.0, 2.0]), "with nothing on device 0")
    nothing = np.zeros((3, 2, 3)), np.full((3, 2), -np.inf)
    return found or _both(merged(*nothing), nothing[0][0], nothing[1][0], "with nothing on all devices")


def _averaged(outs: Any, lses: Any) -> Any:
    return outs.mean(0), np.logaddexp.reduce(lses)


def _by_exp(outs: Any, lses: Any) -> Any:
    sums = np.exp(lses)
    return (sums[..., None] * outs).sum(0) / sums.sum(0)[:, None], np.log(sums.sum(0))


def _by_logaddexp(outs: Any, lses: Any) -> Any:
    lse = np.logaddexp.reduce(lses)
    return (np.exp(lses - lse)[..., None] * outs).sum(0), lse


# ---- zigzag ----


@law
def every_token_has_one_device(zigzag: Any) -> str:
    """All tokens are there once, and each device has as many as another."""
    found = zigzag(16, 4)
    if list(map(len, found)) != [4] * 4:
        return f"16 tokens on 4 devices: {list(map(len, found))} tokens each, not [4, 4, 4, 4]"
    return apart(np.sort(np.ravel(found)) * 1.0, np.arange(16), "16 tokens on 4 devices, sorted")


@law
def all_work_alike(zigzag: Any) -> str:
    """Token t sees t + 1 keys: 136 pairs of 16 tokens are 34 for each of 4 devices."""
    found = [sum(int(token) + 1 for token in held) for held in zigzag(16, 4)]
    return apart(np.asarray(found, float), [34] * 4, f"16 tokens on 4 devices see {found} keys")


@law
def stretches_are_unbroken(zigzag: Any) -> str:
    """A device has at most two stretches of neighbours, in rising order."""
    for i, held in enumerate(zigzag(16, 4)):
        stretches = 1 + int(np.count_nonzero(np.diff(held) != 1))
        if stretches > 2:
            return f"device {i} has the tokens {list(map(int, held))}: {stretches} stretches, not 2"
    return ""


def _second_half_again(tokens: int, devices: int) -> Any:
    stretches = np.split(np.arange(tokens), 2 * devices)
    return [[*stretches[i], *stretches[-i]] for i in range(devices)]


def _striped(tokens: int, devices: int) -> Any:
    return [list(range(i, tokens, devices)) for i in range(devices)]


def _back_and_forth(tokens: int, devices: int) -> Any:
    rows = np.arange(tokens).reshape(-1, devices)
    rows[1::2] = rows[1::2, ::-1]
    return rows.T.tolist()


# ---- causal_ring ----


def _devices() -> list[list[Any]]:
    return [list(draw(3, 2, 4, seed=seed)) for seed in (1, 2, 3)]


@law
def the_first_device_sees_itself_alone(causal_ring: Any) -> str:
    """All other keys come later than its queries, whichever device they are on."""
    qs, ks, vs = _devices()
    alone = attention(qs[0], ks[0], vs[0], is_causal=True)
    return apart(causal_ring(qs, ks, vs)[0], alone, "of device 0, whose tokens come first")


@law
def all_keys_come_by(causal_ring: Any) -> str:
    """The last device sees the keys of all."""
    qs, ks, vs = _devices()
    whole = attention(*map(np.concatenate, (qs, ks, vs)), is_causal=True)
    return apart(np.concatenate(causal_ring(qs, ks, vs)), whole, "of three devices with two tokens each")


def _ring(qs: Any, ks: Any, vs: Any, steps: int, knows_places: bool) -> Any:
    size, results = len(qs[0]), []
    for i, q in enumerate(qs):
        seen: Any = np.zeros_like(vs[i]), np.full(size, -np.inf)
        for r in range(steps):
            j = (i - r) % len(qs)
            where = {"query_offset": i * size, "key_offset": j * size} if knows_places else {}
            out, aux = attention(q, ks[j], vs[j], is_causal=True, **where, return_aux=LSE)
            lse = np.logaddexp(seen[1], aux.lse)
            share = np.exp(np.where(np.isneginf(lse), 0, aux.lse - lse))[:, None]
            seen = seen[0] + share * (out - seen[0]), lse
        results.append(seen[0])
    return results


EXERCISES = (
    Exercise(
        (shares_are_sums_of_weights, large_scores_do_not_overflow, nothing_seen_changes_nothing),
        {
            "shares_are_sums_of_weights": _averaged,
            "large_scores_do_not_overflow": _by_exp,
            "nothing_seen_changes_nothing": _by_logaddexp,
        },
    ),
    Exercise(
        (every_token_has_one_device, all_work_alike, stretches_are_unbroken),
        {
            "every_token_has_one_device": _second_half_again,
            "all_work_alike": _striped,
            "stretches_are_unbroken": _back_and_forth,
        },
    ),
    Exercise(
        (the_first_device_sees_itself_alone, all_keys_come_by),
        {
            "the_first_device_sees_itself_alone": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs), False),
            "all_keys_come_by": lambda qs, ks, vs: _ring(qs, ks, vs, len(qs) - 1, True),
        },
    ),
)
