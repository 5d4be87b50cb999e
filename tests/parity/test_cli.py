"""The command line: exit statuses, files, and text that cannot break out."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from polyattn import attention, masks, testing
from polyattn.cli import app
from polyattn.implementations import TRANSFORMS
from polyattn.masks.grammar import parse_mask
from polyattn.models.real import real_input
from polyattn.parity import ACCEPTANCE, Spec, eta, truth
from polyattn.parity.cases import cases
from polyattn.parity.verify import QUICK, plan


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_verify_of_one_backend_agrees_and_writes_reports(tmp_path: Path) -> None:
    report, junit = tmp_path / "report.json", tmp_path / "report.xml"
    cases = [part for name in ("golden", "MiniLM", "sinks") for part in ("--case", name)]
    written = ("--json", str(report), "--junit", str(junit))
    result = run("verify", "--backend", "numpy", "--dtype", "float32", *cases, *written)
    assert result.exit_code == 0, result.output
    assert "golden six tokens" in result.output
    assert "MiniLM layer 6" in result.output
    assert "AGREE:" in result.output
    data = json.loads(report.read_text())
    assert data["agrees"] is True
    assert data["versions"].keys() == {"numpy"}
    assert all(0 <= eta <= 4 for o in data["outcomes"] for eta in o["eta"].values())
    suite = ElementTree.fromstring(junit.read_text())
    assert suite.get("tests") == str(len(data["outcomes"]))
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "0", "0")
    tests = {test.get("name"): test for test in suite.iter("testcase")}
    assert tests.keys() == {outcome["case"] for outcome in data["outcomes"]}
    assert float(suite.get("time", "")) >= max(float(test.get("time", "")) for test in tests.values()) > 0
    for outcome in data["outcomes"]:
        told = {p.get("name"): p.get("value") for p in tests[outcome["case"]].iter("property")}
        assert told == {f"eta {name}": f"{eta:.3g}" for name, eta in outcome["eta"].items()}
        assert outcome["seconds"] > 0


def test_a_quick_look_is_a_part_and_says_so() -> None:
    known = {case.name for case in (*cases(), *real_input()[0])}
    assert set(QUICK) <= known
    assert len(QUICK) < len(known) / 3
    result = run("verify", "--quick", "--backend", "numpy")
    assert result.exit_code == 0, result.output
    announced, *_ = result.stderr.splitlines()
    assert announced == (
        f"{len(QUICK)} results of numpy (f32), on {', '.join(c.name for c in plan(['numpy'], more=real_input()[0], quick=True).cases)}; "
        "about 5 seconds on two cores"
    )
    shown = [
        line.split("  ")[0].rstrip("0123456789. ✓") for line in result.stdout.splitlines() if "✓" in line
    ]
    assert sorted(name.rstrip() for name in shown) == sorted(name.rstrip(" 1") for name in QUICK)
    assert "f64" not in result.stdout
    assert result.stdout.rstrip().endswith("; a quick look, leave out --quick for all")
    half = run("verify", "--quick", "--backend", "numpy", "--dtype", "float16", "--case", "alibi")
    assert half.stderr.startswith("1 result of numpy (f16), on alibi; about ")


class Wrong(testing.NumpyBench):
    """A library whose numbers are a little off, and whose name is hostile."""

    name = "numpy"

    def numpy(self, x: object) -> object:
        return super().numpy(x) * 1.0001  # type: ignore[arg-type]


def test_verify_of_wrong_numbers_disagrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("polyattn.parity.bench._loaders", lambda: {"numpy": lambda: Wrong})
    result = run("verify", "--dtype", "float32", "--case", "plain", "--junit", str(tmp_path / "r.xml"))
    assert result.exit_code == 1
    assert "DISAGREE: 1 of 1 results" in result.output
    assert "✗" in result.output
    assert ElementTree.fromstring((tmp_path / "r.xml").read_text()).get("failures") == "1"


def test_a_missing_backend_that_was_asked_for_is_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise ImportError("No module named 'jax'", name="jax")

    bench = testing.BENCHES["numpy"]
    known = {"numpy": lambda: bench, "jax": missing}
    monkeypatch.setattr("polyattn.parity.bench._loaders", lambda: known)
    result = run("verify", "--backend", "jax")
    assert result.exit_code == 3
    assert result.output == (
        "polyattn verify: expected the library of the bench 'jax', which was asked for, got No module named 'jax'; "
        "pip install jax\n"
    )
    unasked = run("verify", "--dtype", "float32", "--case", "plain")
    assert unasked.exit_code == 0
    assert "note: jax was not run: No module named 'jax'" in unasked.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--backend", "nump"],
            f"polyattn verify: expected a bench among {', '.join(testing.BENCHES)}, got 'nump'; choose one of them",
        ),
        (
            ["--dtype", "int8"],
            "polyattn verify: expected a dtype among float64, float32, float16, bfloat16, got 'int8'; choose one",
        ),
        (
            ["--case", "nothing of the kind"],
            "polyattn verify: expected a part of the name of a case, got 'nothing of the kind'; there are golden",
        ),
        (
            ["--backend", "strict", "--dtype", "float16", "--case", "plain"],
            "polyattn verify: expected a case that runs on strict in float16, got none among plain; choose others",
        ),
        (
            ["--peers", "--case", "MiniLM"],
            "expected cases of the contract with --peers, got MiniLM, real input alone",
        ),
        (["--json", "/nowhere/at/all.json"], "expected an existing folder for /nowhere/at/all.json"),
        (["--seed", "-1"], "Input should be greater than or equal to 0"),
    ],
)
def test_wrong_usage_is_status_2_and_a_sentence(args: list[str], sentence: str) -> None:
    result = run("verify", *args)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_info_names_versions_and_precision() -> None:
    result = run("info")
    assert result.exit_code == 0
    for word in ("numpy", "strict", "jax", "torch", "JAX x64: off", "float32 matmul precision"):
        assert word in result.output


def test_info_says_what_each_implementation_takes() -> None:
    lines = run("info").output.splitlines()
    assert "torch: the definition takes everything; goes through " + ", ".join(TRANSFORMS) in lines
    flash = [line for line in lines if line.startswith("torch: the flash kernel of the CPU takes all but ")]
    assert len(flash) == 1
    assert "a sink" not in flash[0]
    assert "a score_mod" in flash[0]


def test_a_mask_is_drawn() -> None:
    result = run("mask", "causal & window(2, 0)", "--size", "4")
    assert result.exit_code == 0
    assert result.output == "# . . .\n# # . .\n# # # .\n. # # #\n"
    assert run("mask", "causal", "--size", "1", "--keys", "3", "--offset", "1").output == "# # .\n"
    assert run("mask", "causal", "--size", "2", "--keys", "3", "--offset", "end").output == "# # .\n# # #\n"


def test_a_mask_takes_lists_and_items_that_differ_have_a_picture_each() -> None:
    assert run("mask", "key_lengths([1, 3, 1])", "--size", "1", "--keys", "3").output == (
        "items 0, 2\n# . .\n\nitem 1\n# # #\n"
    )
    assert run("mask", "prefix([2, 2])", "--size", "1", "--keys", "3").output == "# # .\n"
    assert run("mask", "causal & documents([0, 0, 1])").output == "# . .\n# # .\n. . #\n"
    assert run("mask", "segments([[0, 0], [0, 1]])").output == "item 0\n# #\n# #\n\nitem 1\n# .\n. #\n"
    assert run("mask", "documents([0], [0, 1])").output == "# .\n"
    assert run("mask", "key_ranges([0, 1, 1], [1, 3, 1])", "--keys", "3").output == "# . .\n. # #\n. . .\n"
    assert run("mask", "key_lengths([12])").output == "# # # # # # # # # # # #\n" * 12


def test_a_mask_becomes_an_svg_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.svg"
    result = run("mask", "key_lengths([1, 3])", "--size", "1", "--keys", "3", "--svg", str(path))
    assert (result.exit_code, result.output) == (0, "")
    page = path.read_text()
    assert ElementTree.fromstring(page).tag == "{http://www.w3.org/2000/svg}svg"
    assert "item 1" in page
    again = run("mask", "causal", "--svg", str(path))
    assert again.exit_code == 2
    assert (
        again.output
        == f"polyattn mask: expected a new file, got {path}, which is there; add --force, or name another\n"
    )
    assert path.read_text() == page
    assert run("mask", "causal", "--svg", str(path), "--force").exit_code == 0
    assert path.read_text() != page


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["causal", "--size", "1", "--keys", "3"],
            "polyattn mask: expected query_offset, because the mask or",
        ),
        (
            ["key_lengths(9)", "--size", "8"],
            "polyattn mask: expected the lengths of masks.key_lengths between 0 and 8, got 9",
        ),
        (["key_lengths([1, 2]) & prefix([1, 2, 3])"], "one per batch item, shape (3,), got shape (2,)"),
        (
            ["documents([0, 0, 1])", "--size", "3", "--keys", "4"],
            "expected kv_ids of masks.segments to have shape",
        ),
        (
            ["causal", "--offset", "near"],
            "polyattn mask: expected --offset to be an integer of at most nine digits",
        ),
        (["window(-2, 0)"], "expected both sides >= 0, got -2"),
        (["window(2)"], "window takes left, right, got 1 values"),
        (["window([1], 0)"], "polyattn.masks.window: expected both sides to be an integer, got [1]"),
        (["windw(2, 0)"], "'windw' is not the name of a mask; did you mean window"),
        (["causal and window(1, 0)"], "'and' at character 8; & is the sign for that"),
        (["not causal"], "'not' at character 1; ~ is the sign for that"),
        (["causal || causal"], "'||' at character 8; | is the sign for that"),
        (["causal window(1, 0)"], "'window(1, 0)' at character 8, where & or | should stand"),
        (["causal &"], "it ends where a mask should stand"),
        (["(causal"], "'(' is not closed"),
        (["causal)"], "')' at character 7 closes nothing"),
        (["documents([[0, 1], [0]])"], "documents is given lists that are not equally long"),
        (["key_lengths([3, None])"], "key_lengths is given a list of something else than integers"),
        (["dilated(99999999999)"], "dilated is given a number of 2**31 or more"),
        (["documents([])"], "expected q_ids of masks.segments to have shape (8,)"),
        (
            ["key_lengths(2000000000)"],
            "expected the lengths of masks.key_lengths between 0 and 500, got 2000000000",
        ),
        (["documents(3)"], "expected ids of shape (L,) or (batch, L), got a single number"),
        (["key_ranges([0, 1])"], "key_ranges takes starts, stops, got 1 values"),
        (["~" * 200 + "causal"], "it has more than 150 masks inside each other"),
    ],
)
def test_what_attention_or_the_grammar_refuses_is_refused(args: list[str], sentence: str) -> None:
    result = run("mask", *args)
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "causal()()",
        "causal.box",
        "window(2)",
        "window(left=1, right=2)",
        "causal & 3",
        "causal + causal",
        "window(1.5, 0)",
        "lambda: causal",
        "(" * 300,
        "causal & " * 150 + "causal",
        "",
        "causal\x00",
        "[31m",
        "key_lengths(" + "[" * 900 + ")",
        "key_lengths([1, true])",
        "key_lengths(['3'])",
        "prefix(1e3)",
        "~",
        "causal & | causal",
        "()",
    ],
)
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^polyattn mask: expected "):
        parse_mask(text)
    assert run("mask", text).exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "~" * 148 + "causal",
        "~(" * 140 + "causal" + ")" * 140,
        "|".join(["causal"] * 142),
        "&".join(["dilated(2)"] * 90),
    ],
)
def test_a_mask_as_deep_as_text_can_be_is_a_mask(text: str) -> None:
    mask = parse_mask(text)
    plain = np.tri(300, dtype=bool) if "causal" in text else np.indices((300, 300)).sum(0) % 2 == 0
    np.testing.assert_array_equal(mask.dense(300), plain)
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 1, 300, 4))
    judged = truth(Spec(q, k, v, allowed=plain))["out"]
    for implementation in ("reference", "blockwise"):
        out = attention(q, k, v, mask=mask, implementation=implementation)
        assert eta(out, judged, "float64") <= ACCEPTANCE
    assert run("mask", text).exit_code == 0


def test_precedence_and_brackets() -> None:
    for text, plain in (
        ("causal | prefix(2) & dilated(2)", masks.causal() | (masks.prefix(2) & masks.dilated(2))),
        ("(causal | prefix(2)) & dilated(2)", (masks.causal() | masks.prefix(2)) & masks.dilated(2)),
        ("~causal & window(1, 1)", ~masks.causal() & masks.window(1, 1)),
        (
            "~(causal & window(1, None))|~ ~prefix(1)",
            ~(masks.causal() & masks.window(1, None)) | masks.prefix(1),
        ),
    ):
        np.testing.assert_array_equal(parse_mask(text).dense(5), plain.dense(5))


def test_a_plan_says_what_auto_would_run_and_why() -> None:
    result = run("info", "--plan", "L=4096,H=8,causal=1")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(testing.BENCHES)
    assert set(lines) >= {
        "numpy: blockwise, because the scores take more than 1 MiB",
        "jax: blockwise, because not native: there is no GPU, and on other devices jax.nn.dot_product_attention is no "
        "fused kernel; not fused: there are kernels for TPU and GPU, and the arrays are on cpu",
        "onnx: native, because the operator Attention is one node where it computes the contract",
        "strict: blockwise, because the scores take more than 1 MiB",
        "torch: native, because the library's own kernel is the fastest where it is exact",
    }
    small = run("info", "--plan", "L=64,H=2,softcap=30,sinks=1,window=4,dtype=float16").output
    assert "numpy: reference, because not blockwise: the scores take at most 1 MiB" in small
    assert "strict: has no float16" in small
    decode = run("info", "--plan", "B=8,L=1,S=4096,H=32,Hkv=8").output
    assert (
        "numpy: reference, because not blockwise: a few query rows: one product per kv head, K and V"
        in decode
    )


@pytest.mark.parametrize(
    "text", ["L", "L=x", "Q=3", "L=-1", "dtype=int8", "", "L=99999999", "L=16777216,H=8"]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    result = run("info", "--plan", text)
    assert result.exit_code == 2
    assert "polyattn info: expected " in result.output
