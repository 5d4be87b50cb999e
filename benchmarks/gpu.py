"""On one NVIDIA GPU: TFLOP/s and the share of the card's peak, ours beside the kernels of PyTorch and JAX.

    python benchmarks/gpu.py                    every case, a table and the targets
    python benchmarks/gpu.py --case causal      cases with this in their name
    python benchmarks/gpu.py --keep             also writes benchmarks/results/<card>.txt
    python benchmarks/gpu.py --smoke            two tiny cases on the CPU, kernels interpreted: does everything run?

A line is the median of rounds; contestants are shuffled in each, and each is called once untimed before. "backward" is
the forward pass and the gradients of q, k and v: 3.5 times the products of the forward pass.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory beside it

import numpy as np
from cases import DOCUMENT, WINDOW

from polyattn import Fused, attention, masks, mods

RESULTS = Path(__file__).parent / "results"
CAP = 50.0
#: Name of a card -> TFLOP/s of its data sheet, dense: tensor cores in bfloat16, and plain float32.
PEAKS = {
    "H100": {"bfloat16": 989.4, "float32": 66.9},
    "H200": {"bfloat16": 989.4, "float32": 66.9},
    "A100": {"bfloat16": 312.0, "float32": 19.5},
    "B200": {"bfloat16": 2250.0, "float32": 75.0},
}


@dataclass(frozen=True)
class Case:
    problem: str  # "full", "causal", "window", "documents", "soft cap", "sinks", "grouped" or "decoding"
    length: int = 8192
    dtype: str = "bfloat16"
    backward: bool = False
    batch: int = 2
    heads: int = 16
    width: int = 128

    def __str__(self) -> str:
        return f"{self.problem} {self.length} {self.dtype} {'backward' if self.backward else 'forward'}"

    @property
    def kv_heads(self) -> int:
        return self.heads // 4 if self.problem in ("grouped", "decoding") else self.heads

    @property
    def rows(self) -> int:
        return 1 if self.problem == "decoding" else self.length

    @property
    def causal(self) -> bool:
        return self.problem not in ("full", "decoding")

    @property
    def plain(self) -> bool:
        """Whether a kernel with a causal flag can be told."""
        return self.problem in ("full", "causal", "grouped", "decoding")

    def arrays(self) -> list[Any]:
        rng = np.random.default_rng(0)
        sizes = ((self.heads, self.rows), *[(self.kv_heads, self.length)] * 2)
        return [rng.standard_normal((self.batch, *size, self.width), np.float32) for size in sizes]

    @property
    def operations(self) -> float:
        """Of the products that the problem needs."""
        n = self.length
        pairs: float = self.rows * n
        if self.problem == "window":
            pairs = sum(min(i + 1, WINDOW) for i in range(n))
        elif self.problem == "documents":
            whole, rest = divmod(n, DOCUMENT)
            pairs = (whole * DOCUMENT * (DOCUMENT + 1) + rest * (rest + 1)) / 2
        elif self.causal:
            pairs = n * (n + 1) / 2
        return 4 * self.batch * self.heads * pairs * self.width * (3.5 if self.backward else 1)


MASKED = ("window", "documents", "soft cap", "sinks")
CASES = (
    *(
        Case(problem, dtype=dtype, backward=backward, length=8192 if dtype == "bfloat16" else 4096)
        for problem in ("full", "causal", "grouped", *MASKED)
        for dtype in ("bfloat16", "float32")
        for backward in (False, True)
    ),
    Case("decoding", 32768, batch=8, heads=32),
)
SMOKE = tuple(
    replace(case, length=64, batch=1, heads=4, width=16)
    for case in (Case("causal"), Case("soft cap", dtype="float32", backward=True))
)

Run = Callable[[], Any]  # starts the work
Contestant = Callable[
    [Case, bool], Run | None
]  # of a case, and whether this is the smoke test; None: it cannot be told
CONTESTANTS: dict[str, Contestant] = {}


def contestant(name: str) -> Callable[[Contestant], Contestant]:
    def add(make: Contestant) -> Contestant:
        CONTESTANTS[name] = make
        return make

    return add


def on_torch(case: Case, smoke: bool, attend: Callable[..., Any]) -> Run:
    import torch

    device, dtype = "cpu" if smoke else "cuda", getattr(torch, case.dtype)
    q, k, v = (torch.from_numpy(x).to(device, dtype).requires_grad_(case.backward) for x in case.arrays())
    if not case.backward:
        return lambda: attend(q, k, v)
    cotangent = torch.ones_like(q)
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), cotangent)


def on_jax(case: Case, attend: Callable[..., Any], layout: str = "BHLD") -> Run:
    import jax
    import jax.numpy as jnp

    arrays = [jnp.asarray(x if layout == "BHLD" else x.swapaxes(1, 2), case.dtype) for x in case.arrays()]

    def gradients(q: Any, k: Any, v: Any) -> Any:
        return jax.vjp(attend, q, k, v)[1](jnp.ones_like(q))

    run = jax.jit(gradients if case.backward else attend)
    return lambda: run(*arrays)


def sdpa(case: Case, smoke: bool, kernel: str) -> Run | None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not case.plain:
        return None

    def attend(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads
            )

    return on_torch(case, smoke, attend)


@contestant("sdpa flash")
def sdpa_flash(case: Case, smoke: bool) -> Run | None:
    return sdpa(case, smoke, "FLASH_ATTENTION") if smoke or case.dtype != "float32" else None


@contestant("sdpa cuDNN")
def sdpa_cudnn(case: Case, smoke: bool) -> Run | None:
    return None if smoke or case.dtype == "float32" else sdpa(case, smoke, "CUDNN_ATTENTION")


@contestant("sdpa efficient")
def sdpa_efficient(case: Case, smoke: bool) -> Run | None:
    """What PyTorch has in float32."""
    grouped = case.heads != case.kv_heads
    return None if smoke or grouped or case.dtype != "float32" else sdpa(case, smoke, "EFFICIENT_ATTENTION")


@contestant("flex")
def flex(case: Case, smoke: bool) -> Run | None:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.problem in ("sinks", "decoding") or (smoke and case.backward):  # which it has not on a CPU
        return None

    def allowed(b: Any, h: Any, q: Any, kv: Any) -> Any:
        seen = kv <= q
        if case.problem == "window":
            seen = seen & (kv > q - WINDOW)
        return seen & (q // DOCUMENT == kv // DOCUMENT) if case.problem == "documents" else seen

    def capped(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return CAP * torch.tanh(score / CAP)

    device = "cpu" if smoke else "cuda"
    options: dict[str, Any] = {"enable_gqa": case.heads != case.kv_heads}
    if case.causal:
        options["block_mask"] = create_block_mask(allowed, None, None, case.rows, case.length, device=device)
    if case.problem == "soft cap":
        options["score_mod"] = capped
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, backend="eager" if smoke else "inductor")
    return on_torch(case, smoke, lambda q, k, v: compiled(q, k, v, **options))


@contestant("jax.nn cuDNN")
def jax_nn(case: Case, smoke: bool) -> Run | None:
    import jax

    if not case.plain or (case.dtype == "float32" and not smoke):
        return None
    which: Any = "xla" if smoke else "cudnn"

    def attend(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=case.causal, implementation=which)

    return on_jax(case, attend, "BLHD")


def options_of(case: Case, array: Callable[[Any], Any]) -> dict[str, Any]:
    """The case as polyattn takes it."""
    options: dict[str, Any] = {"is_causal": case.causal}
    if case.problem == "window":
        options["mask"] = masks.sliding_window(WINDOW)
    elif case.problem == "documents":
        options["mask"] = masks.chunked(DOCUMENT)
    elif case.problem == "soft cap":
        options["score_mod"] = mods.softcap(CAP)
    elif case.problem == "sinks":
        options["sinks"] = array(np.zeros(case.heads, np.float32))
    return options


def ours(case: Case, smoke: bool, library: str, implementation: Any) -> Run | None:
    """None where an implementation that is asked for by name refuses."""
    if library == "torch":
        import torch

        options = options_of(case, lambda x: torch.from_numpy(x).to("cpu" if smoke else "cuda"))
        make: Callable[[Callable[..., Any]], Run] = lambda f: on_torch(case, smoke, f)  # noqa: E731
    else:
        import jax.numpy as jnp

        options = options_of(case, jnp.asarray)
        make = lambda f: on_jax(case, f)  # noqa: E731
    run = make(lambda q, k, v: attention(q, k, v, **options, implementation=implementation))
    try:
        run()
    except ValueError as refusal:
        if "computes exactly for implementation=" not in str(refusal):
            raise
        return None
    return run


for library in ("torch", "jax"):
    for word in ("native", "fused", "blockwise"):

        def _make(case: Case, smoke: bool, library: str = library, word: str = word) -> Run | None:
            interpreted = smoke and (library, word) == ("jax", "fused")
            settings = Fused(16, 16, platform="gpu", interpret=True) if interpreted else word
            return ours(case, smoke, library, settings)

        contestant(f"polyattn {library} {word}")(_make)


@dataclass(frozen=True)
class Target:
    """`mine` is to be at least `ratio` times as fast as `peer`, where both ran."""

    mine: str
    peer: str
    ratio: float
    problems: tuple[str, ...] = ("full", "causal", "grouped")


TARGETS = (
    Target("polyattn torch native", "sdpa flash", 0.97),
    Target("polyattn jax native", "jax.nn cuDNN", 0.97),
    Target("polyattn jax fused", "jax.nn cuDNN", 0.7),
    Target("polyattn jax fused", "flex", 0.9, MASKED),
    Target("polyattn torch fused", "flex", 0.9, MASKED),
)


def wait(result: Any) -> None:
    """Until what was started is done."""
    first = result[0] if isinstance(result, (tuple, list)) else result
    if type(first).__module__.startswith("torch"):
        if first.is_cuda:
            import torch

            torch.cuda.synchronize()
    else:
        first.block_until_ready()


def measure(case: Case, smoke: bool, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Median seconds of each contestant."""
    runs: dict[str, Run] = {}
    for name, make in CONTESTANTS.items():
        try:
            run = make(case, smoke)
            if run is not None:
                wait(run())  # compiles
        except Exception as error:  # a kernel that this card, or this version, has not
            if smoke and not isinstance(error, ImportError):
                raise
            say(f"  {name}: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
            continue
        if run is not None:
            runs[name] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(rounds):
        for name, run in random.Random(done).sample(list(runs.items()), len(runs)):
            time.sleep(0 if smoke else 0.05)  # that one contestant does not heat the card for the next
            wait(run())
            calls = 1 if smoke else 10
            before = time.perf_counter()
            for _ in range(calls):
                result = run()
            wait(result)
            times[name].append((time.perf_counter() - before) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def verdicts(found: dict[Case, dict[str, float]]) -> list[str]:
    lines = []
    for target in TARGETS:
        for case, times in found.items():
            if case.problem in target.problems and target.mine in times and target.peer in times:
                ratio = times[target.peer] / times[target.mine]
                word = "reached" if ratio >= target.ratio else "MISSED "
                lines.append(
                    f"  {word} {case}: {target.mine} {ratio:.2f}x {target.peer}, target {target.ratio:g}x"
                )
    return lines


def card(smoke: bool) -> str:
    import torch

    return "CPU" if smoke else torch.cuda.get_device_name()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny cases on the CPU, one round")
    parser.add_argument("--case", default="", help="cases with this in their name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/<card>.txt")
    args = parser.parse_args()
    name, lines = card(args.smoke), []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("polyattn", "torch", "jax"))
    say(f"{name}, {versions}")
    peaks = next((peak for word, peak in PEAKS.items() if word in name), {})
    found: dict[Case, dict[str, float]] = {}
    for case in SMOKE if args.smoke else CASES:
        if args.case not in str(case):
            continue
        say(f"{case}  (B {case.batch}, H {case.heads}/{case.kv_heads}, D {case.width})")
        found[case] = measure(case, args.smoke, 1 if args.smoke else args.rounds, say)
        for who, seconds in found[case].items():
            speed = case.operations / seconds / 1e12
            share = f"{speed / peaks[case.dtype]:7.1%} of peak" if peaks else ""
            say(f"  {who:25}{seconds * 1e3:10.3f} ms{speed:9.1f} TFLOP/s{share}")
    if not args.smoke:
        say("targets")
    for line in [] if args.smoke else verdicts(found):
        say(line)
    if args.keep:
        word = "-".join(name.lower().split())
        (RESULTS / f"{word}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
