"""The node cases of the installed onnx by `polyattn.onnx` on four libraries, and by ONNX Runtime, side by side.

    python benchmarks/onnx_cases.py > benchmarks/results/onnx_cases.txt

For every case of Attention, RotaryEmbedding, LinearAttention and TensorScatter, the distance of all outputs
(present and qk_matmul_output too) from the arrays that onnx expects, in units of what one rounding to the
dtype explains; both may err by 4 units, so up to 8 agrees. Beside it the largest absolute difference, for
polyattn that of the worst library. ONNX Runtime is allowed opsets that it takes for unreleased. Needs what the
tests need.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # or ONNX Runtime refuses opset 27 as not yet released
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from onnx_nodes import BOTH, Floats, Node, computed, etas, nodes
from running import LIBRARIES, bench_of

from polyattn.arrays import backend_of

NO_HALF = "array-api-strict has neither float16 nor bfloat16"
#: Words in an error of ONNX Runtime, and what they mean.
REASONS = {
    r"Unrecognized attribute: (\w+_window_size)": "its Attention is that of opset 24 and has no windows",
    r"inconsistent total_sequence_length \(between attn_mask": "it takes no mask that is shorter than the keys",
    r"Type parameter \(T\) of Optype \(Add\) bound to different types \(tensor\(bfloat16\)": "no bfloat16: it writes Attention out in smaller operators, which then do not type-check",
    r"Could not find an implementation for (\w+)": "no bfloat16: it writes Attention out in smaller operators and has no {0} of it",
}


def by_polyattn(node: Node, library: str) -> list[Floats] | str:
    """The outputs as NumPy arrays, or why there are none."""
    if library == "strict" and node.is_half:
        return NO_HALF
    like = bench_of(library).array(np.zeros(1), "float32")
    backend = backend_of(like)
    with jax.enable_x64(node.asks_for_float64):
        return [backend.to_numpy(x) for x in computed(node, lambda x: backend.from_numpy(x, like))]


def by_onnxruntime(node: Node) -> list[Floats] | str:
    """The same, of the model that onnx made, on the CPU."""
    try:
        session = onnxruntime.InferenceSession(
            node.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        given = [x for x in node.inputs if x is not None]
        feed = {wanted.name: x for wanted, x in zip(session.get_inputs(), given, strict=True)}
        return [np.asarray(x) for x in session.run(None, feed)]
    except Exception as error:  # its errors share no base class but this
        return explained(str(error))


def explained(message: str) -> str:
    """What an error of ONNX Runtime means, or its own words where that is not known."""
    message = " ".join(message.split())
    for pattern, reason in REASONS.items():
        if found := re.search(pattern, message):
            return reason.format(*found.groups())
    return message


def gap(results: list[Floats], expected: tuple[Floats, ...]) -> float:
    """The largest absolute difference."""
    worst = 0.0
    for x, y in zip(results, expected, strict=True):
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        worst = max(worst, float(np.abs(a[differs] - b[differs]).max(initial=0.0)))
    return worst


def difference(results: list[Floats], node: Node) -> str:
    """What is different, of results that do not agree."""
    for x, y in zip(results, node.expected, strict=True):
        hidden = np.isneginf(np.asarray(y, np.float64))
        found = np.asarray(x, np.float64)[hidden]
        if found.size and np.all(found == np.finfo(np.float32).min):
            return f"it has {found[0]:.2g} where onnx expects -inf"
    return "the numbers are others"


class Column:
    """One implementation on all cases: what to print, and how it went."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count: Counter[str] = Counter()
        self.notes: dict[str, str] = {}  # a letter for each reason

    def judge(self, node: Node, results: list[Floats] | str) -> tuple[str, float | None]:
        """The cell of the table, and the largest absolute difference."""
        if isinstance(results, str):
            self.count["not implemented there"] += 1
            return f"none ({self._letter(results)})", None
        units = etas(node, results)[1]
        if units <= BOTH:
            self.count["agrees"] += 1
            return f"{units:.2f}", gap(results, node.expected)
        self.count["differs"] += 1
        return f"differs ({self._letter(difference(results, node))})", gap(results, node.expected)

    def _letter(self, reason: str) -> str:
        return self.notes.setdefault(reason, "abcdefghijklmnopqrstuvwxyz"[len(self.notes)])


def main() -> int:
    onnxruntime.set_default_logger_severity(4)
    ours, theirs = [Column(library) for library in LIBRARIES], Column("ONNX Runtime")
    packages: Any = {
        name: version(name) for name in ("onnx", "onnxruntime", "numpy", "array-api-strict", "jax", "torch")
    }
    print(", ".join(f"{name} {number}" for name, number in packages.items()))
    print(
        "distance from the arrays that onnx expects, in units of one rounding (up to 8 agrees), and absolute\n"
    )
    width = max(len(node.name) for node in nodes()) - len("test_")
    heads = "".join(f"{column.name:>9}" for column in ours)
    print(f"{'case':{width}} opset dtype   {heads}   largest   {theirs.name:>12}   largest")
    for node in nodes():
        cells, gaps = zip(
            *(column.judge(node, by_polyattn(node, column.name)) for column in ours), strict=True
        )
        cell, their_gap = theirs.judge(node, by_onnxruntime(node))
        largest = max(x for x in gaps if x is not None)
        print(
            f"{node.name.removeprefix('test_'):{width}} {node.opset:5} {node.dtype:8}"
            + "".join(f"{x:>9}" for x in cells)
            + f" {largest:9.1e}   {cell:>12} {'' if their_gap is None else f'{their_gap:9.1e}'}".rstrip()
        )
    print()
    for column in (*ours, theirs):
        print(f"{column.name:12} " + ", ".join(f"{what} {n}" for what, n in sorted(column.count.items())))
        for reason, letter in column.notes.items():
            print(f"    ({letter}) {reason}")
    return 1 if any(column.count["differs"] for column in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
