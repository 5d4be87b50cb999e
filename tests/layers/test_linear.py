"""Linear attention: four rules of writing, token by token or in chunks, with a state that is a value."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from shared.formulas import weighed
from shared.libraries import jax, jnp, torch
from shared.recurrence import judged
from shared.running import LIBRARIES, Floats, applied

from polyattn.linear import lightning_slopes, linear_attention
from polyattn.parity import ACCEPTANCE
from polyattn.truth.definition import Judged
from polyattn.truth.measure import eta

Problem = dict[str, Floats]

BATCH, HEADS, KV_HEADS, TOKENS, WIDTH, VALUE = 2, 4, 2, 7, 4, 3
RULES = {
    "linear": (),
    "gated": ("decay",),
    "gated per head": ("decay per head",),
    "delta": ("beta",),
    "gated delta": ("decay", "beta"),
    "gated delta, beta for all heads": ("decay per head", "beta for all heads"),
}


def problem(rule: str, tokens: int = TOKENS, seed: int = 0) -> Problem:
    """Random inputs for a rule: unit keys, between 1/4 and all of the state kept, and a state to begin with."""
    rng = np.random.default_rng([seed, tokens])
    key = rng.normal(size=(BATCH, KV_HEADS, tokens, WIDTH))
    made = {
        "query": rng.normal(size=(BATCH, HEADS, tokens, WIDTH)),
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": rng.normal(size=(BATCH, KV_HEADS, tokens, VALUE)),
        "state": rng.normal(size=(BATCH, KV_HEADS, WIDTH, VALUE)),
    }
    for part in RULES[rule]:
        shape = (
            BATCH,
            1 if part.endswith("all heads") else KV_HEADS,
            tokens,
            WIDTH if part == "decay" else 1,
        )
        drawn = rng.uniform(size=shape)
        made[part.split()[0]] = -1.4 * drawn if part.startswith("decay") else drawn
    return {name: x.astype(np.float32).astype(np.float64) for name, x in made.items()}


def run(library: str, p: Problem, dtype: str = "float64", **options: Any) -> tuple[Floats, Floats]:
    def call(p: Any) -> Any:
        return linear_attention(**p, **options)

    out, state = applied(library, call, p, dtype=dtype)
    return out, state


def judge(p: Problem) -> tuple[Judged, Judged]:
    q = p["query"].reshape(BATCH, KV_HEADS, HEADS // KV_HEADS, -1, WIDTH)
    return judged(q, p["key"], p["value"], p.get("decay"), p.get("beta"), p["state"], WIDTH**-0.5)


def largest_eta(found: tuple[Floats, Floats], known: tuple[Judged, Judged], dtype: str) -> float:
    return max(eta(x.reshape(true.value.shape), true, dtype) for x, true in zip(found, known, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_every_rule_is_its_recurrence_whatever_the_chunk(library: str, rule: str, chunk_size: int) -> None:
    p = problem(rule)
    assert largest_eta(run(library, p, "float32", chunk_size=chunk_size), judge(p), "float32") <= ACCEPTANCE


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("rule", RULES)
def test_float64_stays_float64(library: str, rule: str) -> None:
    p = problem(rule, 5)
    known = judge(p)
    for chunk_size in (1, 2, 4, 5):
        assert largest_eta(run(library, p, chunk_size=chunk_size), known, "float64") <= ACCEPTANCE


@pytest.mark.parametrize("rule", RULES)
def test_the_bound_notices_a_chunk_that_forgets_its_decay_or_its_correction(rule: str) -> None:
    p = problem(rule)
    known = judge(p)
    for part in {"decay", "beta"} & set(p):
        without = {name: x for name, x in p.items() if name != part}
        assert largest_eta(run("numpy", without), known, "float32") > 1000 * ACCEPTANCE


def test_many_chunks_are_the_recurrence() -> None:
    for rule in RULES:
        p = problem(rule, 150)
        known = judge(p)
        for dtype in ("float32", "float64"):
            assert largest_eta(run("numpy", p, dtype, chunk_size=64), known, dtype) <= ACCEPTANCE


@pytest.mark.parametrize("rule", RULES)
def test_a_sequence_in_pieces_is_the_whole_sequence(rule: str) -> None:
    p = problem(rule)
    whole, last = run("numpy", p, chunk_size=1)
    state, outs = p["state"], []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        piece = {name: x if name == "state" else x[:, :, start:stop] for name, x in p.items()}
        out, state = run("numpy", piece | {"state": state}, chunk_size=1)
        outs.append(out)
    np.testing.assert_array_equal(np.concatenate(outs, axis=2), whole)
    np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_tokens_give_no_outputs_and_leave_the_state(library: str) -> None:
    p = problem("gated delta")
    empty = {name: x if name == "state" else x[:, :, :0] for name, x in p.items()}
    out, state = run(library, empty, "float32")
    assert out.shape == (BATCH, HEADS, 0, VALUE)
    np.testing.assert_array_equal(state, p["state"])


def test_without_decay_and_beta_it_is_causal_attention_without_softmax() -> None:
    p = problem("linear")
    del p["state"]
    key, value = (np.repeat(p[name], HEADS // KV_HEADS, axis=1) for name in ("key", "value"))
    out, _ = run("numpy", p)
    true = np.tril(p["query"] @ key.mT) @ value
    condition = np.tril(np.abs(p["query"]) @ np.abs(key).mT) @ np.abs(value)
    assert eta(2.0 * out, Judged(true, condition), "float64") <= ACCEPTANCE  # 2 = sqrt(WIDTH)


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_a_fixed_decay_for_each_head_is_attention_that_fades_with_the_distance(chunk_size: int) -> None:
    """Lightning attention, its whole matrix at once."""
    p = problem("linear")
    del p["state"]
    slopes = lightning_slopes(KV_HEADS, layer=1, depth=3)
    decay = np.broadcast_to(-np.array(slopes)[:, None, None], (BATCH, KV_HEADS, TOKENS, 1))
    out, _ = run("numpy", p | {"decay": decay}, scale=1.0, chunk_size=chunk_size)
    for h in range(HEADS):
        q, k, v = p["query"][:, h], *(p[name][:, h // (HEADS // KV_HEADS)] for name in ("key", "value"))
        true, size = (
            weighed(f(q), f(k), f(v), slopes[h // (HEADS // KV_HEADS)]) for f in (np.asarray, np.abs)
        )
        assert eta(out[:, h], Judged(true, size * (TOKENS + WIDTH)), "float64") <= ACCEPTANCE


def test_the_delta_rule_replaces_what_was_written_under_a_key() -> None:
    key = np.eye(2)[None, [0, 1, 0]]  # the first key comes again
    value = np.array([[[1.0], [2.0], [5.0]]])
    out, state = linear_attention(key, key, value, beta=np.ones((1, 3, 1)), scale=1.0)
    np.testing.assert_array_equal(out[0, :, 0], [1.0, 2.0, 5.0])
    np.testing.assert_array_equal(state[0, :, 0], [5.0, 2.0])
    _, added = linear_attention(key, key, value)
    np.testing.assert_array_equal(added[0, :, 0], [6.0, 2.0])


@pytest.mark.parametrize("decay", [-40.0, -1000.0, -np.inf])
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_a_decay_of_any_strength_forgets_that_much(decay: float, chunk_size: int) -> None:
    p = problem("gated delta")
    p["decay"][:, :, 4] = decay
    assert largest_eta(run("numpy", p, chunk_size=chunk_size), judge(p), "float64") <= ACCEPTANCE


def test_after_a_decay_of_minus_infinity_a_sequence_begins_afresh() -> None:
    p = problem("gated delta")
    p["decay"][:, :, 4] = -np.inf  # a text packed behind another one
    alone = {name: x[:, :, 4:] for name, x in p.items() if name != "state"}
    out, state = run("numpy", p, chunk_size=1)
    fresh, last = run("numpy", alone, chunk_size=1)
    np.testing.assert_array_equal(out[:, :, 4:], fresh)
    np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])  # array-api-strict has no half precision
def test_half_precision_is_summed_in_float32(library: str) -> None:
    p = problem("gated delta")
    p = {name: x.astype(np.float16).astype(np.float64) for name, x in p.items()}
    for chunk_size in (1, 64):
        out, state = run(library, p, "float16", chunk_size=chunk_size)
        wide, same = run(library, p, "float32", chunk_size=chunk_size)
        np.testing.assert_array_equal(out, wide.astype(np.float16))
        np.testing.assert_array_equal(state, same)


#: Forward and backward, a token takes sums over both widths and a few more operations, one after another.
ROUNDINGS = 2 * TOKENS * (WIDTH + VALUE + 8)


def torch_gradients(rule: str, chunk_size: int) -> dict[str, Floats]:
    p = {name: torch.tensor(x, requires_grad=True) for name, x in problem(rule).items()}
    out, state = linear_attention(**p, chunk_size=chunk_size)
    found = torch.autograd.grad(out.square().sum() + state.square().sum(), list(p.values()))
    return {name: x.numpy() for name, x in zip(p, found, strict=True)}


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_chunks_are_those_of_the_recurrence(rule: str) -> None:
    by_token, by_chunk = torch_gradients(rule, 1), torch_gradients(rule, 3)
    for name, true in by_token.items():
        assert np.abs(true).max() > 0
        assert np.abs(by_chunk[name] - true).max() <= ROUNDINGS * 2.0**-53 * np.abs(true).max()


def test_jax_compiles_and_differentiates_it() -> None:
    def loss(p: Any) -> Any:
        out, state = linear_attention(**p, chunk_size=3)
        return (out**2).sum() + (state**2).sum()

    p = {name: jnp.asarray(x, jnp.float32) for name, x in problem("gated delta").items()}
    found = jax.jit(jax.grad(loss))(p)
    for name, true in torch_gradients("gated delta", 1).items():
        assert np.abs(np.asarray(found[name]) - true).max() <= ROUNDINGS * 2.0**-24 * np.abs(true).max()


X = np.zeros((1, 4, 5, 2))
KV = np.zeros((1, 2, 5, 2))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "heads": (
        lambda: linear_attention(X, X[:, :3], X[:, :3]),
        ValueError,
        "a number of query heads that is a multiple of the number of key heads, got query (1, 4, 5, 2) and key (1, 3, 5, 2)",
    ),
    "rank": (lambda: linear_attention(X[0, 0], KV, KV), ValueError, "query of rank 3 or more"),
    "key": (lambda: linear_attention(X, KV[..., :1], KV), ValueError, "key of shape (1, 2, 5, 2), got (1, 2, 5, 1)"),
    "value": (lambda: linear_attention(X, KV, KV[:, :, :4]), ValueError, "value of shape (1, 2, 5, 2), got (1, 2, 4, 2)"),
    "decay": (lambda: linear_attention(X, KV, KV, decay=KV[..., 0]), ValueError, "decay of shape (1, 1 or 2, 5, 1 or 2), got (1, 2, 5)"),
    "beta": (lambda: linear_attention(X, KV, KV, beta=KV), ValueError, "beta of shape (1, 1 or 2, 5, 1), got (1, 2, 5, 2)"),
    "state": (lambda: linear_attention(X, KV, KV, state=KV), ValueError, "state of shape (1, 2, 2, 2), got (1, 2, 5, 2)"),
    "chunk_size": (lambda: linear_attention(X, KV, KV, chunk_size=0), ValueError, "chunk_size to be an integer of at least 1, got 0"),
    "scale": (lambda: linear_attention(X, KV, KV, scale=np.ones(4)), TypeError, "scale to be a number or None, got an array of shape (4,) and dtype float64; multiply query by an array of scales"),
    "a word for scale": (lambda: linear_attention(X, KV, KV, scale="1"), TypeError, "scale to be a number or None, got '1'"),
    "a flag for scale": (lambda: linear_attention(X, KV, KV, scale=True), TypeError, "scale to be a number or None, got True"),
    "no number for scale": (lambda: linear_attention(X, KV, KV, scale=np.nan), ValueError, "a finite scale, got nan; None is 1/sqrt(D)"),
    "a scale beyond floats": (lambda: linear_attention(X, KV, KV, scale=10**400), ValueError, "a finite scale, got 1000"),
    "dtypes": (lambda: linear_attention(X, KV.astype(np.float32), KV), TypeError, "query, key and value of one dtype"),
    "integers": (lambda: linear_attention(X.astype(int), KV, KV), TypeError, "query of a real floating dtype, got int64"),
    "libraries": (lambda: linear_attention(X, torch.tensor(KV), KV), TypeError, "key to be an array of the library of query, got one of torch"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_a_sentence(what: str) -> None:
    call, kind, sentence = REFUSED[what]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(f"polyattn.linear.linear_attention: expected {sentence}")


def test_a_scale_may_be_any_real_number() -> None:
    half, _ = linear_attention(X + 1, KV + 1, KV + 1, scale=0.5)
    for scale in (np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        np.testing.assert_array_equal(linear_attention(X + 1, KV + 1, KV + 1, scale=scale)[0], half)
    assert half[0, 0, 0, 0] == 1.0


def test_two_channels_fade_by_themselves() -> None:
    """A decay per channel, at the least width that has two of them."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 9, 2))
    decay = -rng.uniform(size=(1, 9, 2))
    out, _ = linear_attention(q, k, v, decay=decay, chunk_size=4)
    stepwise, _ = linear_attention(q, k, v, decay=decay, chunk_size=1)
    assert np.abs(out - stepwise).max() <= 64 * 2.0**-53 * np.abs(stepwise).max()
