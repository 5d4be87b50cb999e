"""The blockwise engine is the definition, computed in another order."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from shared.libraries import JaxBench, TorchBench, jax, jnp, torch

import polyattn
from polyattn import AuxRequest, Blockwise, Reference, attention, attention_vjp, masks, mods
from polyattn.parity import Spec, eta
from polyattn.parity.cases import cases
from polyattn.testing import NumpyBench, StrictBench, check_backend
from polyattn.truth import truth

BENCHES = {"numpy": NumpyBench, "strict": StrictBench, "jax": JaxBench, "torch": TorchBench}
UNFOLDED = (
    "sparsemax",
    "entmax15",
    "top k and sinks",
)  # normalisers that need whole rows, refused by the engine
FOLDED = tuple(case for case in cases() if case.name not in UNFOLDED)
SMALL = tuple(case for case in FOLDED if case.name != "many keys")
LARGE = tuple(case for case in FOLDED if case.name == "many keys")


# Every case on every library at one size that cuts nine rows and keys raggedly; the other sizes where nothing is compiled,
# since the plan that they try is the same for all.
SIZES = [(name, tile) for name in BENCHES for tile in (1, 3, 7, 16, 64, None) if name != "jax" or tile == 7]


@pytest.mark.rule("rule-20")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "tile"), [*SIZES, ("jax", 64)])
def test_blockwise_equals_the_definition_at_every_tile_size(name: str, tile: int | None) -> None:
    # 67 x 131 scores in tiles of one are 8777 tiles: left to the larger sizes; the others, of nine rows and keys, are
    # one tile from 16 on, as they are by default.
    only = SMALL if tile in (1, 3) else FOLDED if tile == 7 else LARGE
    spoiled = functools.partial(attention, implementation=Blockwise(tile, tile))
    outcomes = check_backend(BENCHES[name](), dtypes=["float32"], only=only, attention=spoiled)
    assert len(outcomes) == len(only)


@pytest.mark.rule("rule-20", "rule-21")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_blockwise_equals_the_definition_in_every_dtype(name: str, dtype: str) -> None:
    check_backend(
        BENCHES[name](),
        dtypes=[dtype],
        only=FOLDED,
        attention=functools.partial(attention, implementation=Blockwise(7, 5)),
    )


@pytest.mark.parametrize("name", BENCHES)
def test_an_array_that_a_modification_returns_is_not_written_to(name: str) -> None:
    bench = BENCHES[name]()
    x = bench.array(np.random.default_rng(0).normal(size=(1, 1, 8, 4)), "float32")
    own = np.random.default_rng(1).normal(size=(1, 1, 8, 8)).astype(np.float32)
    kept = bench.array(own, "float32")
    attention(x, x, x, score_mod=lambda score, *_: kept, implementation=Blockwise(8, 8))
    assert (bench.numpy(kept) == own).all()


def test_a_function_as_score_mod_is_differentiated_on_jax_and_torch() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 4))

    def mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score * score

    def of(bench: Any, implementation: Any) -> Any:
        run = bench.run(
            lambda a: (
                attention(a["q"], a["q"], a["q"], score_mod=mod, implementation=implementation),
                a["q"],
            ),
            {"q": bench.array(x, "float64")},
            bench.array(x, "float64"),
        )
        return bench.numpy(run[2]["q"])

    true = of(TorchBench(), "reference")
    for bench in (TorchBench(), JaxBench()):
        assert np.abs(of(bench, Blockwise(4, 4)) - true).max() <= 256 * 2.0**-53 * np.abs(true).max()
    ours = attention_vjp(x, x, x, score_mod=mod)[1](x)  # recorded
    total = ours["query"] + ours["key"] + ours["value"]
    assert np.abs(total - true).max() <= 256 * 2.0**-53 * np.abs(true).max()


@pytest.mark.parametrize("name", ["numpy", "strict"])
def test_a_function_as_score_mod_needs_no_autodiff_of_the_library(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polyattn_autograd", None)
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 4))
    bench = BENCHES[name]()
    given = bench.array(x, "float64")
    by_hand, by_recording = (
        attention_vjp(given, given, given, score_mod=mod)[1](given)["query"]
        for mod in (mods.softcap(2.0), lambda s, b, h, q, kv: 2.0 * s.__array_namespace__().tanh(s / 2.0))
    )
    error = np.abs(bench.numpy(by_hand) - bench.numpy(by_recording)).max()
    assert error <= 256 * 2.0**-53 * np.abs(bench.numpy(by_hand)).max()


def test_no_gradient_of_a_captured_tensor_is_lost() -> None:
    x = torch.tensor(np.random.default_rng(0).normal(size=(1, 4, 300, 4)))
    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    mod = mods.compose(mods.softcap(5.0), lambda s, b, h, q, kv: s * factor)
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, score_mod=mod, implementation="blockwise")
    assert str(caught.value) == (
        "polyattn.attention: expected a problem that the blockwise engine computes exactly for "
        "implementation='blockwise', got one where score_mod captures a tensor that requires a gradient, which the "
        "engine cannot see; use 'auto'"
    )
    out, aux = attention(x, x, x, score_mod=mod, return_aux=AuxRequest())
    assert aux.implementation == "reference"
    assert torch.autograd.grad(out.sum(), factor)[0] != 0
    with torch.no_grad():
        assert attention(x, x, x, score_mod=mod, return_aux=AuxRequest())[1].implementation == "blockwise"

    def of_jax(c: Any) -> Any:
        y = jnp.ones((1, 1, 9, 4))
        return attention(y, y, y, score_mod=lambda s, *_: s * c, implementation=Blockwise(4, 4)).sum()

    with pytest.raises(ValueError, match="captures an array that a derivative is taken by"):
        jax.grad(of_jax)(1.5)


@pytest.mark.parametrize("name", BENCHES)
def test_two_runs_give_the_same_bits(name: str) -> None:
    bench = BENCHES[name]()
    arrays = [bench.array(x, "float32") for x in np.random.default_rng(0).normal(size=(3, 1, 4, 600, 16))]
    first, second = (
        bench.numpy(attention(*arrays, is_causal=True, implementation="blockwise")) for _ in range(2)
    )
    assert (first == second).all()


THREADS = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import numpy as np, polyattn
q, k, v = np.random.default_rng(0).normal(size=(3, 1, 4, 1500, 32)).astype(np.float32)
out, pullback = polyattn.attention_vjp(q, k, v, is_causal=True)
print(hashlib.sha256(b"".join(x.tobytes() for x in [out, *pullback(q).values()])).hexdigest())
"""


@pytest.mark.skipif(
    not hasattr(__import__("os"), "sched_setaffinity"), reason="threads are counted by affinity"
)
def test_one_and_two_threads_give_the_same_bits() -> None:
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    one, two = (
        subprocess.run(
            [sys.executable, "-c", THREADS, n], capture_output=True, text=True, check=True, env=free
        ).stdout
        for n in "12"
    )
    assert one == two


def test_a_forked_child_has_threads_of_its_own() -> None:
    code = """
import os, numpy as np, polyattn
x = np.random.default_rng(0).normal(size=(1, 4, 800, 8))
first = polyattn.attention(x, x, x, implementation="blockwise")
child = os.fork()
if child == 0:
    os._exit(0 if (polyattn.attention(x, x, x, implementation="blockwise") == first).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "0"


def test_a_modification_may_call_attention_itself() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 40, 4))
    big = np.zeros((1, 4, 700, 4))

    def mod(score: Any, *_: Any) -> Any:
        return score + attention(big, big, big, implementation="blockwise").max()

    out = attention(x, x, x, score_mod=mod, implementation=Blockwise(8, 8))
    assert (out == attention(x, x, x, implementation=Blockwise(8, 8))).all()


@pytest.mark.rule("rule-11")
@pytest.mark.parametrize("name", BENCHES)
def test_every_implementation_and_tile_size_drops_the_same_weights(name: str) -> None:
    bench = BENCHES[name]()
    q, k = (bench.array(x, "float32") for x in np.random.default_rng(0).normal(size=(2, 2, 3, 19, 4)))
    v = bench.array(np.broadcast_to(np.eye(19), (2, 3, 19, 19)), "float32")
    ways = ["reference", "blockwise", Blockwise(1, 3), Blockwise(7, 7), Blockwise(16, 5)]
    kept = [
        bench.numpy(attention(q, k, v, dropout_rate=0.4, dropout_seed=9, implementation=way)) != 0
        for way in ways
    ]
    assert 0.5 < kept[0].mean() < 0.7
    assert all((other == kept[0]).all() for other in kept)


def test_the_jax_graph_does_not_grow_with_the_number_of_tiles() -> None:
    def equations(length: int) -> int:
        x = jnp.zeros((1, 2, length, 8))

        def loss(q: Any) -> Any:
            return attention(q, q, q, is_causal=True, implementation=Blockwise(32, 32)).sum()

        return jax.jit(jax.grad(loss)).lower(x).as_text().count(" = ")

    few = equations(64)
    assert few > 100
    assert equations(512) == few


def test_an_eager_jax_call_compiles_once_per_signature() -> None:
    import polyattn_jax.eager

    compiled = polyattn_jax.eager._compiled

    def call(length: int, seed: int, causal: bool) -> None:
        x = jax.random.normal(jax.random.key(seed), (1, 1, length, 4))
        attention(x, x, x, is_causal=causal, implementation=Blockwise(8, 8)).block_until_ready()

    call(21, 0, True)
    before = compiled.cache_info()
    call(21, 1, True)
    after = compiled.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    call(21, 1, False)
    assert compiled.cache_info().misses == before.misses + 1
    assert after.maxsize is not None


def test_traced_lengths_and_offsets_go_through_the_engine() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, 2, 2, 13, 4)))

    @jax.jit
    def run(q: Any, k: Any, v: Any, lengths: Any, offset: Any) -> Any:
        mask = masks.key_lengths(lengths) & masks.causal()
        return attention(q, k, v, mask=mask, query_offset=offset, implementation=Blockwise(4, 4))

    lengths, offset = jnp.asarray([5, 13]), jnp.asarray([0, -3])
    at, kv = np.arange(13)[:, None] + np.array([0, -3])[:, None, None, None], np.arange(13)
    allowed = (kv <= at) & (kv < np.array([5, 13])[:, None, None, None])
    spec = Spec(*(np.asarray(x, np.float64) for x in (q, k, v)), allowed=allowed)
    assert eta(np.asarray(run(q, k, v, lengths, offset)), truth(spec)["out"], "float32") <= 4


def test_nothing_of_the_score_matrix_is_shown_by_the_engine() -> None:
    x = np.zeros((1, 1, 4, 2))
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, implementation="blockwise", return_aux=AuxRequest(weights=True))
    assert str(caught.value) == (
        "polyattn.attention: expected a problem that the blockwise engine computes exactly for "
        "implementation='blockwise', got one with a wish for weights, which it does not take; use 'auto'"
    )


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "64"])
def test_a_tile_size_is_a_positive_integer(size: Any) -> None:
    with pytest.raises(ValueError) as caught:
        Blockwise(rows=size)
    assert str(caught.value) == (
        f"polyattn.Blockwise: expected rows to be a positive integer, got {size!r}; "
        "it is the number of score matrix entries along one side of a tile"
    )


def test_the_reference_refuses_before_it_allocates() -> None:
    x = np.broadcast_to(np.zeros(1), (1, 64, 100_000, 64))  # 4.7 TiB of scores, no memory of its own
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, implementation="reference")
    assert str(caught.value) == (
        "polyattn.attention: expected at most 4294967296 bytes of scores for the reference implementation, got "
        "10240000000000 for two score matrices (1, 64, 100000, 100000); use implementation='blockwise', which needs "
        "memory O(L + S), or Reference(max_bytes=...)"
    )
    with pytest.raises(ValueError, match="expected max_bytes to be an integer >= 0, got -1"):
        Reference(max_bytes=-1)
    small = np.zeros((3, 2))
    assert attention(small, small, small, implementation=Reference(max_bytes=144)).shape == (3, 2)


@pytest.mark.rule("rule-13", "rule-20")
def test_auto_says_what_ran() -> None:
    small, large = np.zeros((1, 1, 8, 4), np.float32), np.zeros((1, 1, 1024, 4), np.float32)
    request = AuxRequest(lse=True)
    assert attention(small, small, small, return_aux=request)[1].implementation == "reference"
    assert attention(large, large, large, return_aux=request)[1].implementation == "blockwise"
    with_weights = AuxRequest(weights=True)
    assert attention(large, large, large, return_aux=with_weights)[1].implementation == "reference"
    assert attention(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), return_aux=AuxRequest())[1].implementation == "native"  # fmt: skip
    assert polyattn.attention is attention
