"""A path may lead anywhere and a file may hold anything: one sentence each, at once, and nothing is lost."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import safetensors

from polyattn import weights

LIKE = np.zeros(())
SENTENCE = r"^polyattn[^:]*: expected .+, got .+; .+"
SUFFIXES = [".npz", ".safetensors"]
PARAMS = {"a": np.arange(3.0)}


def sparse(path: Path, head: bytes, size: int) -> None:
    """A file of any size that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def entry(size: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    text = str({"descr": "<f8", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def archive(path: Path, *members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members:
            file.writestr(name, content)


def bomb(path: Path) -> None:
    """A GiB of zeros in a MiB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as whole,
        whole.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy((65 * 2**21,), b""))
        for _ in range(65):
            file.write(bytes(2**24))


def encrypted(path: Path) -> None:
    archive(path, ("a.npy", npy((1,), bytes(8))))
    content = bytearray(path.read_bytes())
    for at in (content.find(b"PK\3\4") + 6, content.find(b"PK\1\2") + 8):
        content[at] |= 1
    path.write_bytes(content)


def damaged_lzma(path: Path) -> None:
    archive(path, ("a.npy", npy((1,), bytes(8))), how=zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(content)


def twice(path: Path) -> None:
    one = json.dumps(entry(3))
    path.write_bytes(header(f'{{"a": {one}, "a": {one}}}') + bytes(12))


DEEP = ".".join("a" * 1000)
#: what lies there -> what is said of it
ANYWHERE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (Path.mkdir, "a folder"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "a link to 'nowhere', which is not there"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "a pipe": (os.mkfifo, "a pipe, socket or device"),
}
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "header of a terabyte.safetensors": (lambda path: sparse(path, struct.pack("<Q", 2**40), 2**41), "the reader says"),
    "array of terabytes.safetensors": (
        lambda path: sparse(path, header(json.dumps({"a": entry(2**40)})), 2**42 + 8 + len(json.dumps({"a": entry(2**40)}))),
        "the reader says",
    ),
    "deep.safetensors": (
        lambda path: path.write_bytes(header(json.dumps({DEEP: entry(3)})) + bytes(12)),
        "at most 100 groups",
    ),
    "twice.safetensors": (twice, "it has a more than once"),
    "nan.safetensors": (lambda path: path.write_bytes(header('{"a": NaN}')), "the reader says"),
    "deep json.safetensors": (
        lambda path: path.write_bytes(header('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}")),
        "the reader says",
    ),
    "deep.npz": (lambda path: archive(path, (f"{DEEP}.npy", npy((1,), bytes(8)))), "at most 100 groups"),
    "twice.npz": (
        lambda path: archive(path, ("a.npy", npy((1,), bytes(8))), ("a", npy((1,), bytes(8)))),
        "it has a more than once",
    ),
    "bomb.npz": (bomb, "as those of weights do not"),
    "encrypted.npz": (encrypted, "is encrypted"),
    "lzma.npz": (damaged_lzma, "the reader says"),
    "array header of 2 GiB.npz": (
        lambda path: archive(path, ("a.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**31))),
        "the reader says",
    ),
    "nested array header.npz": (
        lambda path: archive(path, ("a.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 9000) + b"(" * 4500 + b")" * 4500)),
        "the reader says",
    ),
}  # fmt: skip
BEYOND = {"no folder": "missing/x", "a file as a folder": "file/x", "a name too long": "n" * 300}


def loaded(path: Path) -> dict[str, Any]:
    return weights.load(path, like=LIKE)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("what", ANYWHERE)
def test_what_is_no_file_is_not_read(what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    make, said = ANYWHERE[what]
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=SENTENCE) as refusal:
        loaded(path)
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_made_to_harm_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    make, said = FILES[name]
    make(path)
    with pytest.raises(ValueError, match=SENTENCE) as refusal:
        loaded(path)
    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 600


def test_an_archive_that_shrinks_well_is_no_bomb(tmp_path: Path) -> None:
    zeros = np.zeros((1000, 1000))
    np.savez_compressed(tmp_path / "zeros.npz", a=zeros)
    assert (tmp_path / "zeros.npz").stat().st_size < zeros.nbytes / 100
    assert (loaded(tmp_path / "zeros.npz")["a"] == zeros).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("what", ["a folder", "a link to itself", "a pipe", *BEYOND])
def test_where_no_file_can_lie_none_is_written(what: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / f"{BEYOND.get(what, 'x')}{suffix}"
    if what in ANYWHERE:
        ANYWHERE[what][0](path)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(ValueError, match=SENTENCE):
        weights.save(PARAMS, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_is_written_through(suffix: str, tmp_path: Path) -> None:
    link = tmp_path / f"link{suffix}"
    link.symlink_to(f"target{suffix}")
    for params in (PARAMS, {"a": np.ones(2)}):  # a new file, and then that file again
        weights.save(params, link)
        assert link.is_symlink()
        assert (loaded(tmp_path / f"target{suffix}")["a"] == params["a"]).all()


def nested(depth: int) -> dict[str, Any]:
    params: dict[str, Any] = {"a": np.ones(1)}
    for _ in range(depth - 1):
        params = {"a": params}
    return params


def circular() -> dict[str, Any]:
    params: dict[str, Any] = {}
    params["a"] = params
    return params


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("params", "error"),
    [
        (nested(1500), ValueError),
        (circular(), ValueError),
        ([np.ones(1)], TypeError),
        ({"a\0b": np.ones(1)}, ValueError),
        ({"\ud800": np.ones(1)}, ValueError),
        ({"x" * 70_000: np.ones(1)}, ValueError),
        ({"__metadata__": np.ones(1)}, ValueError),
    ],
    ids=["deep", "circular", "a list", "zero", "surrogate", "long", "metadata"],
)
def test_what_would_not_come_back_is_not_written(
    params: Any, error: type[Exception], suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=SENTENCE):
        weights.save(params, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["../../evil", "/abs", "nan", "", ".", "a.npy", "x" * 50_000, "ü\n"])
def test_any_other_name_comes_back(name: str, suffix: str, tmp_path: Path) -> None:
    weights.save({name: np.ones(2)}, tmp_path / f"x{suffix}")
    assert list(weights.flatten(loaded(tmp_path / f"x{suffix}"))) == [name]
    assert [file.name for file in tmp_path.iterdir()] == [f"x{suffix}"]


def test_as_deep_as_is_allowed_comes_back(tmp_path: Path) -> None:
    weights.save(nested(100), tmp_path / "x.npz")
    assert list(weights.flatten(loaded(tmp_path / "x.npz"))) == [".".join("a" * 100)]
    for call in (weights.flatten, lambda params: weights.convert(params, like=LIKE)):
        with pytest.raises(ValueError, match="at most 100 groups"):
            call(nested(101))


def test_what_is_no_path_is_refused() -> None:
    for path, error in ((3, TypeError), (b"x.npz", TypeError), (None, TypeError), ("a\0b.npz", ValueError)):
        for call in (loaded, lambda path: weights.save(PARAMS, path)):
            with pytest.raises(error, match=SENTENCE):
                call(path)


def test_metadata_is_text(tmp_path: Path) -> None:
    assert safetensors.__name__ == "safetensors"
    for metadata in ({"step": 1}, {1: "step"}):
        with pytest.raises(TypeError, match=r"expected metadata of strings, got .*; write numbers as text"):
            weights.save(PARAMS, tmp_path / "x.safetensors", metadata=metadata)  # type: ignore[dict-item]


def test_two_that_save_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    code = "import sys, numpy; from polyattn import weights; [weights.save({'a': numpy.full(10**5, float(sys.argv[2]))}, sys.argv[1]) for _ in range(20)]"
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)]) for i in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(set(loaded(path)["a"].tolist())) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("function", ["save", "load"])
def test_without_safetensors_the_sentence_says_so(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)  # type: ignore[arg-type]
    path = tmp_path / "x.safetensors"
    with pytest.raises(ModuleNotFoundError) as refusal:
        weights.save(PARAMS, path) if function == "save" else loaded(path)
    assert str(refusal.value) == (
        f"polyattn.weights.{function}: expected the package safetensors for a .safetensors file, got none; "
        "pip install safetensors, or name the file .npz"
    )
