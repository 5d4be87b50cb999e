"""A recorded model as a file: read back whole, refused where it was cut short or says what is not so; and the command."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch
from shared.ports import BATCH, slowed, small
from typer.testing import CliRunner

from polyattn.cli import app
from polyattn.parity import assert_model, check_model, compare_models, record, tap
from polyattn.parity.models.fingerprints import differences, fingerprint


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from _pytest.monkeypatch import MonkeyPatch

    with MonkeyPatch.context() as patch:
        _stand_in(patch)
        path = tmp_path_factory.mktemp("golden") / "golden.npz"
        record(small(), (BATCH,)).save(path)
    return path


def _stand_in(patch: pytest.MonkeyPatch) -> None:
    """As the fixture of every test does: this one is made before it."""
    import importlib.util
    import sys

    if importlib.util.find_spec("polyattn.parity.components") is None:
        spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        made: Any = importlib.util.module_from_spec(spec)
        sys.modules["stand_in"] = made
        spec.loader.exec_module(made)
        patch.setitem(sys.modules, "polyattn.parity.components", made)


def test_a_file_says_what_the_model_itself_says(golden: Path) -> None:
    model = small()
    port = slowed(model)
    assert check_model(port, golden).agrees
    port.blocks[0].norm_1.eps = 1e-6
    with torch.no_grad():
        port.blocks[2].mlp[2].bias[3] += 0.01
    by_file, by_model = check_model(port, golden), compare_models(model, port, (BATCH,))
    assert [w.name for w in by_file.wrong] == ["blocks.0.norm_1", "blocks.2.mlp.2"]
    assert by_file.wrong == by_model.wrong
    assert by_file.rows == by_model.rows
    assert [d.name for d in by_file.weights] == ["blocks.2.mlp.2.bias"]


def test_a_test_fails_with_all_that_is_known(golden: Path) -> None:
    port = small()
    assert_model(port, golden)
    port.blocks[1].attention.scale = 1.0
    with pytest.raises(
        AssertionError, match=r"^DISAGREE: 1 of 32 components is wrong by itself: blocks\.1\.attention"
    ):
        assert_model(port, golden)


def test_a_file_is_not_written_over(golden: Path) -> None:
    with pytest.raises(
        FileExistsError, match=r"expected a new file, got .*golden\.npz', which is there; name another"
    ):
        record(lambda x: x, (BATCH,)).save(golden)


def test_a_batch_of_many_kinds_comes_back(tmp_path: Path) -> None:
    def model(x: Any, *, mask: Any, options: Any) -> Any:
        return tap("sum", x["a"] + x["b"][0]) * mask + options[1]

    given = {"x": {"a": BATCH, "b": [BATCH]}, "mask": BATCH > 0, "options": ("add", 2.0, None, True)}
    found = record(model, given)
    found.save(tmp_path / "golden.npz")
    again = check_model(model, tmp_path / "golden.npz")
    assert again.agrees, str(again)
    with pytest.raises(TypeError, match="expected a batch of arrays, numbers, strings"):
        record(lambda x, more: x, (BATCH, object())).save(tmp_path / "other.npz")


def _changed(path: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with other entries, or another manifest."""
    with np.load(path, allow_pickle=False) as file:
        entries = dict(file)
    manifest = json.loads(entries["manifest"].tobytes())
    change(entries, manifest)
    if "manifest" in entries:
        entries["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez(into, **entries)
    return into


def _first(manifest: dict[str, Any]) -> Any:
    return manifest["taps"][0]


LIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "version": (lambda e, m: m.update(version=2), "expected version 1 in the golden file .*, got version 2"),
    "format": (lambda e, m: m.update(format="cake"), "expected the format 'polyattn golden model'"),
    "no manifest": (lambda e, m: e.pop("manifest"), "expected a manifest in the golden file"),
    "missing": (lambda e, m: e.pop("a1"), "every array that its manifest names .* got it without a1"),
    "more": (lambda e, m: e.update(b=np.ones(1)), "the arrays of its manifest alone .* got b besides"),
    "shape": (lambda e, m: e.update(a1=np.ones((7, 7))), r"expected a1 of shape .*, got \(7, 7\) and float64"),
    "nan": (lambda e, m: e["a1"].fill(np.nan), "expected finite numbers in a1 .* got NaN or infinity"),
    "unit": (lambda e, m: e[_first(m)["unit"]].fill(-1.0), "a unit of shape .* finite and not negative"),
    "no taps": (lambda e, m: m.update(taps=[]), "expected taps with different names .* got none"),
    "twice": (lambda e, m: m["taps"].append(_first(m)), "expected taps with different names .* some twice"),
    "no array": (lambda e, m: _first(m).update(value="a9999"), "the array of every entry .* none for 'a9999'"),
    "no name": (lambda e, m: _first(m).pop("name"), "the manifest of version 1 .* lacks or mistakes 'name'"),
    "list": (lambda e, m: m.update(taps=3), "the manifest of version 1"),
    "weights": (lambda e, m: m.update(weights=[1]), "the manifest of version 1"),
    "batch": (lambda e, m: m.update(batch={"code": "x"}), "expected a batch of arrays and plain values .* got code"),
    "alone": (lambda e, m: _first(m).update(trials=[]), "gave alone .* got none"),
    "dtype": (lambda e, m: _first(m).update(dtype="float12"), "a dtype among float64, .* got 'float12'"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_in_a_sentence(lie: str, golden: Path, tmp_path: Path) -> None:
    change, sentence = LIES[lie]
    path = _changed(golden, tmp_path / "lying.npz", change)
    with pytest.raises(ValueError, match=f"polyattn.parity.check_model: .*{sentence}.*record it again"):
        check_model(small(), path)


def test_a_file_that_was_cut_short_or_is_none_is_refused(golden: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.npz"
    short.write_bytes(golden.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"expected a whole \.npz file of plain arrays, got 'short\.npz'"):
        check_model(small(), short)
    with pytest.raises(FileNotFoundError, match="which is not there"):
        check_model(small(), tmp_path / "none.npz")
    np.savez(short, manifest=np.array([{}], object))
    with pytest.raises(ValueError, match="does it hold pickled objects"):
        check_model(small(), short)


def test_fingerprints_tell_other_numbers_from_another_order_and_another_shape() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    prints = {name: fingerprint(x) for name in "abcdef"}
    port = {"a": x, "b": x.T.copy(), "c": x + 1, "d": np.ones((2, 2)), "x": x[::-1].copy()}
    found = {d.name: d.sentence for d in differences(prints, port, {})}
    assert found == {
        "b": "b: b has the same numbers in another order (shape (2, 3), in the port (3, 2))",
        "c": "c: c has other numbers (rms 3.89, in the reference 3.03)",
        "d": "d: d has shape (2, 2), where the reference has (2, 3)",
    }
    assert "no parameter of the port has its numbers" in differences(prints, {"y": x + 1}, {})[0].sentence


PORT = """
import sys
sys.path.insert(0, {tests!r})
from shared.ports import small

def build():
    return small()

def wrong():
    model = small()
    model.blocks[1].attention.scale = 1.0
    return model

model = small()

def broken():
    raise RuntimeError("no weights")

def forward(x):
    return x
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_port_of_it.py").write_text(PORT.format(tests=str(Path(__file__).parents[2])))
    (tmp_path / "my_broken_port.py").write_text("raise RuntimeError('no')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_port_of_it", raising=False)
    return tmp_path


def _run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["check-model", *words])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_by_its_status_whether_they_agree(golden: Path, program: Path) -> None:
    status, out, _ = _run("my_port_of_it:build", str(golden))
    assert (status, out[:6]) == (0, "AGREE:")
    assert _run("my_port_of_it:model", str(golden))[0] == 0
    files = {name: program / f"r.{name}" for name in ("json", "junit", "html")}
    status, out, _ = _run(
        "my_port_of_it:wrong", str(golden), *(x for n, path in files.items() for x in (f"--{n}", str(path)))
    )
    assert status == 1
    assert out.startswith("DISAGREE: 1 of 32 components is wrong by itself: blocks.1.attention\n")
    assert json.loads(files["json"].read_text())["wrong"][0]["name"] == "blocks.1.attention"
    assert "<failure" in files["junit"].read_text()
    assert "blocks.1.attention" in files["html"].read_text()
    assert _run("my_port_of_it:wrong", str(golden), "--html", str(files["html"]))[0] == 2
    status, out, _ = _run("my_port_of_it:build", str(golden), "--name", "blocks.*.mlp=blocks.*.mlp")
    assert (status, out[:16]) == (0, "AGREE: all 4 tap")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["my_port_of_it"], "expected MODULE:NAME, got 'my_port_of_it'; write my_port:build"),
        (
            ["no_such_port:build"],
            "expected a module, got 'no_such_port', which is not found; run it in the folder of",
        ),
        (["my_broken_port:build"], "which raises RuntimeError: no; mend it"),
        (["my_port_of_it:none"], "expected a name in my_port_of_it, got 'none', which it has not"),
        (["my_port_of_it:broken"], "called without arguments, got RuntimeError: no weights; add --itself"),
        (["my_port_of_it:forward"], "without arguments, got TypeError"),
        (["my_port_of_it:build", "--name", "a"], "expected --name THEIRS=OURS, got 'a'"),
    ],
)
def test_what_cannot_be_checked_is_wrong_usage(
    words: list[str], sentence: str, golden: Path, program: Path
) -> None:
    status, out, err = _run(words[0], str(golden), *words[1:])
    assert (status, out) == (2, "")
    assert sentence in err


def test_a_function_may_be_the_port_itself(program: Path) -> None:
    record(lambda x: x, (BATCH,)).save(program / "small.npz")
    assert _run("my_port_of_it:forward", "small.npz", "--itself")[0] == 0
    assert _run("my_port_of_it:forward", "none.npz", "--itself")[0] == 2


def test_a_port_is_not_changed_by_being_checked(golden: Path) -> None:
    port = small()
    kept = copy.deepcopy(port.state_dict())
    check_model(port, golden)
    assert all(torch.equal(x, kept[name]) for name, x in port.state_dict().items())


def test_a_port_that_ends_the_program_is_one_that_stopped(golden: Path) -> None:
    def port(x: Any) -> Any:
        raise SystemExit(0)

    assert check_model(port, golden).verdict.startswith(
        "DISAGREE: the port stopped with SystemExit: 0; no tap"
    )
