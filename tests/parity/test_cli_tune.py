"""polyattn tune, and polyattn info --platform: tiles of kernels, from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shared.libraries import jax, polyattn_jax
from typer.testing import CliRunner, Result

from polyattn.cli import app
from polyattn.cli.program import AGREE, MISSING, USAGE
from polyattn.implementations import tuned


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def lines(result: Result) -> list[str]:
    assert result.exit_code == AGREE, result.output
    return result.stdout.splitlines()


@pytest.fixture
def kernels() -> Any:
    return polyattn_jax.backend.kernels()  # skips where JAX is not installed


@pytest.fixture
def quick(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing is run; the seconds of every call are those of a list that counts down."""
    asked: list[Any] = []

    def seconds(self: Any, trial: Any, way: str) -> float:
        asked.append((*trial, way))
        return 1.0 / len(asked)

    monkeypatch.setattr(type(kernels), "seconds", seconds)
    return asked


@pytest.mark.slow
def test_an_interpreted_trial_measures_and_writes_what_tuned_reads(kernels: Any, tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    result = run("tune", "--interpret", "--output", str(path))
    head, names, *rows = lines(result)
    assert head == "TPU v5 lite, interpreted: width 8, float32, 80 queries and keys, causal"
    assert names.split() == ["rows", "keys", "seconds"]
    found = [
        re.fullmatch(r"(forward|forward and backward) +(\d+) +(\d+) +([\d.e-]+) *(best)? *", row)
        for row in rows
    ]
    tiles = [(m[1], int(m[2]), int(m[3])) for m in found if m]
    assert tiles == [
        (way, *size) for way in ("forward", "forward and backward") for size in ((16, 16), (32, 16))
    ]
    best = [(int(m[2]), int(m[3])) for m in found if m and m[5]]
    with tuned(path) as (measured,):
        assert best == [(t.rows, t.keys) for t in (measured.forward, measured.backward)]
    assert measured.interpreted
    assert all(t.seconds > 0 for t in (measured.forward, measured.backward))


@pytest.mark.usefixtures("quick")
def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path, quick: list[Any]) -> None:
    path = tmp_path / "tiles.json"
    path.write_text("mine")
    kept = run("tune", "--interpret", "--output", str(path))
    assert (kept.exit_code, path.read_text(), quick) == (USAGE, "mine", [])
    assert kept.output == (
        f"polyattn tune: expected a new file, got {path}, which is there; add --force, or name another\n"
    )
    lines(run("tune", "--interpret", "--output", str(path), "--force"))
    with tuned(path) as found:
        assert len(found) == 1
    before = sorted(tmp_path.iterdir())
    lines(run("tune", "--interpret"))  # nothing is written where nothing is said
    assert sorted(tmp_path.iterdir()) == before


def test_every_width_dtype_and_length_is_an_entry(quick: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    given = {"--width": (8, 16, 8), "--dtype": ("float32", "bfloat16"), "--length": (70, 90)}
    words = [word for name, values in given.items() for value in values for word in (name, str(value))]
    lines(run("tune", "--interpret", *words, "--output", str(path)))
    with tuned(path) as found:
        kinds = [(m.width, m.dtype, m.length) for m in found]
    assert kinds == [(w, d, n) for w in (8, 16) for d in ("float32", "bfloat16") for n in (70, 90)]
    assert len(quick) == 8 * 4
    # The last was the fastest of its way.
    assert {(m.forward.rows, m.backward.rows) for m in found} == {(32, 32)}


def test_where_no_tiles_run_there_is_a_table_and_no_file(
    kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(kernels), "seconds", lambda self, trial, way: "Error: \x1b[31mno room")
    path = tmp_path / "tiles.json"
    result = run("tune", "--interpret", "--output", str(path))
    assert result.exit_code == USAGE
    assert "\x1b" not in result.output
    assert len(re.findall("no room", result.output)) == 2
    assert result.output.endswith(
        "polyattn tune: expected tiles that run on TPU v5 lite, got none of 2 that do for width 8 in float32; the table "
        "has the reasons: try another width or length\n"
    )
    assert not path.exists()


def test_a_machine_without_a_kernel_is_a_sentence(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("there is a chip here")
    here = run("tune")
    assert (here.exit_code, here.output) == (
        MISSING,
        "polyattn tune: expected a chip for which there are kernels, a TPU or a GPU, got none that jax computes on; run "
        "it where one is, or add --interpret to try the command\n",
    )
    for module in ("polyattn.cli.tuning", "polyattn.parity.auto"):
        monkeypatch.setattr(f"{module}.kernels_of", lambda libraries: None)
    for args in (("tune", "--interpret"), ("info", "--plan", "L=8", "--platform", "tpu")):
        without = run(*args)
        assert without.exit_code == MISSING
        assert re.fullmatch(
            rf"polyattn {args[0]}: expected JAX, .*, got .*; pip install 'polyattn\[jax\]'\n", without.output
        )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--dtype float64",
            "expected --dtype to be one of bfloat16, float16, float32, got 'float64'; choose one",
        ),
        (
            "--length 1025",
            "expected --length to be at most 1024 with --interpret, got 1025; try a shorter one",
        ),
        ("--dtype float16", "got width 8 in float16, and a TPU has no float16; choose another"),
    ],
)
def test_what_cannot_be_tuned_is_a_sentence(words: str, says: str, quick: list[Any]) -> None:
    result = run("tune", "--interpret", *words.split())
    assert (result.exit_code, result.output.count("\n"), quick) == (USAGE, 1, [])
    assert result.output.startswith("polyattn tune: expected ")
    assert says in result.output


@pytest.mark.usefixtures("kernels")
def test_a_plan_for_a_tpu_tells_tiles_memory_and_lists() -> None:
    chosen, forward, backward, memory, lists = lines(
        run("info", "--plan", "L=8192,D=128,causal=1,dtype=bfloat16", "--platform", "v5e")
    )
    assert chosen.startswith("jax on v5e: fused, because not native: there is no GPU")
    # 16 tiles of 512 rows meet keys up to their end in tiles of 1024: 1 1 2 2 ... 8 8; in tiles of 512: 1 2 ... 16.
    assert forward == (
        "fused, forward: tiles of 512 x 1024; of 128 of a head 72 are met, 16 with the mask, and 56 skipped"
    )
    assert backward == (
        "fused, backward: tiles of 512 x 512; of 256 of a head 136 are met, 16 with the mask, and 120 skipped"
    )
    assert re.fullmatch(r"fused, on the chip: about \d+ bytes of 134217728", memory)
    assert lists == f"fused, lists of visits: at most {8 * 136} bytes of 786432 for each"


@pytest.mark.usefixtures("kernels")
def test_a_plan_for_a_gpu_packs_the_heads_of_a_cache() -> None:
    found = lines(run("info", "--plan", "L=1,S=8192,H=8,Hkv=2,D=128,dtype=bfloat16", "--platform", "gpu"))
    assert found[1] == (
        "fused, forward: tiles of 16 x 128, 4 heads in one; of 64 of a head 64 are met, 0 with the mask, and 0 skipped"
    )
    assert found[-1] == "fused, lists of visits: at most 1280 bytes in its main memory"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("plan", "platform", "first", "second"),
    [
        ("L=4096,dtype=float64", "h100", "blockwise, because not native: ", "kernels have no float64"),
        ("L=4096,dtype=float16", "tpu", "blockwise, because not native: ", "a TPU has no float16; "),
        (
            "L=4096,D=4096",
            "gpu",
            "blockwise, because not native: ",
            "tiles of width 4096 and 4096 take about ",
        ),
        (
            "L=262144,H=1,D=64",
            "v5p",
            "blockwise, because not native: ",
            "the lists of visits take 4194304 bytes, ",
        ),
    ],
)
def test_a_refusal_has_its_reason_where_auto_goes_on(
    plan: str, platform: str, first: str, second: str
) -> None:
    chosen, refused = lines(run("info", "--plan", plan, "--platform", platform))
    assert chosen.startswith(f"jax on {platform}: {first}")
    assert refused.startswith(f"fused is refused: {second}")
    assert f"not fused: {refused.removeprefix('fused is refused: ')}" in chosen


@pytest.mark.usefixtures("kernels")
def test_small_problems_go_to_the_definition_and_the_kernel_is_told_all_the_same() -> None:
    chosen, *rest = lines(run("info", "--plan", "L=64,S=80,window=9,softcap=30,sinks=1", "--platform", "v6e"))
    assert chosen.startswith("jax on v6e: reference, because ")
    assert "not fused: the scores take at most 1 MiB" in chosen
    assert len(rest) == 4
    assert lines(run("info", "--plan", "L=0", "--platform", "v6e"))[1:] == ["fused has nothing to compute"]


@pytest.mark.usefixtures("kernels")
def test_a_platform_that_is_none_and_a_platform_alone_are_sentences() -> None:
    for args, says in (
        (("--plan", "L=8", "--platform", "cpu"), "polyattn info: expected --platform to be one of tpu, gpu, v5e, v5p, "
         "v6e, h100, got 'cpu'; choose one of them\n"),
        (("--platform", "tpu"), "polyattn info: expected --plan with --platform, got --platform alone; add a problem, "
         "--plan L=4096,H=8\n"),
        (("--plan", "L=1000000,S=1000000,H=1", "--platform", "tpu"), "polyattn info: expected a plan with at most "
         "68719476736 scores a head with --platform, got 1000000 x 1000000; plan a smaller problem\n"),
    ):  # fmt: skip
        result = run("info", *args)
        assert (result.exit_code, result.output) == (USAGE, says)
