"""Masks by name: each against what its source says, written as loops or as calls that need no such mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp

from polyattn import Blockwise, attention, masks
from polyattn.masks import EMPTY, FULL, Mask
from polyattn.testing import Bench, NumpyBench
from polyattn.truth import Spec, eta, truth

RNG = np.random.default_rng(0)
L = 12
IDS = np.array([9, 9, 9, 0, 0, 0, 1, 1, 2, 2, 2, 2])  # a prefix of three, and three continuations of it
PARENTS = np.array([-1, 0, 0, 1, 1, 2, -1, 6, 3, 3, 5, 7])

#: L queries, and L keys but for the tree, which has two more in front
NAMED: dict[str, Callable[[Callable[[Any], Any]], Mask]] = {
    "neighborhood": lambda array: masks.neighborhood([3, 4], [3, 2]),
    "neighborhood in time": lambda array: masks.neighborhood([3, 2, 2], [2, 2, 1], causal=[0]),
    "sliding tiles": lambda array: masks.sliding_tiles([2, 6], [2, 2], [1, 2]),
    "block causal": lambda array: masks.block_causal(5),
    "block diffusion": lambda array: masks.block_diffusion(6, 4),
    "shared prefix": lambda array: masks.shared_prefix(3, array(IDS)) & masks.causal(),
    "tree": lambda array: masks.tree(array(PARENTS), prefix=2),
    "longformer": lambda array: masks.window(1, 1) | masks.global_tokens([0, 7]),
    "global tokens of each item": lambda array: masks.global_tokens(array(IDS == 2)),
    "strided": lambda array: masks.strided(3),
    "bigbird": lambda array: masks.random_blocks(L, 2, 2) | masks.global_tokens(2) | masks.window(2, 2),
}


def qkv(*lengths: int, heads: int = 2) -> list[np.ndarray]:
    return [RNG.normal(size=(heads, n, 4)) for n in lengths]


def over_its_dense_form(bench: Bench, name: str) -> bool:
    """Whether the engine's output over a named mask is that over the same mask as an array."""
    keys = L + 2 * (name == "tree")
    arrays = [x.astype(np.float32).astype(float)[None] for x in qkv(L, keys, keys)]
    dense = NAMED[name](np.asarray).dense(L, keys)
    q, k, v = (bench.array(x, "float32") for x in arrays)
    mask = NAMED[name](lambda x: bench.array(x, str(x.dtype)))
    out = attention(q, k, v, mask=mask, query_offset=0, implementation=Blockwise(5, 4))
    judged = truth(Spec(*arrays, allowed=dense[None, None]))["out"]
    return not dense.all() and eta(bench.numpy(out), judged, "float32") <= 4


@pytest.mark.parametrize("name", NAMED)
def test_attention_over_a_named_mask_is_attention_over_its_dense_form(name: str) -> None:
    assert over_its_dense_form(NumpyBench(), name)


@pytest.mark.parametrize("name", ["neighborhood in time", "tree", "bigbird"])
def test_named_masks_run_in_tiles_on_every_library(eager: Bench, name: str) -> None:
    assert over_its_dense_form(eager, name)


@pytest.mark.parametrize(("n", "size"), [(7, 3), (7, 4), (6, 1), (5, 5), (2, 2)])
def test_every_query_of_a_neighborhood_sees_as_many_keys_the_nearest_there_are(n: int, size: int) -> None:
    seen = masks.neighborhood(n, size).dense(n)
    assert (seen.sum(1) == size).all()
    for i in range(n):
        starts = range(n - size + 1)  # of the windows on the grid: the one whose middle is nearest to i
        best = min(starts, key=lambda start: abs(start + size // 2 - i))
        assert np.flatnonzero(seen[i]).tolist() == list(range(best, best + size))


def test_a_neighborhood_in_a_volume_is_one_along_each_axis() -> None:
    shape, window = (3, 4, 5), (2, 3, 4)
    axes = [masks.neighborhood(n, size).dense(n) for n, size in zip(shape, window, strict=True)]
    axes[0] = np.tri(3, dtype=bool) & ~np.tri(3, k=-2, dtype=bool)
    expected = (
        axes[0][:, None, None, :, None, None] & axes[1][:, None, None, :, None] & axes[2][:, None, None, :]
    )
    assert (masks.neighborhood(shape, window, causal=0).dense(60) == expected.reshape(60, 60)).all()


def test_sliding_tiles_are_the_neighborhood_of_tiles_for_tokens_in_the_order_of_tiles() -> None:
    shape, tile, window = (4, 6), (2, 3), (1, 2)
    order = np.arange(24).reshape(2, 2, 2, 3).swapaxes(1, 2).ravel()  # the place on the grid of each token
    row, column = np.divmod(order, 6)
    near = masks.neighborhood([2, 2], window).dense(4)
    here = row // 2 * 2 + column // 3
    assert (masks.sliding_tiles(shape, tile, window).dense(24) == near[here[:, None], here]).all()


def test_a_video_is_cut_into_tiles_that_are_full_or_empty() -> None:
    """The grid of the paper, 115200 tokens: tiles of 6 x 8 x 8, windows of 3 x 3 x 3 of them."""
    mask = masks.sliding_tiles([30, 48, 80], [6, 8, 8], 3)
    lines = mask.tiles(115200, 115200, (384, 384))
    assert {line.count(FULL) for line in lines} == {27}
    assert {line.count(EMPTY) for line in lines} == {len(lines) - 27}


def test_each_continuation_of_a_shared_prefix_gets_what_it_gets_alone() -> None:
    q, k, v = qkv(L, L, L)
    stands = np.concatenate([np.arange(3), 3 + np.arange(3), 3 + np.arange(2), 3 + np.arange(4)])
    mask = masks.shared_prefix(3, IDS) & masks.causal()
    for where in ({}, {"query_positions": stands, "key_positions": stands}):
        out = attention(q, k, v, mask=mask, **where)
        for i in range(3):
            alone = np.flatnonzero(np.isin(IDS, [9, i]))
            spec = Spec(
                *(x[None, :, alone] for x in (q, k, v)), allowed=np.tri(len(alone), dtype=bool)[None, None]
            )
            assert eta(out[None, :, alone], truth(spec)["out"], "float64") <= 4


@pytest.mark.parametrize("prefix", [0, 5])
def test_a_node_of_a_tree_gets_what_it_gets_at_the_end_of_its_path(prefix: int) -> None:
    q, k, v = qkv(L, prefix + L, prefix + L)
    out = attention(q, k, v, mask=masks.tree(PARENTS, prefix))
    for node in range(L):
        path = [node]
        while PARENTS[path[0]] >= 0:
            path.insert(0, PARENTS[path[0]])
        seen = [*range(prefix), *(prefix + i for i in path)]
        spec = Spec(q[None, :, node : node + 1], k[None, :, seen], v[None, :, seen])
        assert eta(out[None, :, node : node + 1], truth(spec)["out"], "float64") <= 4


def test_a_tree_stands_behind_a_prefix_of_each_item_in_a_cache_with_room_traced_or_not() -> None:
    prefix, room = np.array([3, 0]), L + 6
    parents = np.stack([PARENTS, np.arange(-1, L - 1)])
    expected = np.zeros((2, 1, L, room), bool)
    for b, n in enumerate(prefix):
        expected[b, 0, :, : n + L] = masks.tree(parents[b], int(n)).dense(L, int(n) + L)
    mask = masks.tree(parents, prefix, keys=room)
    assert (mask.dense(L, room, batch=2) == expected).all()

    @jax.jit
    def traced(parents: Any, prefix: Any) -> Any:
        return masks.tree(parents, prefix, keys=room).dense(L, room, batch=2)

    assert (np.asarray(traced(jnp.asarray(parents), jnp.asarray(prefix))) == expected).all()


def test_a_noisy_block_gets_what_it_gets_behind_the_clean_blocks_before_it() -> None:
    n, size = 7, 3
    q, k, v = qkv(2 * n, 2 * n, 2 * n)
    out = attention(q, k, v, mask=masks.block_diffusion(n, size))
    for start in range(0, n, size):
        block = np.arange(start, min(start + size, n))
        for half, before in ((block, np.arange(n, n + start)), (block + n, np.arange(n, n + start))):
            seen = np.concatenate([before, half])
            spec = Spec(q[None, :, half], k[None, :, seen], v[None, :, seen])
            assert eta(out[None, :, half], truth(spec)["out"], "float64") <= 4


def test_random_blocks_are_different_ones_and_all_blocks_are_drawn_about_as_often() -> None:
    seen = [masks.random_blocks(64, 4, 3, seed).dense(64)[::4, ::4] for seed in range(40)]
    assert {int(n) for mask in seen for n in mask.sum(1)} == {3}
    counts = np.sum(
        seen, axis=(0, 1)
    )  # of 640 rows, each of 16 blocks has 3 / 16: 120, with a deviation of about 10
    assert (abs(counts - 120) < 5 * 10).all()
    assert len({mask.tobytes() for mask in seen}) == 40
    assert masks.random_blocks(64, 4, 16).dense(64).all()


def test_the_two_patterns_of_the_sparse_transformer_joined() -> None:
    stride, n = 4, 15
    seen = masks.strided(stride).dense(n)
    for i, j in itertools.product(range(n), repeat=2):
        assert seen[i, j] == (max(0, i - stride) <= j <= i or (j <= i and (i - j) % stride == 0))


def test_marked_tokens_are_those_at_their_positions() -> None:
    marks = np.isin(np.arange(L), [1, 2, 7])
    assert (masks.global_tokens(marks).dense(L) == masks.global_tokens([7, 2, 1]).dense(L)).all()
    each = masks.global_tokens(np.stack([marks, ~marks])).dense(L, batch=2)[:, 0]
    assert (each == np.stack([masks.global_tokens(m).dense(L) for m in (marks, ~marks)])).all()
    assert not masks.global_tokens([]).dense(3).any()
    assert str(masks.global_tokens([1, 2, 7])) == "global_tokens(1..2, 7)"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: masks.neighborhood([4, 4], [3, 5]), "neighborhood: expected a window within the grid, (4, 4), got (3, 5); make it smaller"),
        (lambda: masks.neighborhood([4, 4], [3]), "neighborhood: expected window with one integer for each axis, 2, got [3]; name every axis of the grid"),
        (lambda: masks.neighborhood([], 3), "neighborhood: expected shape with one integer for each axis, got []; name every axis of the grid"),
        (lambda: masks.neighborhood([4, 4], 3, causal=2), "neighborhood: expected causal to be numbers of axes, 0 to 1, got 2; write causal=[0] for the first axis"),
        (lambda: masks.neighborhood([4, 4], 3, causal=True), "neighborhood: expected causal to be numbers of axes, 0 to 1, got True; write causal=[0] for the first axis"),
        (lambda: masks.neighborhood([2**15, 2**15], 3), "neighborhood: expected a grid of fewer than 2**30 tokens, got 1073741824; cut it into parts"),
        (lambda: masks.sliding_tiles([4, 5], 2, 1), "sliding_tiles: expected tiles that divide the grid (4, 5), got (2, 2); pad the grid"),
        (lambda: masks.sliding_tiles([4, 4], 2, 3), "sliding_tiles: expected a window within the tiles of the grid, (2, 2), got (3, 3); make it smaller"),
        (lambda: masks.block_diffusion(2**29 + 1, 4), "block_diffusion: expected n <= 2**29, got 536870913; positions lie below 2**30"),
        (lambda: masks.random_blocks(8, 4, 3), "random_blocks: expected fewer than 2**30 tokens and at most 2 blocks, all there are, got 8 and 3; draw fewer"),
        (lambda: masks.global_tokens(np.array([1, 2])), "global_tokens: expected an array of bools of shape (L,) or (batch, L), got int64 of shape (2,); positions go in as a list of integers"),
        (lambda: masks.tree(np.array([-1, 1])), "tree: expected the parent of node 1 to be -1 or a node before it, got 1; sort the nodes by depth"),
        (lambda: masks.tree(np.array([[[-1]]])), "tree: expected parents of shape (L,) or (batch, L), at least one, got (1, 1, 1); give one per node"),
        (lambda: masks.tree(PARENTS, np.array([-1])), "tree: expected a prefix of at least 0 keys, got -1; it is a length"),
        (lambda: masks.tree(PARENTS, np.zeros((1, 1), int)), "tree: expected prefix as one integer or of shape (batch,), got (1, 1); give one per item"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_named_mask_is_said(make: Callable[[], Mask], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == f"polyattn.masks.{sentence}"


def test_a_tree_for_other_rows_or_keys_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        masks.tree(PARENTS, 2).dense(L, L)
    assert str(caught.value) == (
        "polyattn.masks: expected the 12 nodes and 14 keys of masks.tree, of 1 items, to be the rows and keys, got scores "
        "(B, L, S) = (1, 12, 12); give a parent for each row, and say how many keys there are before and in all"
    )
    with pytest.raises(ValueError, match="got None; say how many slots the cache has"):
        jax.jit(lambda n: masks.tree(jnp.asarray(PARENTS), n).dense(L))(jnp.asarray(3))
