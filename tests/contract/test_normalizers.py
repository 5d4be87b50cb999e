"""How scores become weights: every normaliser on every library, by the definition and by the engine."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, Blockwise, attention, attention_vjp, trace
from polyattn.normalizers import BY_NAME, Sigmoid, Softmax, TopK
from polyattn.parity import Spec, eta, round_to
from polyattn.parity.cases import cases
from polyattn.testing import Bench, Disagreement, check_backend, load_bench
from polyattn.truth import truth

pytestmark = pytest.mark.rule("rule-22")

CASES = [case for case in cases() if "rule-22" in case.rules]
ALL = {**BY_NAME, "a bias": Sigmoid(-2.5), "top_k": TopK(3)}
OTHERS = {name: made for name, made in ALL.items() if name != "softmax"}
KINDS = [name for name in OTHERS if name != "a bias"]
FOLDED = ("softmax", "sigmoid", "softpick", "a bias")


def draw(*shape: int, seed: int = 0, amplitude: float = 1.0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape) * amplitude, "float16")


def qkv(rows: int = 7, keys: int = 7) -> dict[str, np.ndarray]:
    return {
        "query": draw(2, 4, rows, 8, seed=1, amplitude=2),
        "key": draw(2, 2, keys, 8, seed=2),
        "value": draw(2, 2, keys, 5, seed=3),
    }


def run(bench: Bench, arrays: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """out, and where the library has derivatives the gradient of every array."""

    def f(given: Any) -> Any:
        out = attention(**given, **options)
        return out, out

    shape = (*arrays["query"].shape[:3], arrays["value"].shape[-1])
    cotangent = bench.array(np.random.default_rng(5).choice([-1.0, 0.5, 1.0], shape), "float32")
    out, _, grads = bench.run(f, {n: bench.array(x, "float32") for n, x in arrays.items()}, cotangent)
    return {n: bench.numpy(x) for n, x in {"out": out, **(grads or {})}.items()}


# What the formulas say of one row, in NumPy and slowly.


def entmax(s: np.ndarray, alpha: float) -> np.ndarray:
    """By bisection: the weights of a row sum to less the higher the threshold is."""
    x = (alpha - 1) * (s - s.max())
    low, high = -1.0, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        total = (np.maximum(x - middle, 0.0) ** (1 / (alpha - 1))).sum()
        low, high = (middle, high) if total >= 1 else (low, middle)
    return np.maximum(x - low, 0.0) ** (1 / (alpha - 1))


def best(s: np.ndarray, k: int) -> np.ndarray:
    chosen = np.argsort(s, kind="stable")[::-1][:k]
    w = np.zeros_like(s)
    w[chosen] = np.exp(s[chosen] - s.max())
    return w / w.sum()


WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda s: np.exp(s) / np.exp(s).sum(),
    "sigmoid": lambda s: 1 / (1 + np.exp(-s)),
    "a bias": lambda s: 1 / (1 + np.exp(2.5 - s)),
    "softpick": lambda s: np.maximum(np.exp(s) - 1, 0) / np.abs(np.where(s == -np.inf, 0, np.exp(s) - 1)).sum(),
    "sparsemax": lambda s: entmax(s, 2.0),
    "entmax15": lambda s: entmax(s, 1.5),
    "top_k": lambda s: best(s, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_weights_are_those_of_the_formula(eager: Bench, name: str) -> None:
    scores = draw(40, 12, amplitude=2)
    scores[5:, 7:] = -np.inf
    true = np.stack([WEIGHTS[name](row) for row in scores])
    found = eager.numpy(ALL[name].weights(eager.array(scores, "float32")))
    # Weights of at most 1, made of exp, a sum of 12 and a quotient, of scores below 8 that are exact.
    assert np.abs(found - true).max() <= 32 * 2.0**-24
    assert (found[5:, 7:] == 0).all()


def test_every_normaliser_has_a_formula_here() -> None:
    assert WEIGHTS.keys() == ALL.keys()


def test_every_case_of_a_normaliser_agrees(eager: Bench) -> None:
    outcomes = check_backend(eager, dtypes=["float32"], only=CASES)
    assert len(outcomes) == len(CASES) >= 6


def test_scores_that_are_a_little_off_are_caught_under_every_normaliser() -> None:
    def off(query: Any, key: Any, value: Any, *, normalizer: Any, **options: Any) -> Any:
        kind = type(BY_NAME.get(normalizer, normalizer))

        class Off(kind):  # type: ignore[misc,valid-type]
            def weights(self, scores: Any, sinks: Any = None) -> Any:
                return super().weights(scores * (1 + 2.0**-10), sinks)

        made = Off(*vars(BY_NAME.get(normalizer, normalizer)).values())
        return attention(query, key, value, normalizer=made, implementation="reference", **options)

    with pytest.raises(Disagreement) as caught:
        check_backend(load_bench("numpy"), dtypes=["float32"], only=CASES, attention=off)
    assert [outcome.case for outcome in caught.value.outcomes] == [case.name for case in CASES]
    assert all(outcome.error is None and outcome.eta > 14 for outcome in caught.value.outcomes)


def test_the_engine_folds_what_merges(eager: Bench) -> None:
    folded = [case for case in CASES if case.name.startswith(("sigmoid", "softpick"))]
    check_backend(
        eager,
        dtypes=["float32"],
        only=folded,
        attention=lambda *a, **o: attention(*a, **o, implementation=Blockwise(4, 2)),
    )
    assert len(folded) == 3


@pytest.mark.parametrize("name", KINDS)
def test_a_row_that_sees_nothing_gives_nothing_and_hidden_keys_reach_nobody(eager: Bench, name: str) -> None:
    """Whatever they hold: row 0 sees nothing, keys 5 and 6 nobody sees."""
    allowed = np.ones((7, 7), bool)
    allowed[0], allowed[:, 5:] = False, False
    clean = qkv()
    spoilt = {n: x.copy() for n, x in clean.items()}
    spoilt["query"][:, :, 0], spoilt["key"][:, :, 5:], spoilt["value"][:, :, 5:] = np.nan, np.inf, np.nan
    ways = ["reference"] + [Blockwise(4, 4)] * (name in FOLDED)
    for implementation in ways:
        options = {
            "mask": eager.array(allowed),
            "normalizer": ALL[name],
            "implementation": implementation,
        }
        expected, got = run(eager, clean, **options), run(eager, spoilt, **options)
        for what, x in got.items():
            assert np.array_equal(x, expected[what]), what
        assert not got["out"][:, :, 0].any()
        if "key" in got:
            assert not got["query"][:, :, 0].any()
            assert not got["key"][:, :, 5:].any()
            assert not got["value"][:, :, 5:].any()


@pytest.mark.parametrize("name", KINDS)
def test_a_value_that_others_see_does_not_reach_a_row_that_sees_nothing(eager: Bench, name: str) -> None:
    arrays = qkv()
    arrays["value"][:, :, 3] = np.nan
    allowed = np.ones((7, 7), bool)
    allowed[2] = False
    for implementation in ["reference"] + [Blockwise(4, 4)] * (name in FOLDED):
        options = {"mask": eager.array(allowed), "normalizer": ALL[name]}
        out = run(eager, arrays, **options, implementation=implementation)["out"]
        assert not out[:, :, 2].any()
        assert np.isnan(out[:, :, 1]).any()


@pytest.mark.parametrize("name", KINDS)
def test_scores_however_far_have_finite_weights_and_gradients(eager: Bench, name: str) -> None:
    arrays = qkv()
    arrays["query"] *= 2.0**10
    arrays["query"][:, :, 3] = 0.0  # and a row of scores that are all 0
    for implementation in ["reference"] + [Blockwise(4, 4)] * (name in FOLDED):
        found = run(eager, arrays, normalizer=ALL[name], implementation=implementation)
        assert all(np.isfinite(x).all() for x in found.values())


def test_softpick_is_exact_where_exp_is_close_to_one(eager: Bench) -> None:
    arrays = qkv()
    arrays["query"] *= 2.0**-10
    spec = Spec(arrays["query"], arrays["key"], arrays["value"], normalizer="softpick")
    for implementation in ("reference", Blockwise(4, 4)):
        out = run(eager, arrays, normalizer="softpick", implementation=implementation)["out"]
        assert eta(out, truth(spec)["out"], "float32") <= 4


def test_a_sigmoid_of_zero_has_slope_one_quarter() -> None:
    zero = np.zeros((1, 1))
    one = np.ones((1, 1))
    slopes = [
        jax.grad(lambda q: attention(q, jnp.asarray(one), jnp.asarray(one), normalizer="sigmoid").sum())(
            jnp.asarray(zero)
        ),
        attention_vjp(zero, one, one, normalizer="sigmoid")[1](one)["query"],
    ]
    q = torch.tensor(zero, requires_grad=True)
    attention(q, torch.tensor(one), torch.tensor(one), normalizer="sigmoid").sum().backward()
    assert [float(x.item()) for x in (*slopes, q.grad)] == [0.25] * 3


def test_scores_as_large_as_the_kth_are_all_kept_whatever_their_order(eager: Bench) -> None:
    scores = np.array([[1.0, 0.0, 1.0, 0.0, -1.0, 0.0]])
    order = np.array([3, 1, 5, 0, 4, 2])
    w, permuted = (
        eager.numpy(TopK(3).weights(eager.array(x, "float32"))) for x in (scores, scores[:, order])
    )
    assert ((w > 0) == [[True, True, True, True, False, True]]).all()
    assert ((permuted > 0) == (w > 0)[:, order]).all()


def test_the_best_of_few_keys_are_all_of_them(eager: Bench) -> None:
    arrays = {n: eager.array(x, "float32") for n, x in qkv().items()}
    for k in (7, 10**12):
        out = attention(**arrays, is_causal=True, normalizer=TopK(k), implementation="reference")
        full, aux = attention(
            **arrays, is_causal=True, implementation="reference", return_aux=AuxRequest(weights=True)
        )
        w = attention(**arrays, is_causal=True, normalizer=TopK(k), return_aux=AuxRequest(weights=True))[
            1
        ].weights
        assert np.abs(eager.numpy(w) - eager.numpy(aux.weights)).max() <= 4 * 2.0**-24
        assert np.abs(eager.numpy(out) - eager.numpy(full)).max() <= 64 * 2.0**-24


def test_weights_scores_and_their_largest_are_given(eager: Bench) -> None:
    arrays = {n: eager.array(x, "float32") for n, x in qkv().items()}
    asked = AuxRequest(weights=True, scores=True, max_scores=True)
    for made in OTHERS.values():
        out, aux = attention(**arrays, is_causal=True, normalizer=made, return_aux=asked)
        w, s = eager.numpy(aux.weights), eager.numpy(aux.scores)
        assert aux.implementation == "reference"
        assert (w[~np.broadcast_to(np.tri(7, dtype=bool), w.shape)] == 0).all()
        assert (eager.numpy(aux.max_scores) == s.max(-1)).all()
        assert np.abs(w @ np.repeat(qkv()["value"], 2, axis=1) - eager.numpy(out)).max() <= 64 * 2.0**-24


def test_no_keys_give_zeros(eager: Bench) -> None:
    arrays = {n: eager.array(x, "float32") for n, x in qkv(keys=0).items()}
    for made in ALL.values():
        assert not eager.numpy(attention(**arrays, normalizer=made)).any()
        assert tuple(made.weights(eager.array(np.zeros((2, 0)), "float32")).shape) == (2, 0)


def test_a_trace_says_how_its_weights_are_made() -> None:
    x = np.eye(3)
    steps = trace(x, x, x, is_causal=True, normalizer="softpick")
    assert [stage.name for stage in steps] == ["scores", "masked", "row maximum", "weights", "output"]
    assert steps["weights"].equation == "w = relu(exp(s) - 1) / sum |exp(s) - 1|"
    assert (steps.out == attention(x, x, x, is_causal=True, normalizer="softpick")).all()


def test_auto_takes_what_computes_the_normaliser() -> None:
    x = np.zeros((1, 1, 600, 4), np.float32)
    ran = {
        name: attention(x, x, x, normalizer=made, return_aux=AuxRequest())[1].implementation
        for name, made in ALL.items()
    }
    assert ran == {name: "blockwise" if name in FOLDED else "reference" for name in ALL}
    tensor = torch.from_numpy(x)
    _, aux = attention(tensor, tensor, tensor, normalizer="sigmoid", return_aux=AuxRequest())
    assert aux.implementation == "blockwise"


@pytest.mark.parametrize("name", ["sigmoid", "softpick"])
def test_the_engine_needs_a_fraction_of_the_scores(name: str) -> None:
    x = draw(1, 1, 4096, 4).astype(np.float32)

    def both() -> None:
        out, pullback = attention_vjp(x, x, x, is_causal=True, normalizer=ALL[name])
        pullback(out)

    attention_vjp(
        x[:, :, :600], x[:, :, :600], x[:, :, :600], normalizer=ALL[name]
    )  # what is kept from call to call
    tracemalloc.start()
    both()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 4096**2 / 4


def test_what_has_no_derivative_of_its_own_says_who_has_one() -> None:
    x = np.eye(3)
    with pytest.raises(NotImplementedError) as caught:
        attention_vjp(x, x, x, normalizer="sparsemax")
    assert str(caught.value) == (
        "polyattn.attention_vjp: expected a problem that the blockwise engine computes, got one with the normaliser "
        "sparsemax; differentiate attention itself, on NumPy with polyattn.gradients.vjp"
    )
    _, pullback = attention_vjp(x, x, x, normalizer="sigmoid")
    with pytest.raises(ValueError) as refused:
        pullback(x, np.zeros(3))
    assert str(refused.value) == (
        "polyattn.attention_vjp: pullback: expected no d_lse beside the normaliser sigmoid, got one; lse is that of the "
        "softmax: leave it out"
    )


def test_a_kernel_asked_for_by_name_refuses_by_name() -> None:
    x = torch.zeros((1, 1, 4, 4))
    with pytest.raises(
        ValueError, match="got one with the normaliser softpick, which none of them takes; use 'auto'"
    ):
        attention(x, x, x, normalizer="softpick", implementation="native")
    with pytest.raises(ValueError, match="with the normaliser entmax15, which it does not take; use 'auto'"):
        attention(x, x, x, normalizer="entmax15", implementation="blockwise")


class Mean(Softmax):
    """A class of one's own goes by no name of the library's, inherited ones among them."""

    def weights(self, scores: Any, sinks: Any = None) -> Any:
        seen = np.isfinite(scores)
        return seen / np.maximum(seen.sum(-1, keepdims=True), 1)


def test_a_normaliser_of_ones_own_belongs_to_the_definition_alone() -> None:
    x = np.arange(8.0).reshape(1, 1, 4, 2)
    out, aux = attention(x, x, x, is_causal=True, normalizer=Mean(), return_aux=AuxRequest(weights=True))
    assert aux.implementation == "reference"
    assert (aux.weights == np.tri(4) / np.arange(1, 5)[:, None]).all()
    assert (out == aux.weights @ x).all()
    with pytest.raises(
        ValueError, match=r"with a normaliser of one's own, which it does not take; use 'auto'"
    ):
        attention(x, x, x, normalizer=Mean(), implementation="blockwise")


def test_a_sink_of_zero_is_softmax_plus_one() -> None:
    arrays = qkv()
    k, v = (np.repeat(arrays[name], 2, axis=1) for name in ("key", "value"))
    e = np.exp(arrays["query"] @ k.swapaxes(-1, -2) / 8**0.5)
    out = attention(**arrays, sinks=0.0)
    assert np.abs(out - e / (1 + e.sum(-1, keepdims=True)) @ v).max() <= 64 * 2.0**-53 * np.abs(v).max()
    one = BY_NAME["softmax"].weights(np.log(e), np.zeros((1, 1, 1)))
    assert np.abs(one - e / (1 + e.sum(-1, keepdims=True))).max() <= 64 * 2.0**-53
