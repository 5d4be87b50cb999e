"""The fused kernels of JAX are the definition: interpreted for both chips here, lowered for them, refused with a reason."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest
from shared.libraries import JaxBench, jax, jnp

from polyattn import AuxRequest, Fused, attention, masks, mods
from polyattn.implementations.fused import visits
from polyattn.parity import ACCEPTANCE
from polyattn.parity.cases import cases
from polyattn.problem import pose
from polyattn.testing import check_backend

pytestmark = pytest.mark.rule("rule-20")

PLATFORMS = ("tpu", "gpu")
#: Sides of tiles that cut nine rows and keys raggedly; those of a GPU are powers of two from 16 on.
TILES = {"tpu": (4, 5), "gpu": (16, 16)}
QUICK = ("causal last rows", "softcap bias mask", "sinks and empty rows")
#: What the kernels refuse by name: they form softmax averages.
OTHER_AVERAGES = {case.name for case in cases() if "rule-22" in case.rules}
RNG = np.random.default_rng(0)


def kernel(platform: str, *tile: int) -> Fused:
    return Fused(*(tile or TILES[platform]), platform=platform, interpret=True)


def agrees(platform: str, dtype: str, names: tuple[str, ...]) -> None:
    only = [case for case in cases() if case.name in names and case.name not in OTHER_AVERAGES]
    fused = functools.partial(attention, implementation=kernel(platform))
    assert len(check_backend(JaxBench(), dtypes=[dtype], only=only, attention=fused)) == len(only)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_kernels_agree_on_some_cases_with_gradients(platform: str) -> None:
    agrees(platform, "float32", QUICK)


@pytest.mark.rule("rule-21")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "part", "platform"),
    [
        # Every case on both platforms, by turns in float32 and bfloat16.
        *(("float32", part, PLATFORMS[part % 2]) for part in range(4)),
        *(("bfloat16", part, PLATFORMS[1 - part % 2]) for part in range(4)),
    ],
)
def test_kernels_agree_on_every_case_with_gradients(dtype: str, part: int, platform: str) -> None:
    agrees(platform, dtype, tuple(case.name for case in cases())[part::4])


# What a chip's compiler is given.

LENGTH = 300
IDS = np.sort(np.arange(LENGTH) * 7 % 5).astype(np.int32)
ASKED: dict[str, Any] = {
    "full": dict,
    "causal": lambda: {"is_causal": True},
    "window": lambda: {"mask": masks.window(50, 3)},
    "documents": lambda: {"mask": masks.segments(jnp.asarray(IDS)) & masks.causal()},
    "array": lambda: {"mask": jnp.asarray(IDS[:, None] > IDS)},
    "function": lambda: {"mask": lambda b, h, q, kv: (jnp.asarray(IDS)[q] == jnp.asarray(IDS)[kv]) | (q % 3 == kv)},
    "lengths": lambda: {"mask": masks.key_lengths([3, 200]) & masks.query_lengths(jnp.asarray([9, 300]))},
    "offsets": lambda: {"mask": masks.causal(), "query_offset": jnp.asarray([3, 5])},
    "positions": lambda: {"mask": masks.causal(), "query_positions": jnp.asarray(IDS), "key_positions": jnp.asarray(IDS)},
    "bias": lambda: {"bias": jnp.zeros((1, 4, LENGTH, LENGTH))},
    "soft cap": lambda: {"score_mod": mods.softcap(jnp.asarray(30.0)), "is_causal": True},
    "alibi": lambda: {"score_mod": mods.alibi(4)},
    "buckets": lambda: {"score_mod": mods.relative_position_bias(jnp.zeros((8, 4)), max_distance=20)},
    "scale": lambda: {"scale": jnp.ones(4)},
    "sinks": lambda: {"sinks": jnp.zeros(4)},
    "dropout": lambda: {"dropout_rate": 0.1, "dropout_seed": 3},
}  # fmt: skip


def lowered(platform: str, f: Any, *shapes: Any) -> str:
    from polyattn_jax.targets import target

    names = {"tpu": "tpu", "gpu": "cuda"}
    with jax.sharding.use_abstract_mesh(target({"tpu": "v5e", "gpu": "h100"}[platform]).mesh):
        return jax.jit(f).trace(*shapes).lower(lowering_platforms=(names[platform],)).as_text()


def shapes(dtype: str = "bfloat16", length: int = LENGTH, width: int = 80) -> list[Any]:
    return [jax.ShapeDtypeStruct((2, heads, length, width), dtype) for heads in (4, 2, 2)]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_feature_is_lowered_for_the_chip(platform: str, asked: str) -> None:
    options = ASKED[asked]()

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(attention(q, k, v, **options, implementation="fused").astype(jnp.float32))

    text = lowered(platform, jax.grad(loss, argnums=(0, 1, 2)), *shapes())
    for part in ("average", "pull_queries", "pull_keys"):
        assert f"polyattn_{part}" in text


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_lowered_program_does_not_grow_with_the_length(platform: str) -> None:
    def lines(length: int) -> int:
        f = functools.partial(attention, is_causal=True, implementation="fused")
        return lowered(platform, f, *shapes(length=length)).count("\n")

    assert lines(2048) == lines(8192)


def test_empty_tiles_are_not_visited_and_full_ones_not_masked() -> None:
    x = np.zeros((1, 1, 64, 1), np.float32)
    p = pose("test", x, x, x, is_causal=True)
    (by_query,), (by_key,) = visits(p, 16, 16)
    assert by_query == tuple((*([(0, i, False)] if i else []), (i, i + 1, True)) for i in range(4))
    assert by_key == tuple((*([(j + 1, 4, False)] if j < 3 else []), (j, j + 1, True)) for j in range(4))


def test_hidden_tiles_cost_no_step_of_the_grid() -> None:
    from polyattn_jax.fused import tpu

    x = np.zeros((1, 1, 512, 1), np.float32)
    p = pose("test", x, x, x, mask=masks.window(16, 0))
    whose, _, steps = tpu.listed(visits(p, 16, 16)[0], 1)
    assert steps == len(whose) == 31 + 32  # of 1024


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_heads_that_share_keys_are_rows_of_one_tile_when_rows_are_few(platform: str, rows: int) -> None:
    q, k, v = (
        jnp.asarray(RNG.normal(size=s), jnp.float32)
        for s in ((2, 8, rows, 16), (2, 2, 300, 16), (2, 2, 300, 24))
    )
    found: list[Any] = []
    options = {
        "mask": masks.causal() & masks.key_lengths([300, 7]),
        "query_offset": jnp.asarray([290, 100]),
        "sinks": jnp.arange(8.0),
        "score_mod": mods.alibi(8),
        "return_aux": AuxRequest(lse=True),
    }  # fmt: skip
    for wish in (kernel(platform, 16, 64), "reference"):
        out, aux = attention(q, k, v, **options, implementation=wish)
        found.append((np.asarray(out), np.asarray(aux.lse)))
    for x, y in zip(*found, strict=True):
        assert np.max(np.abs(x - y)) <= ACCEPTANCE * 2.0**-24 * np.max(np.abs(y))


def test_a_machine_without_a_kernel_is_told_so() -> None:
    x = jnp.ones((1, 1, 4, 8))
    with pytest.raises(
        ValueError, match="there are kernels for TPU and GPU, and the arrays are on cpu; use 'auto'"
    ):
        attention(x, x, x, implementation="fused")
    with pytest.raises(ValueError, match="the kernel is for tpu, and the arrays are on cpu"):
        attention(x, x, x, implementation=Fused(platform="tpu"))


REFUSED = {
    "float64": ("tpu", "float64", {}, "kernels have no float64"),
    "float16 on a TPU": ("tpu", "float16", {}, "a TPU has no float16; bfloat16 is its half precision"),
    "rows of a TPU": ("tpu", "float32", {"implementation": Fused(rows=100)}, "rows=100, and a TPU has tiles of a multiple"),
    "keys of a GPU": ("gpu", "float32", {"implementation": Fused(keys=48)}, "keys=48, and a GPU has tiles of a power of two"),
    "memory": ("gpu", "float32", {"implementation": Fused(256, 256)}, r"take about \d+ bytes on the chip, and NVIDIA H100"),
    "a sorted score": (
        "tpu", "float32", {"score_mod": lambda s, b, h, q, kv: jnp.sort(s, -1)},
        "its functions do more with a row and a key together than kernels have: sort",
    ),
    "an array as a whole": (
        "gpu", "float32", {"score_mod": lambda s, b, h, q, kv: s + jnp.asarray(IDS, jnp.float32)},
        "its functions use an array as a whole, not by the numbers of rows or keys",
    ),
    "a table of both": (
        "tpu", "float32", {"mask": lambda b, h, q, kv: jnp.asarray(np.ones((LENGTH, LENGTH), bool))[q, kv]},
        "its functions do more with a row and a key together than kernels have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_kernels_have_not_is_refused_before_they_are_compiled(name: str) -> None:
    platform, dtype, options, sentence = REFUSED[name]
    options = {"implementation": "fused"} | options
    with jax.enable_x64(dtype == "float64"), pytest.raises(ValueError, match=sentence) as refusal:
        lowered(platform, functools.partial(attention, **options), *shapes(dtype))
    assert re.match("polyattn.attention: expected .*, got .*; use 'auto'$", str(refusal.value))


def test_auto_takes_the_kernel_of_the_chip_that_a_program_is_for_and_says_so() -> None:
    def f(said: list[str], q: Any, k: Any, v: Any, **options: Any) -> Any:
        out, aux = attention(q, k, v, **options, return_aux=AuxRequest())
        said.append(aux.implementation)
        return out

    said: list[str] = []
    for platform in PLATFORMS:
        lowered(platform, functools.partial(f, said, is_causal=True), *shapes("float32"))
    lowered("tpu", functools.partial(f, said, score_mod=lambda s, *_: jnp.sort(s, -1)), *shapes("float32"))
    assert said == ["fused", "fused", "blockwise"]


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "16"])
def test_a_size_of_tiles_is_a_positive_integer(size: Any) -> None:
    with pytest.raises(
        ValueError, match=r"polyattn.Fused: expected rows to be a positive integer, got .*; it is"
    ):
        Fused(rows=size)


def test_a_platform_is_one_that_has_kernels() -> None:
    with pytest.raises(
        ValueError, match=r"polyattn.Fused: expected platform 'tpu' or 'gpu', got 'cuda'; leave it out"
    ):
        Fused(platform="cuda")
    with pytest.raises(
        TypeError, match=r"polyattn.Fused: expected interpret to be True or False, got 1; pass a bool"
    ):
        Fused(interpret=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_program_traced_for_a_chip_runs_on_a_machine_that_has_none(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # JAX computes on a chip by default, and the program is compiled for the CPU, as for arrays that lie there.
    from polyattn_jax import eager, fused
    from polyattn_jax.fused import chips

    here = {"tpu": ("tpu", "TPU v5 lite"), "gpu": ("gpu", "NVIDIA H100 80GB HBM3")}[platform]
    for module in (eager, fused, chips):
        monkeypatch.setattr(module, "device_of", lambda x: here)
    q, k, v = (jnp.asarray(RNG.normal(size=(2, h, 40, 8)), jnp.float32) for h in (4, 2, 2))
    slopes = jnp.asarray([0.5, 1.0, 2.0, 4.0])
    said = []

    def loss(implementation: str, q: Any, k: Any, v: Any, slopes: Any) -> Any:
        out, aux = attention(
            q, k, v, is_causal=True, score_mod=mods.alibi(slopes), implementation=implementation,
            return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        said.append(aux.implementation)
        return jnp.sum(out * out) + jnp.sum(aux.lse)

    found, true = (
        jax.jit(jax.value_and_grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(q, k, v, slopes)
        for name in ("fused", "reference")
    )
    assert said == ["fused", "reference"]
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
        assert np.max(np.abs(x - y)) <= ACCEPTANCE * 2.0**-24 * q.shape[2] * np.max(np.abs(y))
