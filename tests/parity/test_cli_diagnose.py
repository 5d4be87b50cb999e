"""`polyattn diagnose` and `polyattn verify --html` on the command line."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyattn import attention, masks, mods
from polyattn.cli import app
from polyattn.rotary import Rotary

RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 2, 4, 24, 8)).astype(np.float32)


def _run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def _file(folder: Path, output: Any, **more: Any) -> str:
    path = folder / "case.npz"
    np.savez(path, **{"output": output, "query": Q, "key": K, "value": V} | more)
    return str(path)


def test_a_cause_is_named_and_the_status_is_1(tmp_path: Path) -> None:
    status, out, _ = _run("diagnose", "--npz", _file(tmp_path, attention(Q, K, V, scale=1.0)))
    assert status == 1
    assert out.startswith("matches scale = 1 (scores not divided): eta ")


def test_what_was_meant_is_read_from_the_file(tmp_path: Path) -> None:
    mask = RNG.random((2, 1, 24, 24)) > 0.2
    meant = {
        "mask": masks.from_array(mask) & masks.window(5, None),
        "is_causal": True,
        "score_mod": mods.softcap(2.0),
        "scale": 0.5,
        "bias": RNG.normal(size=(4, 24, 24)).astype(np.float32),
        "sinks": np.zeros(4, np.float32),
    }
    stored = {
        "mask": mask, "window": [5, -1], "is_causal": True, "softcap": 2.0, "scale": 0.5, "bias": meant["bias"],
        "sinks": meant["sinks"], "query_offset": "end", "layout": "BHLD", "embed_dim": 32,
    }  # fmt: skip
    status, out, _ = _run("diagnose", "--npz", _file(tmp_path, attention(Q, K, V, **meant), **stored))
    assert (status, out[:21]) == (0, "matches the contract ")


def test_positions_are_read_from_the_file(tmp_path: Path) -> None:
    rotary = Rotary(base=500.0, width=4, interleaved=True)
    slopes, offsets = np.array([0.5, 0.25, 0.1, 0.0]), np.array([0, 3])
    meant: dict[str, Any] = {
        "is_causal": True,
        "score_mod": mods.compose(mods.softcap(2.0), mods.alibi(slopes)),
        "query_offset": offsets,
    }
    at = offsets[:, None] + np.arange(24)
    out = attention(rotary(Q, at), rotary(K, np.arange(24)), V, **meant)
    stored: dict[str, Any] = {
        "rotary_base": 500, "rotary_width": 4, "rotary_interleaved": True, "alibi": slopes, "softcap": 2.0,
        "query_offset": offsets, "is_causal": True,
    }  # fmt: skip
    status, said, _ = _run("diagnose", "--npz", _file(tmp_path, out, **stored))
    assert (status, said[:21]) == (0, "matches the contract ")
    out = attention(rotary(Q, np.arange(24)), rotary(K, np.arange(24)), V, **meant)
    status, said, _ = _run("diagnose", "--npz", _file(tmp_path, out, **stored))
    assert status == 1
    assert said.startswith("matches rotary positions of the queries start at 0 instead of query_offset: eta ")


def test_a_part_of_a_printed_output_is_read_from_the_file_or_said_in_options(tmp_path: Path) -> None:
    out = attention(Q, K, V, scale=1.0).astype(np.float64).round(4)
    part = out[:, 1:3][:, :, [0, 5, 6, 7]]
    counts = np.ones(part.shape, bool)
    counts[0, 0, 0] = False
    part[0, 0, 0] = 7.0
    np.savez(tmp_path / "counts.npz", counts)
    stored = {"rows": [0, 5, 6, 7], "heads": [1, 2], "decimals": 4, "where": counts}
    options = f"--rows 0,5-7 --heads 1-2 --decimals 4 --where {tmp_path / 'counts.npz'}".split()
    for more, words in ((stored, []), ({}, options)):
        status, said, _ = _run("diagnose", "--npz", _file(tmp_path, part, **more), *words)
        assert status == 1
        assert said.startswith("matches scale = 1 (scores not divided): eta ")
        assert "explains" not in said


@pytest.mark.parametrize("words", [("--rows", "1-"), ("--heads", "-1"), ("--rows", "3-1"), ("--rows", "a")])
def test_indices_are_refused_in_a_sentence(tmp_path: Path, words: tuple[str, str]) -> None:
    status, _, err = _run("diagnose", "--npz", _file(tmp_path, np.zeros_like(Q)), *words)
    assert status == 2
    assert f"expected {words[0]} to be indices and ranges, got {words[1]!r}" in err


def test_which_elements_count_is_one_array_of_bools(tmp_path: Path) -> None:
    np.savez(tmp_path / "counts.npz", a=np.ones(8, bool), b=np.ones(8))
    status, _, err = _run(
        "diagnose", "--npz", _file(tmp_path, np.zeros_like(Q)), "--where", str(tmp_path / "counts.npz")
    )
    assert status == 2
    assert "expected one array of bools in 'counts.npz', got a of bool, b of float64" in err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"sclae": 1.0}, "in 'case.npz', got it without none of them and with sclae unknown; rename them"),
        (
            {"window": [1, 2, 3]},
            "expected window to be two integers, left and right, got shape (3,) of int64; write -1 for a side without "
            "bound",
        ),
        ({"scale": [1.0, 2.0]}, "expected scale to be one value, got shape (2,)"),
        ({"mask": np.ones((24, 24))}, "expected a bool mask, True = may attend, got float64"),
        (
            {"mask": np.ones((24, 24)), "window": [1, 1]},
            "expected mask to be of bools, True = may attend, got",
        ),
        (
            {"mask": np.ones((7, 7), bool)},
            "broadcasts to the scores (B, Hq, L, S) = (2, 4, 24, 24), got shape",
        ),
        (
            {"mask": np.ones((1, 2, 4, 24, 24), bool)},
            "broadcasts to the scores (B, Hq, L, S) = (2, 4, 24, 24)",
        ),
        (
            {"bias": np.ones((3, 24))},
            "expected a bias that broadcasts to the scores (B, Hq, L, S) = (2, 4, 24, 24)",
        ),
        ({"sinks": np.ones(3)}, "expected sinks of shape (4,), one per query head, got (3,)"),
        ({"sinks": np.arange(4)}, "expected sinks to be an array of floats, got int64; convert it"),
        (
            {"is_causal": "False"},
            "expected is_causal to be a bool, got 'False' of dtype <U5; store it as that",
        ),
        ({"scale": "0.5"}, "expected scale to be a number, got '0.5' of dtype <U3"),
        ({"scale": 1j}, "expected scale to be a number, got '1j' of dtype complex128"),
        ({"softcap": b"2"}, "expected softcap to be a number"),
        ({"softcap": -2.0}, "expected a cap between 0 and 2**60, got -2.0"),
        ({"embed_dim": 0.5}, "expected embed_dim to be an integer, got '0.5' of dtype float64"),
        ({"layout": 3}, "expected layout to be a word, got '3' of dtype int64"),
        ({"layout": "LBHD"}, "expected layout 'BHLD' or 'BLHD', got 'LBHD'"),
        (
            {"query_offset": "start"},
            "expected query_offset to be an integer below 2**31 or 'end', got 'start'",
        ),
        (
            {"query_offset": 2**40},
            "expected query_offset to be an integer below 2**31 or 'end', got '1099511627776'",
        ),
        (
            {"query_offset": [1, 2, 3]},
            "expected query_offset to be an integer, 2 of them or 'end', got int64 of",
        ),
        (
            {"query_offset": [0.5, 2.0]},
            "expected query_offset to be integers below 2**31, one for each batch item",
        ),
        ({"alibi": np.ones((2, 4, 1))}, "expected slopes of shape (Hq,) or (B, Hq), got (2, 4, 1)"),
        ({"rotary_base": "x"}, "expected rotary_base to be a number, got 'x' of dtype <U1"),
        ({"rotary_width": 3}, "expected an even width of at most 8, the width of x, got 3"),
        ({"rotary_interleaved": 1}, "expected rotary_interleaved to be a bool, got '1' of dtype int64"),
        ({"rows": [0.5]}, "expected rows to be integers, got shape (1,) of float64"),
        ({"rows": [0, 24]}, "expected rows to be different indices below 24, got [ 0 24]"),
        ({"heads": [1, 1]}, "expected heads to be different indices below 4, got [1 1]"),
        ({"where": np.ones(8)}, "expected where to be of bools, True = counts, got float64"),
        (
            {"where": np.ones((3, 1), bool)},
            "expected where to broadcast to the output of shape (2, 4, 24, 8), got (3, 1)",
        ),
        (
            {"where": np.zeros(8, bool)},
            "expected elements of the output to explain, got none of 1536 that count",
        ),
        ({"decimals": -1}, "expected decimals to be an integer from 0 to 17, got -1"),
        ({"window": ["a", "b"]}, "expected window to be two integers, left and right, got shape (2,) of <U1"),
        (
            {"window": [[1, 2]]},
            "expected window to be two integers, left and right, got shape (1, 2) of int64",
        ),
        (
            {"query": np.zeros((2, 4, 24, 8), "V2")},
            "NumPy keeps bfloat16 so: store it as float32, and say --dtype",
        ),
        (
            {"key": np.zeros((2, 4, 24, 8), "U3")},
            "expected key to be an array of floats, got <U3; convert it",
        ),
        (
            {"value": np.zeros((2, 4, 24, 8), complex)},
            "expected value to be an array of floats, got complex128",
        ),
        ({"output": np.zeros((2, 4, 8, 24))}, "expected output of shape (2, 4, 24, 8)"),
        (
            {"output": np.full(1, None)},
            "a whole .npz file of plain arrays, got 'case.npz', of which the reader says: ",
        ),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    output = more.pop("output", np.zeros_like(Q))
    status, _, err = _run("diagnose", "--npz", _file(tmp_path, output, **more))
    assert status == 2
    assert err.startswith("polyattn")
    assert err.count("\n") == 1
    assert sentence in err


def test_what_is_no_such_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    whole = Path(_file(tmp_path, np.zeros_like(Q))).read_bytes()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "text").write_bytes(b"output = 3")
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped").write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])
    np.save(tmp_path / "alone.npy", Q)
    with zipfile.ZipFile(tmp_path / "headers", "w") as archive:
        for name, header in (
            ("output", "(" * 900),
            ("query", "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}"),
        ):
            archive.writestr(
                f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            )
    for name in ("no", "folder", "fifo", "dangling", "circle", "none", "zip", "text", "half", "flipped", "alone.npy", "headers"):  # fmt: skip
        status, out, err = _run("diagnose", "--npz", str(tmp_path / name))
        assert (status, out) == (2, ""), name
        assert err.startswith("polyattn diagnose: expected "), name
        assert name in err
        assert err.count("\n") == 1, name


def test_verify_writes_a_report_and_never_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    words = ("verify", "--backend", "numpy", "--dtype", "float32", "--case", "golden", "--html", str(path))
    assert _run(*words)[0] == 0
    assert "golden six tokens" in path.read_text()
    path.write_text("mine")
    status, _, err = _run(*words)
    assert status == 2
    assert (
        err
        == f"polyattn verify: expected a new file, got {path}, which is there; add --force, or name another\n"
    )
    assert path.read_text() == "mine"
    assert _run(*words, "--force")[0] == 0
    assert path.read_text() != "mine"
