"""Ranks, layouts, strides, dtypes, threads: how the numbers lie in memory is nobody's business."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import AuxRequest, attention, masks
from polyattn.normalizers.softmax import Partial, finish, lift, log_sum, merge
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to
from polyattn.testing import Bench
from polyattn.truth import truth


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float16").astype(np.float32)


def qkv() -> tuple[np.ndarray, ...]:
    return draw(6, 4, 5, 8, seed=1), draw(6, 2, 5, 8, seed=2), draw(6, 2, 5, 3, seed=3)


LOWER = np.tri(5, dtype=bool)[None, None]
CAUSAL = truth(Spec(*(x.astype(float) for x in qkv()), allowed=LOWER))["out"]


@pytest.mark.rule("rule-27")
def test_any_number_of_leading_axes_is_a_batch(eager: Bench) -> None:
    q, k, v = qkv()
    for lead in [(6,), (2, 3), (1, 6, 1), (3, 1, 2)]:
        given = (eager.array(x.reshape(*lead, *x.shape[1:]), "float32") for x in (q, k, v))
        out = eager.numpy(attention(*given, is_causal=True))
        assert out.shape == (*lead, 4, 5, 3)
        assert eta(out.reshape(6, 4, 5, 3), CAUSAL, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-27")
def test_ranks_two_and_three_just_work(eager: Bench) -> None:
    q, k, v = qkv()
    for b, h in [(0, 0), (3, 2)]:
        one = (eager.array(x, "float32") for x in (q[b, h], k[b, h // 2], v[b, h // 2]))
        part = type(CAUSAL)(*(x[b, h] for x in CAUSAL))
        assert eta(eager.numpy(attention(*one, is_causal=True)), part, "float32") <= ACCEPTANCE
    three = (eager.array(x, "float32") for x in (q[2], k[2], v[2]))
    part = type(CAUSAL)(*(x[2] for x in CAUSAL))
    assert eta(eager.numpy(attention(*three, is_causal=True)), part, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-27")
def test_leading_axes_broadcast_against_each_other(eager: Bench) -> None:
    q, k, v = draw(2, 1, 4, 5, 8, seed=1), draw(1, 3, 2, 5, 8, seed=2), draw(1, 1, 2, 5, 3, seed=3)
    out = eager.numpy(attention(*(eager.array(x, "float32") for x in (q, k, v))))
    whole = (np.broadcast_to(x, (2, 3, *x.shape[2:])).reshape(6, *x.shape[2:]) for x in (q, k, v))
    judged = truth(Spec(*(x.astype(float) for x in whole)))["out"]
    assert out.shape == (2, 3, 4, 5, 3)
    assert eta(out.reshape(6, 4, 5, 3), judged, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-27")
def test_a_mask_of_rank_five_follows_the_leading_axes(eager: Bench) -> None:
    q, k, v = (x.reshape(2, 3, *x.shape[1:]) for x in qkv())
    allowed = np.random.default_rng(0).random((2, 1, 4, 5, 5)) < 0.6
    given = (eager.array(x, "float32") for x in (q, k, v))
    out = eager.numpy(attention(*given, mask=eager.array(allowed)))
    whole = np.broadcast_to(allowed, (2, 3, 4, 5, 5)).reshape(6, 4, 5, 5)
    judged = truth(Spec(*(x.astype(float) for x in qkv()), allowed=whole))["out"]
    assert eta(out.reshape(6, 4, 5, 3), judged, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_the_other_layout_is_a_transposition_everywhere(eager: Bench, lead: tuple[int, ...]) -> None:
    arrays = [x[0] if lead == () else x.reshape(*lead, *x.shape[1:]) for x in qkv()]
    bias = eager.array(draw(4, 5, 5), "float32")
    options = {"bias": bias, "is_causal": True, "return_aux": AuxRequest(lse=True, weights=True)}
    straight, a = attention(*(eager.array(x, "float32") for x in arrays), **options)
    turned = (eager.array(x.swapaxes(-2, -3).copy(), "float32") for x in arrays)
    out, b = attention(*turned, **options, layout="BLHD")
    assert np.array_equal(eager.numpy(out).swapaxes(-2, -3), eager.numpy(straight))
    assert np.array_equal(eager.numpy(a.lse), eager.numpy(b.lse))
    assert np.array_equal(eager.numpy(a.weights), eager.numpy(b.weights))


# The same numbers, lying differently.
STRIDES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda x: x[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, 2), 3, 3)[:, :, ::2, ::3],
    "transposed": lambda x: x.mT.copy().mT,
    "Fortran": np.asfortranarray,
    "heads and rows exchanged": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
    "a slice of a whole": lambda x: np.pad(x, 3, constant_values=np.nan)[3:-3, 3:-3, 3:-3, 3:-3],
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
}


@pytest.mark.rule("rule-17")
@pytest.mark.parametrize("how", STRIDES)
def test_numpy_inputs_may_have_any_strides_and_are_only_read(how: str) -> None:
    views = [STRIDES[how](x) for x in qkv()]
    for x in views:
        x.flags.writeable = False
    mask, bias = STRIDES[how](np.ones((1, 1, 5, 5), bool)), STRIDES[how](0 * draw(1, 1, 5, 5))
    out = attention(*views, is_causal=True, mask=mask, bias=bias)
    assert eta(out, CAUSAL, "float32") <= ACCEPTANCE
    assert all(np.array_equal(x, y) for x, y in zip(views, qkv(), strict=True))


@pytest.mark.rule("rule-17")
@pytest.mark.parametrize(
    "how", ["every other", "transposed", "heads and rows exchanged", "a slice of a whole"]
)
def test_torch_inputs_may_have_any_strides_and_are_only_read(how: str) -> None:
    views = [torch.from_numpy(STRIDES[how](x)) for x in qkv()]
    versions = [x._version for x in views]
    assert not all(x.is_contiguous() for x in views)
    out = attention(*views, is_causal=True)
    assert eta(out.numpy(), CAUSAL, "float32") <= ACCEPTANCE
    assert [x._version for x in views] == versions
    assert all(np.array_equal(x.numpy(), y) for x, y in zip(views, qkv(), strict=True))


@pytest.mark.rule("rule-17")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_expanded_inputs_are_read_and_never_written(library: str) -> None:
    q, k, v = (x[:, :1, :1] for x in qkv())
    shapes = [(6, 4, 5, 8), (6, 2, 5, 8), (6, 2, 5, 3)]
    mask, shape = np.array([[[[True]]]]), (6, 4, 5, 5)
    if library == "numpy":
        given = [np.broadcast_to(x, s) for x, s in zip((q, k, v), shapes, strict=True)]
        out = attention(*given, mask=np.broadcast_to(mask, shape), is_causal=True)
    else:
        given = [torch.tensor(x).expand(s) for x, s in zip((q, k, v), shapes, strict=True)]
        out = attention(*given, mask=torch.tensor(mask).expand(shape), is_causal=True).numpy()
    whole = [np.broadcast_to(x, s).astype(float) for x, s in zip((q, k, v), shapes, strict=True)]
    assert eta(out, truth(Spec(*whole, allowed=LOWER))["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-17")
def test_inputs_are_never_written_to(eager: Bench) -> None:
    arrays = [eager.array(x, "float32") for x in qkv()]
    bias, sinks = eager.array(draw(1, 4, 5, 5), "float32"), eager.array(draw(4), "float32")
    mask = eager.array(LOWER)
    before = [eager.numpy(x).copy() for x in (*arrays, bias, sinks, mask)]
    attention(*arrays, bias=bias, sinks=sinks, mask=mask, dropout_rate=0.5, dropout_seed=1)
    for x, y in zip((*arrays, bias, sinks, mask), before, strict=True):
        assert np.array_equal(eager.numpy(x), y)


@pytest.mark.rule("rule-17")
def test_the_result_is_no_view_of_an_input() -> None:
    v = draw(1, 1, 1, 3)
    out = attention(draw(1, 1, 1, 8), draw(1, 1, 1, 8), v)
    assert not np.shares_memory(out, v)


@pytest.mark.rule("rule-16")
def test_sixteen_threads_at_once_give_the_same_bits(eager: Bench) -> None:
    arrays = [eager.array(x, "float32") for x in qkv()]
    kinds: list[dict[str, Any]] = [
        {"is_causal": True},
        {"mask": masks.window(1, 1)},
        {"dropout_rate": 0.5, "dropout_seed": 3},
        {"scale": 0.1},
    ]
    alone = [eager.numpy(attention(*arrays, **kind)) for kind in kinds]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda i: eager.numpy(attention(*arrays, **kinds[i % 4])), range(64)))
    assert all(np.array_equal(out, alone[i % 4]) for i, out in enumerate(together))


@pytest.mark.rule("rule-9")
def test_the_result_has_the_dtype_of_the_query_and_the_rest_the_compute_dtype(bench: Bench) -> None:
    for dtype in bench.dtypes:
        seen: dict[str, Any] = {}

        def f(given: Any, seen: dict[str, Any] = seen) -> Any:
            ask = AuxRequest(lse=True, weights=True, scores=True, max_scores=True)
            out, aux = attention(**given, is_causal=True, return_aux=ask)
            seen.update(weights=aux.weights.dtype, scores=aux.scores.dtype, max_scores=aux.max_scores.dtype)
            return out, aux.lse

        names = ("query", "key", "value")
        arrays = {n: bench.array(x, dtype) for n, x in zip(names, qkv(), strict=True)}
        out, lse, _ = bench.run(f, arrays, None)
        wide = bench.array(np.ones(1), "float64" if dtype == "float64" else "float32").dtype
        assert out.dtype == arrays["query"].dtype
        assert {lse.dtype, *seen.values()} == {wide}


@pytest.mark.rule("rule-10")
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_of_the_weights_sum_to_one_minus_the_mass_of_the_sink(eager: Bench, sinks: bool) -> None:
    q, k, v = qkv()
    sink = draw(4) if sinks else np.full(4, -np.inf, np.float32)
    given = [eager.array(x, "float32") for x in (q, k, v)]
    options = {"sinks": eager.array(sink, "float32")} if sinks else {}
    ask = AuxRequest(weights=True, lse=True)
    _, aux = attention(*given, **options, is_causal=True, return_aux=ask)
    _, plain = attention(*given, is_causal=True, return_aux=ask)
    assert np.array_equal(eager.numpy(aux.lse), eager.numpy(plain.lse))
    ones = Spec(*(x.astype(float) for x in (q, k)), np.ones((6, 2, 5, 1)), allowed=LOWER, sinks=sink)
    assert eager.numpy(aux.weights).shape == (6, 4, 5, 5)
    row_sums = eager.numpy(aux.weights).sum(-1, keepdims=True)
    assert eta(row_sums, truth(ones)["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-24")
def test_a_sink_of_minus_infinity_is_no_sink(eager: Bench) -> None:
    given = [eager.array(x, "float32") for x in qkv()]
    sink = eager.array(np.full(4, -np.inf), "float32")
    out = eager.numpy(attention(*given, sinks=sink, is_causal=True))
    assert eta(out, CAUSAL, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-10", "rule-22")
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_two_halves_of_the_keys_merge_into_the_whole(eager: Bench, cut: int) -> None:
    given = [eager.array(x, "float32") for x in qkv()]
    _, aux = attention(*given, is_causal=True, return_aux=AuxRequest(scores=True, lse=True))
    whole = eager.numpy(aux.scores)
    parts = [
        lift(eager.array(whole[..., s], "float32"), eager.array(qkv()[2][:, :, s], "float32"))
        for s in (slice(0, cut), slice(cut, 5))
    ]
    judged = truth(Spec(*(x.astype(float) for x in qkv()), allowed=LOWER))
    for both in (merge(*parts), merge(*reversed(parts))):
        assert isinstance(both, Partial)
        assert eta(eager.numpy(finish(both)), judged["out"], "float32") <= ACCEPTANCE
        assert eta(eager.numpy(log_sum(both)), judged["lse"], "float32") <= ACCEPTANCE
    assert eta(eager.numpy(aux.lse), judged["lse"], "float32") <= ACCEPTANCE
