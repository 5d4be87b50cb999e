"""Numbers that no int32 or no float holds, and sizes that no memory does: right, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, Blockwise, attention, attention_vjp, masks, mods
from polyattn.dropout import fold_in
from polyattn.parity import ACCEPTANCE, Spec, eta
from polyattn.testing import Bench
from polyattn.truth import truth

L = 4
Q, K, V = np.random.default_rng(0).normal(size=(3, 2, 2, L, 3)).astype(np.float32)
WAYS = ["reference", Blockwise(2, 3)]
EDGE = 2**30 - 1  # the farthest position


def far(who: str, least: int, most: int, name: str) -> str:
    return (
        f"{who}: expected positions between -2**30 and 2**30, got {least} to {most} by {name}; "
        "count from a place that is nearer"
    )


@pytest.mark.rule("rule-18")
@pytest.mark.parametrize(
    ("options", "least", "most", "name"),
    [
        ({"query_offset": 2**31}, 2**31, 2**31 + 3, "query_offset"),
        ({"query_offset": -(2**31)}, -(2**31), 3 - 2**31, "query_offset"),
        ({"query_offset": -(2**30)}, -(2**30), 3 - 2**30, "query_offset"),
        ({"query_offset": EDGE - 2}, EDGE - 2, EDGE + 1, "query_offset"),  # the last row
        ({"query_offset": 0, "key_offset": 2**40}, 2**40, 2**40 + 3, "key_offset"),
        ({"query_offset": "end", "key_offset": EDGE}, EDGE, EDGE + 3, "query_offset"),
        ({"query_offset": np.array([0, 2**31 - 1], np.int32)}, 0, 2**31 + 2, "query_offset"),
        ({"query_offset": np.array(2**31 - 1, np.int32)}, 2**31 - 1, 2**31 + 2, "query_offset"),
        ({"query_offset": np.array(2**32 - 1, np.uint32)}, 2**32 - 1, 2**32 + 2, "query_offset"),
        ({"key_offset": np.array([-(2**31), 0], np.int32)}, -(2**31), 3, "key_offset"),
        ({"query_positions": np.array([0, 1, 2, 2**30], np.int32)}, 0, 2**30, "query_positions"),
        ({"query_offset": 0, "key_positions": np.array([[0, 1, -(2**31), 5]] * 2, np.int32)}, -(2**31), 5, "key_positions"),
    ],
)  # fmt: skip
def test_positions_too_far_away_are_refused(
    eager: Bench, options: dict[str, Any], least: int, most: int, name: str
) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    given = {key: eager.array(x) if isinstance(x, np.ndarray) else x for key, x in options.items()}
    for way in WAYS:
        with pytest.raises(ValueError) as caught:
            attention(q, k, v, is_causal=True, implementation=way, **given)
        assert str(caught.value) == far("polyattn.attention", least, most, name)


@pytest.mark.parametrize("offset", [2**32, 2**40, -(2**40), np.uint64(2**63)])
def test_positions_of_64_bits_are_read_before_they_are_cut(offset: int) -> None:
    for wide in (np.array(offset), np.array([offset, offset])):
        for tensor in (lambda x: x, torch.tensor):
            q, k, v, where = (tensor(x) for x in (Q, K, V, wide))
            with pytest.raises(ValueError) as caught:
                attention(q, k, v, is_causal=True, query_offset=where)
            assert str(caught.value) == far(
                "polyattn.attention", int(offset), int(offset) + 3, "query_offset"
            )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_farthest_positions_are_right(eager: Bench, way: Any) -> None:
    """Their distances are the largest that an int32 holds."""
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    far_apart = {"query_offset": EDGE - 3, "key_offset": 0}
    options = {"query_positions": eager.array(np.full(L, EDGE)), "key_positions": eager.array(np.array([0, EDGE, 5, EDGE - 1]))}  # fmt: skip
    judged = {
        True: truth(Spec(Q, K, V))["out"],
        False: truth(Spec(Q, K, V, allowed=np.array([False, True, False, True])[None, None, None]))["out"],
    }
    for mask, all_seen, where in (
        (masks.causal(), True, far_apart),
        (masks.dilated(1), True, far_apart),
        (masks.window(2**30, 0), True, far_apart),
        (masks.window(1, 0), False, options),
        (masks.chunked(2), False, options),
    ):
        out = attention(q, k, v, mask=mask, implementation=way, **where)
        assert eta(eager.numpy(out), judged[all_seen], "float32") <= ACCEPTANCE, mask


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_positions_that_nobody_can_read_stop_at_the_bound(dtype: str) -> None:
    with jax.enable_x64(dtype == "int64"):
        offsets = [-(2**31), 2**31 - 1] if dtype == "int32" else [-(2**40), 2**40]
        run = jax.jit(lambda q, k, v, at: attention(q, k, v, is_causal=True, query_offset=at))
        out = np.asarray(run(*(jnp.asarray(x) for x in (Q, K, V)), jnp.asarray(offsets, dtype)))
    assert not out[0].any()
    assert eta(out[1:], truth(Spec(Q[1:], K[1:], V[1:]))["out"], "float32") <= ACCEPTANCE
    many = torch.tensor(offsets, dtype=getattr(torch, dtype))
    run = torch.compile(
        lambda q, k, v, at: attention(q, k, v, is_causal=True, query_offset=at),
        backend="aot_eager",
        fullgraph=True,
    )
    compiled = run(*(torch.tensor(x) for x in (Q, K, V)), many).numpy()
    assert not compiled[0].any()
    assert eta(compiled[1:], truth(Spec(Q[1:], K[1:], V[1:]))["out"], "float32") <= ACCEPTANCE


HUGE = 2**40
WHOLE = np.ones((1, 1, L, L), bool)
#: masks with a number that no int32 holds -> what may be seen
MASKS: dict[str, tuple[Any, np.ndarray]] = {
    "window": (masks.window(HUGE, HUGE), WHOLE),
    "window, one side": (masks.window(1, HUGE), np.arange(L) >= np.arange(L)[:, None] - 1),
    "window, the other": (masks.window(HUGE, 1), np.arange(L) <= np.arange(L)[:, None] + 1),
    "sliding window": (masks.sliding_window(HUGE), np.tri(L, dtype=bool)),
    "chunked": (masks.chunked(HUGE), WHOLE),
    "dilated": (masks.dilated(HUGE), np.eye(L, dtype=bool)),
    "prefix": (masks.prefix(HUGE), WHOLE),
    "prefix for each": (masks.prefix([HUGE, 0]), np.array([True, False])[:, None, None, None] & WHOLE),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_may_have_a_number_beyond_all_positions(eager: Bench, name: str) -> None:
    mask, allowed = MASKS[name]
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(allowed, (2, 1, L, L))))["out"]
    offset = eager.array(np.zeros(2, np.int32))  # an array: nobody concludes that all is seen
    for way in WAYS:
        out = attention(q, k, v, mask=mask, query_offset=offset, implementation=way)
        assert eta(eager.numpy(out), judged, "float32") <= ACCEPTANCE, way


def test_lengths_of_64_bits_are_compared_before_they_are_cut() -> None:
    lengths = np.array([HUGE, 0])
    judged = truth(Spec(Q, K, V, allowed=np.broadcast_to(MASKS["prefix for each"][1], (2, 1, L, L))))["out"]
    for tensor in (lambda x: x, torch.tensor):
        out = attention(*(tensor(x) for x in (Q, K, V)), mask=masks.prefix(tensor(lengths)), query_offset=0)
        assert eta(np.asarray(out), judged, "float32") <= ACCEPTANCE


def test_the_picture_of_a_mask_takes_no_position_that_attention_refuses() -> None:
    for options in ({"query_offset": 2**31}, {"key_offset": 2**31}):
        with pytest.raises(ValueError) as caught:
            masks.causal().dense(3, **options)
        assert str(caught.value) == far("polyattn.masks", 2**31, 2**31 + 2, *options)
    assert masks.causal().dense(2, query_offset=EDGE - 1).all()


@pytest.mark.parametrize("distance", [2**31, 2**40])
def test_buckets_reach_no_farther_than_positions_do(distance: Any) -> None:
    with pytest.raises(ValueError) as caught:
        mods.relative_position_bias(np.zeros((8, 1)), max_distance=distance)
    assert str(caught.value) == (
        f"polyattn.mods.relative_position_bias: expected max_distance <= 2147483647, got {distance!r}; pass a smaller number"
    )


# numbers


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (10**400, "an integer of 1329 bits"),
        (-(10**400), "an integer of 1329 bits"),
        (1e39, "1e+39"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
    ids=["integer", "negative", "float", "infinity", "nan"],
)
def test_a_scale_is_a_number_that_the_dtype_has(eager: Bench, number: float, said: str) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    with pytest.raises(ValueError) as caught:
        attention(q, k, v, scale=number)
    name = str(eager.xp.float32 if hasattr(eager, "xp") else q.dtype)
    assert str(caught.value) == (
        f"polyattn.attention: expected scale to be a number that {name} has, got {said}; None is 1 / sqrt(D)"
    )


@pytest.mark.rule("rule-24")
def test_a_sink_beyond_all_numbers_is_infinite(eager: Bench) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    for number in (10**400, 1e39, float("inf")):
        assert not eager.numpy(attention(q, k, v, sinks=number)).any()
        assert (
            eager.numpy(attention(q, k, v, sinks=-number)) == eager.numpy(attention(q, k, v, sinks=-1e30))
        ).all()
    with pytest.raises(ValueError, match=r"expected sinks to be a number that .*float32 has, got nan"):
        attention(q, k, v, sinks=float("nan"))


@pytest.mark.parametrize(
    "cap",
    [2.0**60, 1e300, 10**400, 2.0**-60, 1e-300, float("inf"), float("nan")],
    ids=lambda n: f"{n:.3g}" if isinstance(n, float) else "integer",
)
def test_a_soft_cap_leaves_scores_numbers(cap: float) -> None:
    with pytest.raises(ValueError) as caught:
        mods.softcap(cap)
    said = "a larger integer" if cap == 10**400 else repr(cap)
    assert str(caught.value) == (
        f"polyattn.mods.softcap: expected a cap between 0 and 2**60, got {said}; leave the mod out for no cap"
    )


@pytest.mark.parametrize("cap", [2.0**59, 2.0**-59])
def test_the_largest_and_the_smallest_soft_cap_are_right(eager: Bench, cap: float) -> None:
    q, k, v = (eager.array(x, "float32") for x in (Q, K, V))
    for way in WAYS:
        out = attention(q, k, v, score_mod=mods.softcap(cap), implementation=way)
        assert eta(eager.numpy(out), truth(Spec(Q, K, V, softcap=cap))["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-11")
@pytest.mark.parametrize("seed", [5, 2**31 + 3, 2**32 + 5, 2**63 - 1, 2**64 - 1])
def test_a_seed_in_an_array_is_that_number(seed: int) -> None:
    by_number = attention(Q, K, V, dropout_rate=0.5, dropout_seed=seed)
    for dtype in ("int64", "uint64", "uint32"):
        if seed > np.iinfo(dtype).max:
            continue
        for tensor in (lambda x: x, torch.tensor):
            array = tensor(np.array(seed, dtype))
            out = attention(*(tensor(x) for x in (Q, K, V)), dropout_rate=0.5, dropout_seed=array)
            assert ((np.asarray(out) == 0) == (by_number == 0)).all()
            assert int(fold_in(array, 3)) == fold_in(seed, 3)


# sizes


@pytest.mark.rule("rule-14")
@pytest.mark.parametrize(
    "shape", [(0, 2, 2**31, 4), (2**40, 0, 4, 4), (2**16, 0, 2**16, 1), (0, 2**31, 1, 1)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "query_offset": 7},
        {"dropout_rate": 0.5, "dropout_seed": 1},
        {"mask": masks.key_lengths(1) & masks.dilated(2), "sinks": 1.0},
    ],
    ids=["plain", "causal", "dropout", "mask"],
)
def test_what_has_no_entry_takes_no_time(eager: Bench, shape: Any, options: Any) -> None:
    x = eager.array(np.empty(shape, np.float32), "float32")
    for way in ("auto", "reference", "blockwise"):
        out, aux = attention(x, x, x, implementation=way, return_aux=AuxRequest(lse=True), **options)
        assert tuple(out.shape) == shape
        assert tuple(aux.lse.shape) == shape[:3]
    if eager.name != "jax" or shape[0] != 2**16:  # JAX takes seconds to make zeros of that shape
        out, pullback = attention_vjp(x, x, x, **options)
        assert all(tuple(gradient.shape) == shape for gradient in pullback(out).values())


def test_values_without_width_need_no_weights() -> None:
    """2^40 scores, of which no entry of the output is made."""
    x = np.broadcast_to(np.float32(1), (1, 1, 2**20, 4))
    empty = np.empty((1, 1, 2**20, 0), np.float32)
    for way in ("auto", "reference", "blockwise"):
        assert attention(x, x, empty, implementation=way).shape == (1, 1, 2**20, 0)
    tensor, none = torch.ones(1, 1, 1, 4, requires_grad=True), torch.empty(1, 1, 2**20, 0)
    attention(tensor.expand(1, 1, 2**20, 4), tensor.expand(1, 1, 2**20, 4), none).sum().backward()
    assert not tensor.grad.any()


def test_a_problem_that_no_index_counts_is_refused() -> None:
    x = np.broadcast_to(np.float32(1), (1, 1, 2**31, 1))
    one = x[:, :, :1]
    for q, k, shape in ((one, x, (1, 1, 1, 2**31)), (x, one, (1, 1, 2**31, 1))):
        with pytest.raises(ValueError) as caught:
            attention(q, k, k)
        assert str(caught.value) == (
            "polyattn.attention: expected fewer than 2**30 items, heads, queries and keys, got scores (B, Hq, L, S) = "
            f"{shape}; compute a part at a time"
        )


HALVES = ((slice(None, 2**15), ...), (slice(2**15, None), ...))


@pytest.mark.parametrize(
    "eager", ["numpy", "jax-eager", "torch"], indirect=True
)  # Python's loops take a minute
def test_more_items_than_a_grid_of_kernels_has_are_two_halves(eager: Bench) -> None:
    """2^16 items and one: PyTorch's kernels on CUDA refused them (pytorch#142228)."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(3, 2**16 + 1, 1, 2, 2)).astype(np.float32).astype(float)
    judged = truth(Spec(*drawn, allowed=np.tri(2, dtype=bool)[None, None]))["out"]
    q, k, v = (eager.array(x, "float32") for x in drawn)
    whole = eager.numpy(attention(q, k, v, is_causal=True))
    halves = [eager.numpy(attention(*(x[part] for x in (q, k, v)), is_causal=True)) for part in HALVES]
    assert eta(whole, judged, "float32") <= ACCEPTANCE
    assert eta(np.concatenate(halves), judged, "float32") <= ACCEPTANCE


def test_more_keys_than_sixteen_bits_count_are_hidden_alike(eager: Bench) -> None:
    """A mask array over 2^16 + 1 keys hides what lengths hide (pytorch#162588)."""
    rng = np.random.default_rng(0)
    keys, length = 2**16 + 1, 2**16 - 3
    drawn = [rng.normal(size=(1, 1, n, 4)).astype(np.float32).astype(float) for n in (4, keys, keys)]
    judged = truth(Spec(drawn[0], *(x[:, :, :length] for x in drawn[1:])))["out"]
    q, k, v = (eager.array(x, "float32") for x in drawn)
    said = eager.array(np.broadcast_to(np.arange(keys) < length, (1, 1, 4, keys)))
    for mask in (said, masks.key_lengths(length)):
        assert eta(eager.numpy(attention(q, k, v, mask=mask)), judged, "float32") <= ACCEPTANCE
