"""Numbers that nobody knew are found from an output: planted by plain NumPy, recovered with their sentence; noise is not accused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyattn.conventions.call import Call
from polyattn.conventions.fits import Fit, Observed, fits
from polyattn.conventions.settings import CONTRACT
from polyattn.rotary import Llama3, Rotary, YaRN
from polyattn.truth.definition import Judged
from polyattn.truth.measure import round_to, unit_of

Floats = np.ndarray[Any, Any]
Planted = tuple[Floats, Call, str]
DTYPES = ("float32", "bfloat16")
B, H, N, D = 2, 4, 48, 16
RNG = np.random.default_rng(7)
Q, K, V = round_to(RNG.normal(size=(3, B, H, N, D)), "bfloat16")
K2, V2 = round_to(RNG.normal(size=(2, B, 2, N, D)), "bfloat16")
BIAS = RNG.normal(size=(1, H, N, N))
SINKS = RNG.normal(size=H)
ROW, KEY = np.arange(N)[:, None], np.arange(N)[None, :]
CAUSAL = KEY <= ROW
LENGTHS = np.array([40, 29])[:, None, None, None]
CALL = Call(Q, K, V, scale=0.25, is_causal=True)
FREE = replace(CALL, is_causal=False)
PADDED = replace(FREE, mask=KEY < LENGTHS)
PATTERN = (RNG.random(size=(B, 1, N, N)) < 0.6) | (ROW == KEY)
PATTERN[..., :2] = True
MASKED = replace(FREE, mask=PATTERN)
TURNED = replace(CALL, rotary=Rotary())
PLACES = np.arange(N)


def weights(
    s: Floats, mask: Floats | bool = CAUSAL, beside: Floats | float = 0.0, hidden: float = -np.inf
) -> Floats:
    """The softmax of scores, `beside` added to its denominator."""
    s = np.where(mask, s, hidden)
    e = np.exp(s - s.max(-1, keepdims=True)) if np.ndim(beside) == 0 and beside == 0 else np.exp(s)
    return e / (e.sum(-1, keepdims=True) + beside)


def attend(
    q: Floats = Q,
    k: Floats = K,
    v: Floats = V,
    *,
    scale: Any = 0.25,
    mask: Floats | bool = CAUSAL,
    plus: Any = 0.0,
) -> Floats:
    return weights(scale * (q @ k.mT) + plus, mask) @ v


def turn(
    x: Floats, places: Floats = PLACES, base: float = 1e4, width: int = D, pairs: int = D, sign: float = 1.0
) -> Floats:
    f = base ** (-np.arange(0, width, 2) / width) * (np.arange(width // 2) < pairs)
    t = places[..., None] * f
    a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return np.concatenate(
        (a * np.cos(t) - sign * b * np.sin(t), sign * a * np.sin(t) + b * np.cos(t), rest), -1
    )


def turned(q: Any = None, k: Any = None, **how: Any) -> Floats:
    """Attention with positions of queries and keys as given."""
    return attend(turn(Q, PLACES if q is None else q, **how), turn(K, PLACES if k is None else k, **how))


def changed(x: Floats, where: Any, to: Any) -> Floats:
    x = x.copy()
    x[where] = to
    return x


def observed(out: Floats, dtype: str, rows: Floats | None = None, trusted: Floats | None = None) -> Observed:
    out = round_to(out if rows is None else out[:, :, rows], dtype)
    return Observed(out, rows, trusted, lambda a: unit_of(Judged(a.out, a.condition, 0.0, a.rounded), dtype))


def first(out: Floats, call: Call, dtype: str, **how: Any) -> Fit | None:
    return next(fits(call, observed(out, dtype, **how)), None)


M128 = (0.1 * math.log(128) + 1) ** 2
ALIBI = 2.0 ** (-2.0 * np.arange(1, H + 1))[:, None, None]
SLOPED = replace(CALL, shift=(-ALIBI * (ROW - KEY))[None])
S = np.s_
NORMED = tuple(x / np.sqrt(np.mean(x**2, -1, keepdims=True)) for x in (Q, K))

PLANTED: dict[str, Callable[[], Planted]] = {
    # what scores are multiplied by
    "width 18": lambda: (attend(scale=18**-0.5), CALL, "1/sqrt(18) instead of 1/sqrt(16)"),
    "yarn": lambda: (attend(scale=0.25 * M128), CALL, "m^2 of YaRN for factor 128, (0.1 ln 128 + 1)^2"),
    "free scale": lambda: (attend(scale=0.25 * 1.37), CALL, "scale x 1.37: 0.342"),
    "layer": lambda: (attend(scale=0.25 / 7), CALL, "divided by 7"),
    "heads": lambda: (attend(scale=0.25 * np.array([0.5, 0.8, 1.2, 2.0])[:, None, None]), CALL, "scale of every head x 0.5, 0.8, 1.2, 2"),
    "lengths": lambda: (attend(scale=0.25 * np.log(LENGTHS) / np.log(512), mask=KEY < LENGTHS), PADDED, "the logarithm of its length over ln 512"),
    "log n": lambda: (attend(scale=0.25 * np.log(ROW + 1) / np.log(128)), CALL, "ln n / ln 128"),
    "llama 4": lambda: (attend(scale=0.25 * (1 + 0.1 * np.log1p((ROW + 1) // 8))), CALL, "0.1 ln(floor(n / 8) + 1) + 1"),
    "normed": lambda: (attend(*NORMED), CALL, "query and key divided by their root mean square"),
    # the output
    "dropout's factor": lambda: (attend() / 0.9, CALL, "1 / (1 - 0.1), the factor of dropout at rate 0.1"),
    "gain": lambda: (attend() * 1.23, CALL, "output x 1.23"),
    "gains": lambda: (attend() * np.array([0.5, 0.8, 1.2, 2.0])[:, None, None], CALL, "output of every head x 0.5, 0.8, 1.2, 2"),
    "constant": lambda: (attend() + 0.3, CALL, "0.3 added to the output"),
    "vector": lambda: (attend() + SINKS[:, None, None] * BIAS[0, :, :1, :D], CALL, "a vector added to the output of each head"),
    "residual": lambda: (attend() + Q, CALL, "query added to the output"),
    "zero keys": lambda: (weights(0.25 * Q @ K.mT, beside=3.0) @ V, CALL, "3 keys of zeros appended"),
    "sinks": lambda: (weights(0.25 * Q @ K.mT, beside=np.exp(SINKS)[:, None, None]) @ V, CALL, "sinks in the softmax, which nobody asked for"),
    "sinks x": lambda: (weights(0.25 * Q @ K.mT, beside=np.exp(SINKS * 0.5)[:, None, None]) @ V, replace(CALL, sinks=SINKS), "sinks x 0.5"),
    # soft caps and terms
    "cap": lambda: (weights(3 * np.tanh(Q @ K.mT / 3)) @ V, replace(CALL, scale=1.0, softcap=5.0), "soft cap 3 instead of 5"),
    "cap unasked": lambda: (weights(10 * np.tanh(Q @ K.mT / 10)) @ V, replace(CALL, scale=1.0), "soft cap 10, which nobody asked for"),
    "bias x": lambda: (attend(plus=0.25 * BIAS), replace(CALL, bias=BIAS), "bias x 0.25: multiplied by the scale too"),
    "bias turned": lambda: (attend(plus=BIAS.mT), replace(CALL, bias=BIAS), "bias transposed"),
    "bias reversed": lambda: (attend(plus=BIAS[:, ::-1]), replace(CALL, bias=BIAS), "bias with heads in reverse order"),
    "alibi": lambda: (attend(plus=-ALIBI * (ROW - KEY)), CALL, "ALiBi, which nobody asked for: slopes by the rule for 4 heads"),
    "alibi sign": lambda: (attend(plus=ALIBI * (ROW - KEY)), SLOPED, "slopes of ALiBi with the other sign"),
    "alibi order": lambda: (attend(plus=-ALIBI[::-1] * (ROW - KEY)), SLOPED, "slopes of ALiBi in reverse order"),
    "alibi x": lambda: (attend(plus=-3 * ALIBI * (ROW - KEY)), SLOPED, "slopes of ALiBi x 3"),
    "alibi rule": lambda: (attend(plus=-(0.5 ** np.arange(1, 5))[:, None, None] * (ROW - KEY)), SLOPED, "slopes of ALiBi by the first of the rule for 8 heads"),
    "alibi of one side": lambda: (attend(plus=-ALIBI * np.maximum(ROW - KEY, 0), mask=True), replace(SLOPED, is_causal=False), "max(i - j, 0), of earlier keys alone, instead of i - j"),
    "alibi absolute": lambda: (attend(plus=-ALIBI * abs(ROW - KEY), mask=True), replace(SLOPED, is_causal=False), "ALiBi with distance |i - j| instead of i - j"),
    # masks
    "causal +3": lambda: (attend(mask=KEY <= ROW + 3), CALL, "causal mask shifted by +3"),
    "causal -2": lambda: (weights(0.25 * Q @ K.mT, KEY <= ROW - 2, hidden=-1e30) @ V, CALL, "causal mask shifted by -2"),
    "causal unasked": lambda: (attend(), FREE, "causal mask, which nobody asked for"),
    "window": lambda: (attend(mask=CAUSAL & (KEY >= ROW - 7)), replace(CALL, window=(11, None)), "window of 7 keys before a token, instead of 11"),
    "window unasked": lambda: (attend(mask=CAUSAL & (KEY >= ROW - 7)), CALL, "window of 7 keys before a token, which nobody asked for"),
    "window of two": lambda: (attend(mask=(KEY <= ROW + 5) & (KEY >= ROW - 9)), FREE, "window of 9 keys before and 5 after"),
    "blocks": lambda: (attend(mask=CAUSAL & (ROW // 10 == KEY // 10)), CALL, "blocks of 10 keys: a token sees keys of its block alone"),
    "prefix": lambda: (attend(mask=CAUSAL | (KEY < 13)), CALL, "prefix of 13 keys"),
    "first keys": lambda: (attend(mask=CAUSAL & ((KEY >= ROW - 7) | (KEY < 4))), replace(CALL, window=(7, None)), "the first 4 keys seen besides the window"),
    "left padding": lambda: (attend(mask=KEY >= N - LENGTHS), PADDED, "padding hidden on the left instead of the right"),
    "padding ignored": lambda: (attend(mask=(KEY < LENGTHS) | (LENGTHS == 29)), PADDED, "padding ignored in item 1"),
    "padding off": lambda: (attend(mask=KEY < LENGTHS + 2), PADDED, "padding off by 2: 2 keys more seen at the last end"),
    "padding exchanged": lambda: (attend(mask=LENGTHS[::-1] > KEY), PADDED, "padding of another item"),
    "keys missing": lambda: (attend(mask=KEY < N - 5), FREE, "the last 5 keys missing"),
    "diagonal": lambda: (attend(mask=KEY != ROW), FREE, "mask hides the diagonal, which nobody asked for"),
    "mask mirrored": lambda: (attend(mask=PATTERN[..., ::-1]), MASKED, "mask in reverse order along the keys"),
    "mask moved": lambda: (attend(mask=np.roll(PATTERN, 1, 2)), MASKED, "mask moved by +1 along the rows"),
    "mask once": lambda: (attend(mask=PATTERN | (np.arange(B) > 0)[:, None, None, None]), MASKED, "mask applied in the first batch item alone"),
    "mask tiled": lambda: (attend(mask=np.tile(PATTERN[:, 0], (H, 1, 1)).reshape(B, H, N, N)), MASKED, "mask repeated wrongly over the heads"),
    "leak": lambda: (weights(0.25 * Q @ K.mT, hidden=-5.0) @ V, CALL, "hidden scores hold -5, which leaks"),
    "leak added": lambda: (attend(plus=np.where(CAUSAL, 0.0, -2.7), mask=True), CALL, "-2.7, which leaks, added to the scores that causality hides"),
    # rotary
    "base": lambda: (turned(base=5e5), TURNED, "rotary base 500000 instead of 10000"),
    "free base": lambda: (turned(base=77.0), TURNED, "rotary base 77 instead of 10000"),
    "part": lambda: (turned(width=8), TURNED, "rotary width 8 instead of 16"),
    "pairs": lambda: (turned(pairs=3), TURNED, "the first 3 of 8 pairs turned alone"),
    "interpolated": lambda: (turned(PLACES / 4, PLACES / 4), TURNED, "rotary positions divided by 4"),
    "late": lambda: (turned(PLACES + 5), TURNED, "rotary positions of the queries off by +5"),
    "late in an item": lambda: (turned(PLACES + np.array([0, 7])[:, None, None]), TURNED, "off by +0, +7 in the items"),
    "other way": lambda: (turned(sign=-1.0), TURNED, "turns the other way"),
    "twice": lambda: (attend(turn(Q), turn(turn(K))), TURNED, "applied twice to the keys"),
    "scaling": lambda: (turned(base=5e5), replace(CALL, rotary=Rotary(base=5e5, scaling=Llama3(8.0, 1.0, 4.0, 64))), "scaling Llama3 ignored"),
    "scaling unasked": lambda: (attend(*(Rotary(scaling=YaRN(4.0, 2048))(x, PLACES) for x in (Q, K))), TURNED, "scaling YaRN for factor 4"),
    "turned unasked": lambda: (turned(base=1e6), CALL, "rotary embedding applied (half-split pairs, base 1e+06)"),
    # orders
    "heads moved": lambda: (attend()[:, [2, 0, 3, 1]], CALL, "heads of the output in the order 2, 0, 3, 1"),
    "items moved": lambda: (attend()[::-1], CALL, "items of the output in reverse order"),
    "keys of items": lambda: (attend(k=K[::-1]), CALL, "key of other items: in reverse order"),
    "kv heads": lambda: (attend(k=K2[:, [0, 1, 1, 0]], v=V2[:, [0, 1, 1, 0]]), replace(CALL, k=K2, v=V2), "keys and values of other kv heads: 0, 1, 1, 0"),
    "heads of keys": lambda: (attend(k=K[:, ::-1]), CALL, "query heads read keys of other kv heads: in reverse order"),
    "queries of heads": lambda: (attend(q=np.roll(Q, -1, 1)), CALL, "heads of the query"),
    "key split": lambda: (attend(k=K.swapaxes(1, 2).reshape(K.shape)), CALL, "heads of the key alone split wrongly"),
    "kv packed": lambda: (attend(k=np.concatenate((K, V), 1)[:, ::2], v=np.concatenate((K, V), 1)[:, 1::2]), CALL, "fused projection of key and value split wrongly: packed as (2, Hkv, D)"),
    "in turn": lambda: (attend(K, V, Q), CALL, "query, key and value taken in the order key, value, query"),
    "rows late": lambda: (np.roll(attend(), 1, 2), CALL, "rows of the output moved by 1"),
    "rows reversed": lambda: (attend()[:, :, ::-1], CALL, "rows of the output in reverse order"),
    # keys and values
    "values rolled": lambda: (attend(v=np.roll(V, 3, 2)), CALL, "values rolled by +3"),
    "keys rolled": lambda: (attend(k=np.roll(K, -1, 2)), CALL, "keys rolled by -1"),
    "zeros at the end": lambda: (attend(k=changed(K, S[:, :, -3:], 0), v=changed(V, S[:, :, -3:], 0), mask=True), FREE, "key and value of the last 3 positions replaced by zeros"),
    "stale": lambda: (attend(k=changed(K, S[:, :, -1], K[:, :, -2]), v=changed(V, S[:, :, -1], V[:, :, -2]), mask=True), FREE, "replaced by those of the position before (stale)"),
    "of another item": lambda: (attend(k=changed(K, S[0, :, 17], K[1, :, 17]), v=changed(V, S[0, :, 17], V[1, :, 17])), CALL, "key and value 17 in item 0 replaced by those of item 1"),
    "value of a head": lambda: (attend(v=changed(V, S[0, 3, 17], V[1, 3, 17])), CALL, "value 17 in kv head 3 of item 0 replaced by those of item 1"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found_first(name: str, dtype: str) -> None:
    out, call, sentence = PLANTED[name]()
    found = first(out, call, dtype)
    assert found is not None
    assert sentence in found.sentence


# false accusations

DEFECTS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "weights": lambda r: (weights(0.25 * Q @ K.mT) * (1 + 0.2 * r.normal(size=(B, H, N, N)))) @ V,
    "scores": lambda r: attend(plus=0.3 * r.normal(size=(B, H, N, N))),
    "smooth": lambda r: attend(plus=np.sin(r.uniform(0.1, 1) * ROW + r.uniform(0.1, 1) * KEY)),
    "small": lambda r: attend(plus=0.02 * r.normal(size=(B, H, N, N))),
    "mask": lambda r: attend(mask=CAUSAL & ((r.random(size=(N, N)) < 0.8) | (ROW == KEY))),
    "values": lambda r: attend(v=V + 0.2 * r.normal(size=V.shape)),
    "output": lambda r: attend() * (1 + 0.1 * r.normal(size=(B, H, N, D))),
    "mixed": lambda r: attend() @ (np.eye(D) + 0.1 * r.normal(size=(D, D))),
    "garbage": lambda r: r.normal(size=(B, H, N, D)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DEFECTS)
def test_nothing_is_said_of_what_no_number_explains(name: str, dtype: str) -> None:
    out = DEFECTS[name](np.random.default_rng(len(name)))
    rows = np.arange(0, N, 5)
    assert list(fits(TURNED if name == "smooth" else CALL, observed(out, dtype, rows))) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_numbers_are_no_evidence(dtype: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(2):
        q, k, v = round_to(rng.normal(size=(3, 2, 1, 2, 2)), "bfloat16")
        out = rng.dirichlet(np.ones(2), size=(2, 1, 2)) @ v
        assert list(fits(Call(q, k, v, scale=0.7), observed(out, dtype))) == []


def test_right_outputs_have_no_fits() -> None:
    assert list(fits(CALL, observed(attend(), "float32"))) == []


# what is said of a part, and beside other settings


def test_rows_and_elements_that_do_not_count_decide_nothing() -> None:
    out = attend(scale=0.25 * 1.37)
    out[:, :, 3:9] = np.nan
    trusted = np.ones((1, 1, N, 1), bool)
    trusted[:, :, 3:9] = False
    found = first(out, CALL, "float32", trusted=trusted)
    assert found is not None
    assert found.sentence.startswith("scale x 1.37")
    assert first(out, CALL, "float32") is None


def test_a_part_of_the_rows_tells_the_number() -> None:
    rows = np.array([4, 11, 30, 47])
    found = first(attend(mask=CAUSAL & (KEY >= ROW - 7)), CALL, "float32", rows=rows)
    assert found is not None
    assert found.call.window == (7, None)


def test_beside_another_cause() -> None:
    settings = replace(CONTRACT, softmax="base 2")
    out = weights(math.log(2) * 0.25 * 1.37 * (Q @ K.mT)) @ V
    found = next(fits(CALL, observed(out, "float32"), settings))
    assert found.settings == settings
    assert found.sentence.startswith("scale x 1.37")


def test_a_fit_answers_on_rows_that_were_not_seen() -> None:
    from polyattn.conventions.answers import answer

    out = turned(PLACES + 5)
    found = first(out, TURNED, "float32", rows=np.arange(0, N, 6))
    assert found is not None
    whole = answer(found.call, found.settings)
    judged = Judged(whole.out, whole.condition)
    assert (np.abs(out - whole.out) <= 4 * unit_of(judged, "float32")).all()


def test_rows_that_stay_unexplained_are_named() -> None:
    out = attend()
    moved = np.roll(out, 1, 2)
    moved[:, :, 0] = 0.0
    found = first(moved, CALL, "float32")
    assert found is not None
    assert found.sentence.endswith("; all but row 0")
    assert found.call.order is not None
    assert found.call.order[1:].tolist() == list(range(N - 1))
