"""FlexAttention: the mods and BlockMasks of its users run here on every library."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polyattn_torch.flex
import pytest
import torch
from interop.test_flex import AT, DISTANCE, HEAD, KEY, THERE, K, Q, V, flex, numbers, seen, to_block_mask
from polyattn_torch.flex import from_flex
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, flex_attention

from polyattn import AuxRequest, Blockwise, attention, masks
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask
from polyattn.parity import ACCEPTANCE, Judged, Spec, eta
from polyattn.testing import Bench, JaxBench, NumpyBench, StrictBench, TorchBench
from polyattn.truth import truth

Floats = np.ndarray[Any, Any]

# Back: 2 items, 4 heads, 16 tokens that are also a 4 x 4 image

X, Y, Z = numbers(2, 4, 16, 8), numbers(2, 4, 16, 8, seed=1), numbers(2, 4, 16, 8, seed=2)
ROW, COLUMN = np.arange(16)[:, None], np.arange(16)
DOCUMENTS = np.repeat([0, 1, 2, 3, 4], [10, 6, 3, 4, 9]).reshape(2, 16)
PREFIXES = np.array([3, 10])
TABLE, RELATIVE = numbers(2, 4, 16, 16, seed=3), numbers(4, 31, seed=4)
HEADS = np.arange(4)[:, None, None]
documents, prefixes, table, relative = map(torch.tensor, (DOCUMENTS, PREFIXES, TABLE, RELATIVE))
small = torch.arange(16, dtype=torch.uint8)
starts, ends = torch.tensor([0, 5, 11]), torch.tensor([3, 9, 16])


def a_causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def a_sliding_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.logical_and(q_idx >= kv_idx, q_idx - kv_idx < 5)


def a_prefix(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(kv_idx < prefixes[b], True, q_idx >= kv_idx)


def one_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return documents[b, q_idx] == documents[b][kv_idx]


def dilated_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    distance = (q_idx - kv_idx).abs()
    return torch.le(distance, 6) & (torch.remainder(distance, 2) == 0)


def neighbourhood(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    row, column = torch.clamp(q_idx // 4, 1, 2), (q_idx % 4).clamp(1, 2)
    return ((row - kv_idx // 4).abs() <= 1) & ((column - kv_idx % 4).abs() <= 1)


def a_disk(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    down = torch.div(q_idx, 4, rounding_mode="floor") - torch.div(kv_idx, 4, rounding_mode="trunc")
    across = torch.fmod(q_idx, 4) - kv_idx % 4
    return torch.sqrt((down**2 + across**2).float()) < 1.5 + h / 2


def spans(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (((starts <= q_idx) & (q_idx < ends)) * ((starts <= kv_idx) & (kv_idx < ends))).any()


def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score - torch.exp2(-((h + 1) * 8.0 / 4)) * (q_idx - kv_idx).abs()


def a_softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.tanh(score / 2) * 2


def a_table(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    score += table[b, h, q_idx, kv_idx]
    return score


def relative_table(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + relative[h][kv_idx - q_idx + 15]


def hidden_by_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx >= kv_idx, score, -float("inf"))


def capped_slopes(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return alibi(a_softcap(score, b, h, q_idx, kv_idx), b, h, q_idx, kv_idx)


DOWN, ACROSS = np.divmod(np.arange(16), 4)  # row and column of a pixel
GAP = np.abs(ROW - COLUMN)
NEAR = np.all([np.abs(np.clip(x, 1, 2)[:, None] - x) <= 1 for x in (DOWN, ACROSS)], axis=0)
RADIUS = np.hypot(DOWN[:, None] - DOWN, ACROSS[:, None] - ACROSS)
SPAN = np.array([0, 0, 0, -1, -2, 1, 1, 1, 1, -3, -4, 2, 2, 2, 2, 2])
ALIBI = -(2.0 ** (-2 * (HEADS + 1))) * GAP

# name -> the mod of a user of FlexAttention, and the same in a Spec
BACK: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "causal": (a_causal, {"allowed": ROW >= COLUMN}),
    "sliding window": (a_sliding_window, {"allowed": (ROW >= COLUMN) & (GAP < 5)}),
    "prefix LM": (a_prefix, {"allowed": (PREFIXES[:, None, None, None] > COLUMN) | (ROW >= COLUMN)}),
    "documents": (one_document, {"allowed": DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]}),
    "dilated sliding window": (dilated_window, {"allowed": (GAP <= 6) & (GAP % 2 == 0)}),
    "neighbourhood": (neighbourhood, {"allowed": NEAR}),
    "disk per head": (a_disk, {"allowed": RADIUS < 1.5 + HEADS / 2}),
    "spans": (spans, {"allowed": SPAN[:, None] == SPAN * (SPAN >= 0) + 9 * (SPAN < 0)}),
    "alibi": (alibi, {"shift": ALIBI}),
    "softcap": (a_softcap, {"softcap": 2.0}),
    "table": (a_table, {"shift": TABLE}),
    "relative table": (relative_table, {"shift": RELATIVE[:, COLUMN - ROW + 15]}),
    "causal by its score": (hidden_by_score, {"allowed": ROW >= COLUMN}),
    "softcap, then alibi": (capped_slopes, {"softcap": 2.0, "shift": ALIBI}),
}
COTANGENT = np.random.default_rng(5).choice([-1.0, -0.5, 0.5, 1.0], size=X.shape)


def judge_back(says: dict[str, Any]) -> dict[str, Judged]:
    says = {key: x[(None,) * (4 - x.ndim)] if isinstance(x, np.ndarray) else x for key, x in says.items()}
    return truth(Spec(X, Y, Z, **says), COTANGENT)


def option(mod: Callable[..., Any]) -> dict[str, Any]:
    return {"score_mod" if mod.__code__.co_argcount == 5 else "mask": from_flex(mod)}


@pytest.mark.parametrize("name", BACK)
def test_the_mods_of_this_file_are_right_in_flex_attention_itself(name: str) -> None:
    mod, says = BACK[name]
    if mod.__code__.co_argcount == 4:
        options = {"block_mask": create_block_mask(mod, 2, 4, 16, 16, device="cpu")}
    else:
        options = {"score_mod": mod}
    out = flex(*(torch.tensor(x) for x in (X, Y, Z)), **options)
    assert eta(*seen(out.numpy(), judge_back(says)["out"]), "float64") <= ACCEPTANCE


RUNS: dict[str, tuple[Callable[[], Bench], str, Any]] = {
    "numpy": (NumpyBench, "float64", "reference"),
    "numpy blockwise": (NumpyBench, "float32", Blockwise(5, 3)),
    "strict": (StrictBench, "float64", "reference"),
    "strict blockwise": (StrictBench, "float32", Blockwise(5, 3)),
    "jax": (lambda: JaxBench(jit=False), "float32", "reference"),
    "jax jit": (JaxBench, "float32", "reference"),
    "jax jit blockwise": (JaxBench, "float32", Blockwise(5, 3)),
    "torch": (TorchBench, "float64", "reference"),
    "torch blockwise": (TorchBench, "float32", Blockwise(5, 3)),
}


# The engine of JAX compiles forward and backward for seconds: a mask and a mod stand for the others there.
@pytest.mark.parametrize(
    ("name", "run"),
    [(n, r) for n in BACK for r in RUNS if r != "jax jit blockwise" or n in ("documents", "relative table")],
)
def test_a_mod_of_flex_attention_runs_here(name: str, run: str) -> None:
    (mod, says), (make, dtype, implementation) = BACK[name], RUNS[run]
    bench = make()
    options = option(mod)

    def f(given: Any) -> Any:
        out, aux = attention(
            given["query"],
            given["key"],
            given["value"],
            **options,
            implementation=implementation,
            return_aux=AuxRequest(lse=True),
        )
        return out, aux.lse  # fmt: skip

    arrays = {name: bench.array(x, dtype) for name, x in (("query", X), ("key", Y), ("value", Z))}
    out, lse, gradients = bench.run(f, arrays, bench.array(COTANGENT, dtype))
    judged = judge_back(says)
    assert eta(bench.numpy(out), judged["out"], dtype) <= ACCEPTANCE
    assert eta(bench.numpy(lse), judged["lse"], dtype) <= ACCEPTANCE
    assert (gradients is None) == (bench.name in ("numpy", "strict"))
    for argument, gradient in (gradients or {}).items():
        assert eta(bench.numpy(gradient), judged[f"d{argument[0]}"], dtype) <= ACCEPTANCE


@pytest.mark.parametrize("run", ["numpy", "jax", "jax jit"])
def test_a_mod_of_operators_alone_runs_here_as_it_is(run: str) -> None:
    make, dtype, _ = RUNS[run]
    bench = make()
    ids = bench.array(DOCUMENTS)

    def f(given: Any) -> Any:
        out, aux = attention(
            given["query"],
            given["key"],
            given["value"],
            mask=lambda b, h, q_idx, kv_idx: (ids[b, q_idx] == ids[b, kv_idx]) & (q_idx >= kv_idx),
            score_mod=lambda score, b, h, q_idx, kv_idx: score - 0.25 * abs(q_idx - kv_idx),
            return_aux=AuxRequest(lse=True),
        )
        return out, aux.lse

    arrays = {name: bench.array(x, dtype) for name, x in (("query", X), ("key", Y), ("value", Z))}
    out, _, _ = bench.run(f, arrays, None)
    allowed = (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]) & (ROW >= COLUMN)
    judged = judge_back({"allowed": allowed, "shift": -0.25 * GAP})
    assert eta(bench.numpy(out), judged["out"], dtype) <= ACCEPTANCE


# BlockMask

CAUSAL_DOCUMENTS = (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None]) & (ROW >= COLUMN)


def attends(mask: Mask, allowed: Floats) -> None:
    """The mask is `allowed` to NumPy and to JAX, whole and in tiles."""
    judged = judge_back({"allowed": allowed})["out"]
    for implementation in ("reference", Blockwise(4, 4), Blockwise(5, 7)):
        out = attention(X, Y, Z, mask=mask, implementation=implementation)
        assert eta(out, judged, "float64") <= ACCEPTANCE
    given = [jnp.asarray(x, jnp.float32) for x in (X, Y, Z)]
    out = jax.jit(lambda *xs: attention(*xs, mask=mask, implementation=Blockwise(4, 4)))(*given)
    assert eta(np.asarray(out), judged, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("name", THERE)
def test_a_mask_comes_back_from_a_block_mask_as_itself(name: str) -> None:
    mask = THERE[name][0]()
    assert from_flex(to_block_mask(mask)) is mask
    assert from_flex(mask) is mask


def test_a_block_mask_runs_here_and_its_blocks_are_tiles() -> None:
    mask = from_flex(
        create_block_mask(and_masks(one_document, a_causal), 2, None, 16, 16, "cpu", BLOCK_SIZE=4)
    )
    assert np.array_equal(mask.dense(16, batch=2, heads=1), CAUSAL_DOCUMENTS)
    for b in range(2):
        blocks = CAUSAL_DOCUMENTS[b, 0].reshape(4, 4, 4, 4).swapaxes(1, 2)
        expected = [[FULL if x.all() else PARTIAL if x.any() else EMPTY for x in row] for row in blocks]
        assert mask.tiles(16, 16, (4, 4), b=b) == expected
        assert {EMPTY, FULL, PARTIAL} == {x for row in expected for x in row}
    assert mask.tile(range(4), range(12, 16)) is EMPTY
    assert mask.tile(range(4), range(4), query_offset=13) is PARTIAL  # beyond what the BlockMask knows
    attends(mask, CAUSAL_DOCUMENTS)


def test_a_mask_of_flex_attention_combines_with_those_here() -> None:
    mask = from_flex(one_document) & masks.causal()
    assert str(mask) == "mask_mod(one_document) & causal()"
    attends(mask, CAUSAL_DOCUMENTS)
    with_ours = create_block_mask(and_masks(one_document, masks.causal()), 2, None, 16, 16, device="cpu")
    attends(from_flex(with_ours), CAUSAL_DOCUMENTS)


def of_blocks(blocks: Floats, full: Floats | None = None, **options: Any) -> BlockMask:
    """A BlockMask that lists blocks (B, H, rows, columns), those of no sense behind the others."""

    def pair(x: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        order = np.argsort(~x, axis=-1, kind="stable").astype(np.int32)
        return torch.tensor(x.sum(-1), dtype=torch.int32), torch.tensor(order)

    more = () if full is None else pair(full)
    return BlockMask.from_kv_blocks(*pair(blocks), *more, BLOCK_SIZE=4, **options)


BLOCKS = np.random.default_rng(6).random((2, 1, 4, 4)) < 0.5
FILLED = BLOCKS & (np.random.default_rng(7).random((2, 1, 4, 4)) < 0.5)
SPREAD, FILL = (x.repeat(4, -1).repeat(4, -2) for x in (BLOCKS, FILLED))


def test_a_block_mask_of_blocks_alone_is_its_blocks() -> None:
    mask = from_flex(of_blocks(BLOCKS))
    attends(mask, SPREAD)
    assert mask.tiles(16, 16, (4, 4), b=0) == [[PARTIAL if x else EMPTY for x in row] for row in BLOCKS[0, 0]]


def test_full_blocks_are_visible_whatever_mask_mod_says() -> None:
    mask = from_flex(of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=a_causal))
    attends(mask, FILL | (SPREAD & (ROW >= COLUMN)))
    ours = from_flex(of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=masks.causal()))
    attends(ours, FILL | (SPREAD & (ROW >= COLUMN)))


def test_blocks_that_were_made_for_one_item_bind_all_of_them() -> None:
    mask = from_flex(create_block_mask(one_document, None, None, 16, 16, device="cpu", BLOCK_SIZE=4))
    blocks = (DOCUMENTS[0][:, None] == DOCUMENTS[0]).reshape(4, 4, 4, 4)
    full, met = (x.repeat(4, 0).repeat(4, 1) for x in (blocks.all((1, 3)), blocks.any((1, 3))))
    attends(mask, full | (met & (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None])))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_flex_attention_reads_blocks_in_the_same_way() -> None:
    torch.compiler.reset()
    block_mask = of_blocks(BLOCKS & ~FILLED, FILLED, mask_mod=a_causal)
    with torch.no_grad():
        out = torch.compile(flex_attention, dynamic=False)(
            *(torch.tensor(x, dtype=torch.float32) for x in (X, Y, Z)), block_mask=block_mask
        )
    judged = judge_back({"allowed": FILL | (SPREAD & (ROW >= COLUMN))})["out"]
    assert eta(*seen(out.numpy(), judged), "float32") <= ACCEPTANCE


# Captured tensors


def test_a_captured_tensor_is_read_at_every_call() -> None:
    ids = documents.clone()
    mask = from_flex(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx])
    before = mask.dense(16, batch=2, heads=1)
    ids.zero_()
    after = mask.dense(16, batch=2, heads=1)
    assert after.all()
    assert not before.all()


def test_blocks_bind_whatever_becomes_of_a_captured_tensor() -> None:
    ids = torch.tensor([0] * 8 + [1] * 8)
    mask = from_flex(
        create_block_mask(lambda b, h, q, kv: ids[q] == ids[kv], None, None, 16, 16, "cpu", BLOCK_SIZE=4)
    )
    ids[:] = torch.arange(16) // 6
    attends(mask, np.broadcast_to(ROW // 8 == COLUMN // 8, (2, 4, 16, 16)))  # the blocks are full or empty
    assert not np.array_equal(ROW // 6 == COLUMN // 6, ROW // 8 == COLUMN // 8)


@pytest.mark.parametrize("run", ["numpy blockwise", "strict blockwise", "jax jit", "torch blockwise"])
def test_the_least_number_of_the_dtype_of_the_score_stays_finite(run: str) -> None:
    make, _, implementation = RUNS[run]
    bench = make()
    mod = from_flex(lambda score, b, h, q, kv: torch.where(q >= kv + 3, score, torch.finfo(score.dtype).min))
    index = [bench.array(np.arange(2, dtype=np.int32)) for _ in range(4)]
    least = bench.numpy(mod(bench.array(np.ones(2), "float32"), *index))
    assert np.array_equal(least, np.full(2, np.finfo(np.float32).min))
    assert np.isinf(
        bench.numpy(from_flex(hidden_by_score)(bench.array(np.ones(2), "float32"), *index[:3], index[3] + 1))
    ).all()
    given = [bench.array(x, "float32") for x in (X, Y, Z)]
    out = bench.numpy(attention(*given, score_mod=mod, implementation=implementation))
    # The first rows see no key; to FlexAttention, they see all of them alike.
    alike = truth(Spec(0 * X[:, :, :3], Y, Z))["out"]
    assert eta(out[:, :, :3], alike, "float32") <= ACCEPTANCE


def test_a_captured_tensor_of_float64_in_a_mask_is_of_the_widest_dtype_that_there_is() -> None:
    limits = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    mask = from_flex(lambda b, h, q_idx, kv_idx: limits[q_idx % 2] > 0.5)
    assert np.array_equal(mask.dense(2), [[False, False], [True, True]])
    assert not mask.dense(2, like=jnp.zeros(())).any()  # without a warning
    with jax.enable_x64(True):
        assert np.array_equal(mask.dense(2, like=jnp.zeros(())), mask.dense(2))


def test_a_module_is_a_mod_of_the_arguments_of_its_forward() -> None:
    class Relative(torch.nn.Module):
        def forward(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return relative_table(score, b, h, q_idx, kv_idx)

    out = attention(X, Y, Z, score_mod=from_flex(Relative()))
    assert eta(out, judge_back(BACK["relative table"][1])["out"], "float64") <= ACCEPTANCE


def test_a_gradient_for_a_captured_tensor_flows_on_torch_call_after_call() -> None:
    bias = torch.nn.Parameter(relative.clone())
    mod = from_flex(lambda score, b, h, q_idx, kv_idx: score + (2 * bias)[h, kv_idx - q_idx + 15])
    given = [torch.tensor(x) for x in (X, Y, Z)]
    gradients = [
        torch.autograd.grad(attention(*given, score_mod=mod), bias, torch.tensor(COTANGENT))[0]
        for _ in range(2)
    ]
    d_scores = truth(Spec(X, Y, Z, bias=2 * RELATIVE[None, :, COLUMN - ROW + 15]), COTANGENT)["dbias"]
    assert d_scores.value.shape == (1, 4, 16, 16)
    expected = [np.zeros((4, 31), np.longdouble) for _ in range(2)]
    for total, part in zip(expected, (d_scores.value, d_scores.condition), strict=True):
        np.add.at(total, (HEADS, COLUMN - ROW + 15), 2 * part[0])
    for gradient in gradients:
        assert eta(gradient.numpy(), Judged(*expected), "float64") <= ACCEPTANCE


def test_a_captured_tensor_that_requires_a_gradient_is_refused_elsewhere() -> None:
    bias = relative.clone().requires_grad_()
    mod = from_flex(lambda score, b, h, q_idx, kv_idx: score + bias[h, kv_idx - q_idx + 15])
    with pytest.raises(ValueError) as caught:
        attention(X, Y, Z, score_mod=mod)
    assert str(caught.value) == (
        "polyattn_torch.flex.from_flex: expected captured tensors without a gradient on numpy arrays, got one of shape "
        "(4, 31) that requires it; detach it, or call under torch.no_grad()"
    )
    with torch.no_grad():
        out = attention(X, Y, Z, score_mod=mod)
    judged = judge_back({"shift": RELATIVE[:, COLUMN - ROW + 15]})["out"]
    assert eta(out, judged, "float64") <= ACCEPTANCE


def test_captured_integers_that_jax_has_not_are_refused_there() -> None:
    ids = torch.tensor([0, 2**40] * 8)
    mask = from_flex(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx])
    assert np.array_equal(mask.dense(16), (ROW - COLUMN) % 2 == 0)
    with pytest.raises(ValueError) as caught:
        mask.dense(16, like=jnp.zeros(()))
    assert str(caught.value) == (
        "polyattn_torch.flex.from_flex: expected captured integers up to 2147483647 on jax arrays, got 0 to "
        "1099511627776; number them anew"
    )


def test_the_example_of_from_flex_is_true() -> None:
    result = doctest.testmod(polyattn_torch.flex)
    assert (result.failed, result.attempted > 3) == (0, True)


def test_a_mod_of_flex_attention_becomes_part_of_an_onnx_model() -> None:
    import onnxruntime

    from polyattn.onnx import export

    table = torch.tensor(numbers(4, 12))
    mask = from_flex(lambda b, h, q, kv: (q // 4 == kv // 4) & (q >= kv))
    mod = from_flex(lambda s, b, h, q, kv: 2 * torch.tanh(s / 2) + table[h, (q - kv).abs()])
    inputs = {name: x.astype(np.float32) for name, x in zip("qkv", (Q, K, V), strict=True)}
    model = export(lambda q, k, v: attention(q, k, v, mask=mask, score_mod=mod, query_offset=0), inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, inputs)
    allowed, shift = (AT // 4 == KEY // 4) & (KEY <= AT), table.numpy()[HEAD, DISTANCE]
    spec = Spec(Q, K, V, softcap=2.0, shift=shift[None], allowed=allowed[None, None])
    assert eta(out, truth(spec)["out"], "float32") <= ACCEPTANCE
