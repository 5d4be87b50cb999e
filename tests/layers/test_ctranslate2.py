"""Files of CTranslate2 are read as they were written, or refused with a sentence, whatever they hold."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyattn import weights


def text(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def array(name: str, shape: tuple[int, ...], kind: int, content: bytes) -> bytes:
    head = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + head + struct.pack("<BI", kind, len(content)) + content


def model(*arrays: bytes, version: int = 6, aliases: bytes = struct.pack("<I", 0)) -> bytes:
    head = struct.pack("<I", version) + text("SmallSpec") + struct.pack("<II", 3, len(arrays))
    return head + b"".join(arrays) + aliases


VALUES = np.arange(6).reshape(2, 3) - 2
WHOLE = model(
    *(array(f"part/{i}", (2, 3), i, VALUES.astype(dtype).tobytes()) for i, dtype in enumerate(("<f4", "i1", "<i2", "<i4", "<f2"))),
    array("heads", (), 2, b"\x06\0"),
    aliases=struct.pack("<I", 1) + text("other") + text("heads"),
)  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.bin"
        path.write_bytes(content)
        return path

    return write


def test_a_file_is_read_as_it_was_written(written: Callable[[bytes], Path]) -> None:
    found = weights.read_ctranslate2(written(WHOLE))
    assert (found.spec, found.revision, found.aliases) == ("SmallSpec", 3, {"other": "heads"})
    assert [x.dtype.name for x in found.tensors.values()] == [
        "float32",
        "int8",
        "int16",
        "int32",
        "float16",
        "int16",
    ]
    assert all((x == VALUES).all() for x in list(found.tensors.values())[:5])
    assert found.tensors["heads"] == 6


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(written: Callable[[bytes], Path]) -> None:
    for n in range(len(WHOLE)):
        with pytest.raises(ValueError, match=r"^polyattn\.weights\.read_ctranslate2: expected a whole model.bin of CTranslate2, version 6, got 'model.bin'"):  # fmt: skip
            weights.read_ctranslate2(written(WHOLE[:n]))


@pytest.mark.parametrize("seed", range(40))
def test_a_file_with_bytes_changed_is_read_or_refused(seed: int, written: Callable[[bytes], Path]) -> None:
    rng, changed = np.random.default_rng(seed), bytearray(WHOLE)
    for at in rng.integers(0, len(WHOLE), 3):
        changed[at] = rng.integers(256)
    said = "polyattn.weights.read_ctranslate2: expected "
    try:
        weights.read_ctranslate2(written(bytes(changed)))
    except ValueError as error:
        said = str(error)
    assert said.startswith("polyattn.weights.read_ctranslate2: expected ")


FOUR = bytes(4)
HOSTILE = {
    "another version": (model(version=5), "it is of version 5"),
    "an unknown dtype": (model(array("a", (1,), 5, FOUR)), "it has an array of dtype 5, where float32, int8, int16, int32, float16 are 0 to 4"),
    "too few bytes for the shape": (model(array("a", (2,), 0, FOUR)), "it has an array of shape (2,) and float32 in 4 bytes"),
    "a shape beyond any memory": (model(array("a", (2**32 - 1,) * 4, 0, FOUR)), "and float32 in 4 bytes"),
    "nothing of a shape beyond any memory": (model(array("a", (2**32 - 1,) * 4 + (0,), 0, b"")), "the reader says"),
    "more axes than there are": (model(array("a", (1,) * 200, 0, FOUR)), "the reader says"),
    "two of one name": (model(array("a", (1,), 0, FOUR), array("a", (1,), 0, FOUR)), "it has 'a' more than once"),
    "an alias of nothing": (model(aliases=struct.pack("<I", 1) + text("b") + text("a")), "it has another name for 'a', which is not there"),
    "a text without an end": (struct.pack("<IH", 6, 1) + b"a", "a text in it does not end with a zero"),
    "a text with two": (struct.pack("<IH", 6, 3) + b"a\0\0", "a text in it does not end with a zero"),
    "a text in no encoding": (struct.pack("<IH", 6, 2) + b"\xff\0", "codec can't decode"),
    "more behind its end": (WHOLE + b"\0", "it has 1 bytes behind its end"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_made_to_harm_is_refused(name: str, written: Callable[[bytes], Path]) -> None:
    content, said = HOSTILE[name]
    with pytest.raises(ValueError, match=r"^polyattn[^:]*: expected .+, got .+; .+") as refusal:
        weights.read_ctranslate2(written(content))
    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 600
