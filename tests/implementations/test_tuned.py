"""Measured tile sizes: what a file may hold, which calls go by it, and how the best are found."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, polyattn_jax

from polyattn import Fused, attention
from polyattn.implementations import tuned
from polyattn.implementations.fused import Measured, Tiles, Trial, counted, preferring, unfit
from polyattn.implementations.fused.measured import as_text, read
from polyattn.implementations.fused.tuning import tune
from polyattn.problem import Problem, pose
from polyattn.truth import ACCEPTANCE, Spec, eta, truth

ROWS = 80
MINE = Measured("TPU v5 lite", "tpu", True, "float32", 8, ROWS, Tiles(24, 16, 0.5), Tiles(16, 32, 1.0))
INTERPRETED = Fused(interpret=True)


def arrays(rows: int = ROWS, width: int = 8) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(1, 1, rows, width)), jnp.float32) for _ in range(3))  # type: ignore[return-value]


def sizes(settings: Any = INTERPRETED, rows: int = ROWS, width: int = 8, **options: Any) -> Any:
    """Rows and keys of the tiles of both ways."""
    from polyattn_jax.fused.sizes import tile_sizes

    p = pose("polyattn.attention", *arrays(rows, width), is_causal=True, **options)
    chip = polyattn_jax.fused.wanted_chip(p.q, settings)
    return tuple(map(tuple, tile_sizes(p, chip, settings)))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*measured: Measured) -> Path:
        path = tmp_path / "tiles.json"
        path.write_text(as_text(measured))
        return path

    return write


def test_a_file_counts_within_its_context_alone(file: Callable[..., Path]) -> None:
    path = file(MINE)
    usual = sizes()
    with tuned(path) as found:
        assert found == (MINE,)
        assert sizes() == ((24, 16), (16, 32)) != usual
        with tuned(str(file())):  # an empty one: the innermost alone
            assert sizes() == usual
        assert sizes() == ((24, 16), (16, 32))
        elsewhere: list[Any] = []
        thread = threading.Thread(target=lambda: elsewhere.append(sizes()))
        thread.start()
        thread.join()
        assert elsewhere == [usual]
    assert sizes() == usual


def test_an_entry_counts_for_its_chip_dtype_and_width_and_not_for_decoding() -> None:
    for other in (
        replace(MINE, chip="TPU v6"),
        replace(MINE, interpreted=False),
        replace(MINE, dtype="bfloat16"),
        replace(MINE, width=16),
    ):
        with preferring([other]):
            assert sizes() == sizes_of_the_table()
    with preferring([MINE]):
        assert sizes(rows=64) == sizes_of_the_table(rows=64)
        assert sizes(rows=65) == ((24, 16), (16, 32))


def sizes_of_the_table(**more: Any) -> Any:
    with preferring([]):
        return sizes(**more)


def test_the_entry_of_the_longest_length_below_counts_else_the_shortest() -> None:
    def entry(length: int) -> Measured:
        return replace(MINE, length=length, forward=Tiles(length, length, 1.0))

    with preferring([entry(200), entry(100), entry(400)]):
        lengths = {rows: sizes(rows=rows)[0][0] for rows in (80, 100, 199, 200, 399, 500)}
    assert lengths == {80: 100, 100: 100, 199: 100, 200: 200, 399: 200, 500: 400}


def test_what_is_asked_for_wins_over_the_file() -> None:
    with preferring([MINE]):
        assert sizes(Fused(rows=40, interpret=True)) == ((40, 16), (40, 32))
        assert sizes(Fused(keys=8, interpret=True)) == ((24, 8), (16, 8))
        assert sizes(Fused(40, 8, interpret=True)) == ((40, 8), (40, 8))


@pytest.mark.slow
@pytest.mark.rule("rule-20")
def test_programs_are_kept_by_their_tiles_and_all_are_right() -> None:
    q, k, v = arrays()
    spec = Spec(*(np.asarray(x, np.float64) for x in (q, k, v)), allowed=np.tri(ROWS, dtype=bool))
    judged = truth(spec, np.ones((1, 1, ROWS, 8)))
    programs = polyattn_jax.eager._compiled.cache_info

    def gradient(*x: Any) -> Any:
        def total(*x: Any) -> Any:
            return attention(*x, is_causal=True, implementation=INTERPRETED).sum()

        return jax.jit(jax.grad(total))(*x)

    before, tiles = programs().misses, [[], [MINE], [replace(MINE, forward=Tiles(32, 8, 1.0))]]
    for new, entries in enumerate((*tiles, *tiles)):
        with preferring(entries):
            out = attention(q, k, v, is_causal=True, implementation=INTERPRETED)
            assert eta(np.asarray(out), judged["out"], "float32") <= ACCEPTANCE
            if new == 1:
                assert eta(np.asarray(gradient(q, k, v)), judged["dq"], "float32") <= ACCEPTANCE
        assert programs().misses - before == min(new + 1, len(tiles))


def test_a_traced_function_has_the_tiles_that_counted_where_it_was_traced() -> None:
    def steps() -> str:
        return str(
            jax.make_jaxpr(lambda *x: attention(*x, is_causal=True, implementation=INTERPRETED))(*arrays())
        )

    with preferring([MINE]):
        assert "(24, 8)" in tiles_in(steps())
    assert "(24, 8)" not in tiles_in(steps())


def tiles_in(text: str) -> set[str]:
    """The shapes of float32 arrays of rank 2 in a program."""
    return {f"({a}, {b})" for a, b in re.findall(r"f32\[(\d+),(\d+)\]", text)}


def on_v5e(look: Callable[[Any], Any]) -> None:
    """look(x), of queries of width 128 without numbers, as a program for a chip that is not here."""
    from polyattn_jax.targets import target

    with jax.sharding.use_abstract_mesh(target("v5e").mesh):
        jax.eval_shape(look, jax.ShapeDtypeStruct((1, 1, 8192, 128), jnp.float32))


REAL = replace(MINE, interpreted=False, width=128, length=8192, forward=Tiles(128, 128, 1.0))


@pytest.mark.parametrize("way", ["auto", "fused", Fused()], ids=str)
def test_tiles_that_have_no_room_on_the_chip_are_refused_by_the_call(way: Any) -> None:
    large = replace(REAL, backward=Tiles(4096, 4096, 1.0))

    def call() -> Callable[[Any], Any]:  # a new one, as JAX keeps what it has traced
        return lambda x: attention(x, x, x, is_causal=True, implementation=way)

    on_v5e(call())
    with preferring([large]), pytest.raises(ValueError) as refusal:
        on_v5e(call())
    assert str(refusal.value) == (
        "polyattn.attention: expected a file of tile sizes that fit the memory of TPU v5 lite in polyattn."
        "implementations.tuned, got 128 x 128 and 4096 x 4096 for width 128 of float32, about 293601280 bytes of "
        "134217728; write it anew with `polyattn tune --output FILE`"
    )


def test_tiles_for_which_a_bias_leaves_no_room_are_those_of_the_table() -> None:
    found: list[Any] = []

    def look(x: Any) -> None:
        for bias in (None, jnp.zeros((1, 1, 8192, 8192), jnp.float32)):
            p = pose("polyattn.attention", x, x, x, is_causal=True, bias=bias)
            chip = polyattn_jax.fused.wanted_chip(x, Fused())
            found.append(tuple(map(tuple, polyattn_jax.fused.sizes.tile_sizes(p, chip, Fused()))))

    with preferring([replace(REAL, backward=Tiles(2048, 3072, 1.0))]):
        on_v5e(look)
    assert found == [((128, 128), (2048, 3072)), ((256, 512), (256, 512))]


def entry(**changes: Any) -> dict[str, Any]:
    return asdict(replace(REAL, backward=Tiles(128, 256, 1.0))) | changes


def whole(**changes: Any) -> dict[str, Any]:
    return {"polyattn": "tile sizes", "version": 1, "measured": [entry()]} | changes


KEYS = "chip, platform, interpreted, dtype, width, length, forward, backward"
REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "JSON, got what is none in line 1"),
    "no text": (b"\xff\xfe", "text of JSON in UTF-8, got other bytes"),
    "deep": (b"[" * 200_000, "JSON of three levels, got far more"),
    "long": (b" " * (2**20 + 1), "at most 1048576 bytes, got more"),
    "a list": ([], "the file to be an object with polyattn, version, measured, got []"),
    "another file": (
        {"a": 1},
        "the file to have polyattn, version, measured, got it without polyattn",
    ),
    "more": (whole(extra=1), "the file to have polyattn, version, measured, got it with 'extra'"),
    "another kind": (whole(polyattn="weights"), "'polyattn' to be 'tile sizes', got weights"),
    "a later version": (whole(version=2), "'version' to be 1, got 2"),
    "a version that is True": (whole(version=True), "'version' to be 1, got True"),
    "no entries": (whole(measured={}), "'measured' to be a list, got a dict of nothing"),
    "an entry that is none": (whole(measured=[1]), f"measured[0] to be an object with {KEYS}, got 1"),
    "an unknown key": (whole(measured=[entry(speed=1)]), f"measured[0] to have {KEYS}, got it with 'speed'"),
    "no tiles": (
        whole(measured=[entry(forward=[128, 128])]),
        "measured[0].forward to be an object with rows, keys, seconds, got [128, 128]",
    ),
    "a chip that is a number": (whole(measured=[entry(chip=5)]), "measured[0].chip to be a word, got 5"),
    "a word for a bool": (
        whole(measured=[entry(interpreted="no")]),
        "measured[0].interpreted to be true or false, got no",
    ),
    "a platform": (
        whole(measured=[entry(platform="cpu")]),
        "measured[0].platform to be one of 'tpu', 'gpu', got cpu",
    ),
    "a dtype": (
        whole(measured=[entry(dtype="float64")]),
        "measured[0].dtype to be one of 'bfloat16', 'float16', 'float32', got float64",
    ),
    "a width of 0": (
        whole(measured=[entry(width=0)]),
        "measured[0].width to be a positive integer below 2**31, got 0",
    ),
    "a length that is True": (
        whole(measured=[entry(length=True)]),
        "measured[0].length to be a positive integer below 2**31, got True",
    ),
    "rows with a point": (
        whole(measured=[entry(forward={"rows": 128.0, "keys": 128, "seconds": 1})]),
        "measured[0].forward.rows to be a positive integer below 2**31, got 128.0",
    ),
    "no seconds": (
        whole(measured=[entry(forward={"rows": 128, "keys": 128, "seconds": -1})]),
        "measured[0].forward.seconds to be a number of seconds, got -1",
    ),
    "tiles of no TPU": (
        whole(measured=[entry(forward={"rows": 100, "keys": 128, "seconds": 1})]),
        "tiles that TPU v5 lite can have in measured[0].forward, got rows=100, and a TPU has tiles of a multiple of 128",
    ),
    "tiles of no GPU": (
        whole(
            measured=[entry(platform="gpu", chip="H", backward={"rows": 64, "keys": 48, "seconds": 1})]
        ),
        "tiles that H can have in measured[0].backward, got keys=48, and a GPU has tiles of a power of two from 16 on",
    ),
    "twice the same": (
        whole(measured=[entry(), entry()]),
        "one entry for a chip, dtype, width and length, got a second one, measured[1]",
    ),
    "a key twice": (b'{"version": 1, "version": 1}', "every key once, got 'version' twice"),
    "not a number": (
        json.dumps(whole(measured=[entry(forward={"rows": 128, "keys": 128, "seconds": float("nan")})])).encode(),
        "measured[0].forward.seconds to be a number of seconds, got nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_holds_anything_else_is_refused_in_a_sentence(what: str, tmp_path: Path) -> None:
    found, says = REFUSED[what]
    path = tmp_path / "tiles.json"
    path.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
    with pytest.raises(ValueError) as refusal, tuned(path):
        pass
    assert str(refusal.value) == (
        f"polyattn.implementations.tuned: expected {says}; write it anew with `polyattn tune --output FILE`"
    )


def test_a_path_that_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind, says in (
        (tmp_path / "nowhere", FileNotFoundError, "where there is none"),
        (tmp_path, ValueError, "which is none"),
        (tmp_path / "pipe", ValueError, "which is none"),
        ("a\0b", ValueError, "with a zero in it"),
        (b"tiles", TypeError, "expected a path, got b'tiles'"),
        (5, TypeError, "expected a path, got 5"),
    ):
        with pytest.raises(
            kind, match=r"^polyattn\.implementations\.tuned: expected .*, got .*; "
        ) as refusal:
            read(path)
        assert says in str(refusal.value)


class Chip:
    """Kernels of a chip on which every tile takes its time, or does not run."""

    targets = ()

    def __init__(self, seconds: dict[str, dict[tuple[int, int], float | str]]) -> None:
        self._seconds, self._tiles = seconds, iter([(w, t) for w in seconds for t in seconds[w]])
        self.preferred: list[Any] = []

    def candidates(self, trial: Trial, way: str) -> list[tuple[int, int]]:
        return list(self._seconds[way])

    def seconds(self, trial: Trial, way: str) -> float | str:
        from polyattn.implementations.fused import measured_for

        found = measured_for("mine", trial.interpret, trial.dtype, trial.width, trial.length)
        assert found is not None
        self.preferred.append(tuple((t.rows, t.keys) for t in (found.forward, found.backward)))
        tiles: Tiles = getattr(found, way)
        return self._seconds[way][tiles.rows, tiles.keys]


def test_the_fastest_tiles_are_found_the_backward_ones_beside_the_best_forward() -> None:
    chip = Chip(
        {
            "forward": {(16, 16): 3.0, (32, 16): 1.0, (32, 32): "too large"},
            "backward": {(16, 32): 4.0, (64, 16): 2.0},
        }
    )
    told: list[Any] = []
    found, tried = tune(chip, ("mine", "gpu"), Trial(64, "bfloat16", 256, False), told.append)  # type: ignore[arg-type]
    assert found == Measured(
        "mine", "gpu", False, "bfloat16", 64, 256, Tiles(32, 16, 1.0), Tiles(64, 16, 2.0)
    )
    assert tuple(told) == tried
    assert [t.seconds for t in tried] == [3.0, 1.0, None, 4.0, 2.0]
    assert tried[2].why_not == "too large"
    assert chip.preferred[-2:] == [((32, 16), (16, 32)), ((32, 16), (64, 16))]
    none, tried = tune(
        Chip({"forward": {(16, 16): "no"}, "backward": {(16, 16): 1.0}}),  # type: ignore[arg-type]
        ("mine", "gpu"),
        Trial(64, "bfloat16", 256, False),
        told.append,
    )
    assert (none, len(tried)) == (None, 1)


@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e", "h100"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_candidates_are_tiles_that_the_chip_can_have(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyattn_jax.fused import chips, kernels
    from polyattn_jax.targets import TARGETS

    at_hand = chips._named(TARGETS[name].platform, TARGETS[name].kind)
    monkeypatch.setattr(kernels, "_here", lambda interpret: at_hand)
    assert kernels.KERNELS.chip(False) == (TARGETS[name].kind, TARGETS[name].platform)
    counts = []
    for width in (64, 128, 256):
        trial = Trial(width, dtype, 8192, False)
        assert kernels.KERNELS.why_not(trial) is None
        for way in ("forward", "backward"):
            found = kernels.KERNELS.candidates(trial, way)
            assert [r * k for r, k in found] == sorted(r * k for r, k in set(found))
            assert all(unfit(at_hand.platform, "rows", n) is None for s in found for n in s)
            counts.append(len(found))
    assert counts[0] > counts[-1] or at_hand.platform == "tpu"
    short = kernels.KERNELS.candidates(Trial(64, dtype, 100, False), "forward")
    assert max(max(s) for s in short) == 128  # beyond, all tiles are one
    wide = kernels.KERNELS.why_not(Trial(2**16, dtype, 8192, False))
    assert wide == f"tiles of width 65536 have no room in the {at_hand.memory} bytes of {at_hand.kind}"


@pytest.mark.parametrize("name", ["causal", "ragged", "window", "documents"])
def test_what_is_counted_is_what_the_mask_says_of_each_tile(name: str) -> None:
    from polyattn import masks

    options: dict[str, Any] = {
        "causal": {"is_causal": True},
        "ragged": {},
        "window": {"mask": masks.window(7, 2)},
        "documents": {"mask": masks.segments(np.array([[0] * 30 + [1] * 40, [0] * 65 + [1] * 5]))},
    }[name]
    x = np.zeros((2, 1, 70, 4), np.float32)
    p: Problem = pose("polyattn.attention", x, x, x, **options)
    for rows, keys in ((16, 16), (7, 10), (128, 16), (16, 128)):
        everything = masks.causal() | ~masks.causal()
        grids = [
            (everything if p.mask is None else p.mask).tiles(70, 70, (rows, keys), b=b)
            for b in range(2 if name == "documents" else 1)
        ]
        met = [
            tile.name == "PARTIAL" or (j + 1) * keys > 70
            for one in grids
            for line in one
            for j, tile in enumerate(line)
            if tile.name != "EMPTY"
        ]
        found = counted(p, rows, keys)
        assert (found.met, found.masked) == (len(met), sum(met))
        assert found.every == (2 if name == "documents" else 1) * -(-70 // rows) * -(-70 // keys)
