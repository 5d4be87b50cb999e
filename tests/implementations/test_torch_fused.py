"""PyTorch's fused kernels: the engine's tiles compiled for the CPU, and FlexAttention on CUDA."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from shared.libraries import TorchBench, polyattn_torch, torch
from shared.torch_kernels import compiled_flex, flex_on_the_cpu, tiles_as_traced

from polyattn import AuxRequest, attention, masks, mods
from polyattn.arrays import TileSizes
from polyattn.parity import ACCEPTANCE, eta, round_to
from polyattn.parity.case import Case, Draw, Sample
from polyattn.parity.cases import cases
from polyattn.testing import check_backend
from polyattn.truth import Spec, truth
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.threefry import kept

pytestmark = pytest.mark.rule("rule-20")

RNG = np.random.default_rng(0)
REFUSAL = "expected a problem that a fused kernel computes exactly for implementation='fused'"
WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


def fused_or_refused(*arrays: Any, **options: Any) -> Any:
    try:
        return attention(*arrays, **options, implementation="fused")
    except ValueError as refusal:
        if REFUSAL not in str(refusal):
            raise
        return attention(*arrays, **options, implementation="reference")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_as_traced(monkeypatch)


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    flex_on_the_cpu(monkeypatch)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def programs() -> int:
    return len(polyattn_torch.fused._KEPT)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("dtype", "tile"), [("float32", (3, 4)), ("bfloat16", (256, 256))])
def test_traced_tiles_agree_on_every_case(dtype: str, tile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles are many, with a ragged line on either side."""
    monkeypatch.setattr(polyattn_torch.TorchBackend, "tile_sizes", lambda self, p: TileSizes(*tile, None))
    check_backend(TorchBench(), dtypes=[dtype], attention=fused_or_refused)


@WARNINGS
@pytest.mark.slow
def test_compiled_tiles_agree_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and cut tiles of 4 x 4, a ragged line on either side."""

    def everything(d: Draw) -> Sample:
        bias, sinks = d.normal(1, 4, 1, 9), d.normal(4)
        spec = Spec(**d.qkv(), allowed=np.tri(9, dtype=bool), softcap=3.0, bias=bias, sinks=sinks)
        options = {"is_causal": True, "score_mod": mods.softcap(3.0), "bias": bias, "sinks": sinks}
        return Sample(spec, options)

    def fused(*arrays: Any, **options: Any) -> Any:
        return attention(*arrays, **options, implementation="fused")

    monkeypatch.setattr(polyattn_torch.TorchBackend, "tile_sizes", lambda self, p: TileSizes(4, 4, None))
    case = Case("all of it", ("rule-20",), everything)
    check_backend(TorchBench(), dtypes=["float32"], only=[case], attention=fused)


@WARNINGS
@pytest.mark.slow
@pytest.mark.rule("rule-11", "rule-21")
def test_the_counter_of_dropout_is_compiled_with_the_tile() -> None:
    x = round_to(RNG.normal(size=(1, 2, 8, 16)), "bfloat16")
    given = torch.from_numpy(x).bfloat16()
    with torch.no_grad():
        out = attention(given, given, given, dropout_rate=0.25, dropout_seed=5, implementation="fused")
    judged = truth(Spec(x, x, x, keep=kept(1, 2, 8, 8, rate=0.25, seed=5)))["out"]
    assert eta(out.double().numpy(), judged, "bfloat16") <= ACCEPTANCE


@pytest.mark.usefixtures("traced")
def test_a_tile_is_traced_once_for_all_lengths_offsets_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyattn_torch.TorchBackend, "tile_sizes", lambda self, p: TileSizes(4, 4, None))
    found = set()
    for rows, offset, seed in ((12, 0, 1), (19, 3, 2), (8, 7, 3)):
        x = torch.from_numpy(RNG.normal(size=(1, 2, rows, 8))).requires_grad_()
        options: dict[str, Any] = {
            "is_causal": True,
            "query_offset": offset,
            "dropout_rate": 0.5,
            "dropout_seed": seed,
        }
        out = attention(x, x, x, **options, implementation="fused")
        (gradient,) = torch.autograd.grad(out.sum(), x)
        expected = attention(x, x, x, **options, implementation="reference")
        (true,) = torch.autograd.grad(expected.sum(), x)
        # A product has 8 entries here, and a gradient is a chain of four of them.
        unit = ACCEPTANCE * UNIT_ROUNDOFF["float64"] * x.shape[-1]
        assert (out - expected).abs().max() <= unit
        assert (gradient - true).abs().max() <= 4 * unit
        found.add(programs())
    assert found == {4}, "a whole and a cut tile, forward and backward"


@pytest.mark.rule("rule-12")
@pytest.mark.usefixtures("traced")
def test_a_function_is_asked_in_each_call_and_its_tensors_are_arguments() -> None:
    x = torch.from_numpy(RNG.normal(size=(1, 1, 6, 8)))
    table = torch.zeros(11, dtype=torch.float64)

    def relative(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + table[q - kv + 5]

    for _ in range(2):
        table = torch.from_numpy(RNG.normal(size=11))
        out = attention(x, x, x, score_mod=relative, implementation="fused")
        at = np.arange(6)
        bias = table.numpy()[at[:, None] - at + 5]
        judged = truth(Spec(*(x.numpy(),) * 3, bias=bias[None, None]))["out"]
        assert eta(out.numpy(), judged, "float64") <= ACCEPTANCE
    assert programs() == 1


@pytest.mark.rule("rule-16")
@pytest.mark.usefixtures("traced")
def test_threads_get_the_bits_of_one() -> None:
    x = torch.from_numpy(RNG.normal(size=(1, 2, 40, 8)))
    found: list[Any] = []

    def call() -> None:
        found.append(attention(x, x, x, is_causal=True, score_mod=mods.softcap(2.0), implementation="fused"))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(x, found[0]) for x in found)
    assert programs() == 1


X = torch.from_numpy(RNG.normal(size=(1, 2, 6, 8)))
WEIGHT = torch.ones(1, dtype=torch.float64, requires_grad=True)
REFUSED: dict[str, tuple[Any, str]] = {
    "weights": ({"return_aux": AuxRequest(weights=True)}, "with a wish for weights, which none of them takes"),
    "what a function captures": ({"score_mod": lambda s, *at: s * WEIGHT}, "captures a tensor that requires a gradient"),
    "nothing": ({}, "there is nothing to compute"),
}  # fmt: skip


@pytest.mark.rule("rule-13")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_is_refused_with_the_reason(what: str) -> None:
    options, reason = REFUSED[what]
    x = X[:, :, :, :0] if what == "nothing" else X
    with pytest.raises(ValueError) as caught:
        attention(x, x, x, **options, query_offset=0, implementation="fused")
    assert str(caught.value).startswith(f"polyattn.attention: {REFUSAL}, got one ")
    assert reason in str(caught.value)


def test_inside_a_compiler_or_a_transform_it_is_refused() -> None:
    def f(x: Any) -> Any:
        return attention(x, x, x, implementation="fused")

    for call in (lambda: torch.func.vmap(f)(X[None]), lambda: torch.compile(f, backend="eager")(X)):
        with pytest.raises(ValueError, match="the call is already being compiled or transformed"):
            call()


def test_a_function_that_asks_for_values_is_a_sentence() -> None:
    with pytest.raises(TypeError) as caught:
        attention(
            X, X, X, score_mod=lambda s, *at: s * float(s.max()), query_offset=0, implementation="fused"
        )
    assert str(caught.value) == (
        "polyattn.attention: expected functions that compute alike for all scores, got one that asks for the value of "
        "an array (if, while, int(), item()), which a compiled tile cannot; write torch.where, or use "
        "implementation='blockwise'"
    )


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    polyattn_torch.fused._why_no_compiler.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"TorchInductor finds no C\+\+ compiler here"):
            attention(X, X, X, implementation="fused")
    finally:
        polyattn_torch.fused._why_no_compiler.cache_clear()


FLEXIBLE = (
    "softcap bias mask",
    "causal offset per item",
    "packed documents",
    "rows that see nothing",
    "sinks and empty rows",
    "poison in hidden keys",
    "values of another width",
    "scale per head",
    "sinks",
    "functions on positions",
    "relative position bias",
    "query and key lengths",
)


@WARNINGS
@pytest.mark.usefixtures("flex")
def test_flex_attention_agrees() -> None:
    """What the kernel of CUDA is given, computed by FlexAttention's own definition: lse and gradients too."""
    chosen = [case for case in cases() if case.name in FLEXIBLE]
    assert len(chosen) == len(FLEXIBLE)
    check_backend(TorchBench(), dtypes=["float64"], only=chosen, attention=fused_or_refused)


@WARNINGS
@pytest.mark.usefixtures("flex")
@pytest.mark.parametrize("lengths", [(130, 130), (256, 200), (90, 300)], ids=str)
def test_blocks_of_flex_attention_are_those_of_the_mask(lengths: tuple[int, int]) -> None:
    rows, keys = lengths
    q, k, v = RNG.normal(size=(1, 4, rows, 16)), *RNG.normal(size=(2, 1, 2, keys, 16))
    for array in (k, v):
        array[:, :, keys - 5 :] = np.nan
    mask = (masks.causal() | masks.prefix(140)) & masks.key_lengths(keys - 5)
    allowed = mask.dense(rows, keys, query_offset=keys - rows)[None, None]
    given = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    out, aux = attention(
        *given, mask=mask, query_offset="end", return_aux=AuxRequest(), implementation="fused"
    )
    assert aux.implementation == "fused"
    k, v = (np.nan_to_num(x) for x in (k, v))
    judged = truth(Spec(q, k, v, allowed=allowed), np.ones(out.shape))
    assert eta(out.detach().numpy(), judged["out"], "float64") <= ACCEPTANCE
    for name, x in zip(("dq", "dk", "dv"), torch.autograd.grad(out.sum(), given), strict=True):
        assert eta(x.numpy(), judged[name], "float64") <= ACCEPTANCE, name


@WARNINGS
@pytest.mark.usefixtures("flex")
def test_flex_attention_is_compiled_once_for_offsets_and_twice_for_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second length makes a symbol of it."""
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    kernel = compiled_flex(backend=backend, isolate_recompiles=True)
    monkeypatch.setattr(polyattn_torch.flex_kernel, "_kernel", lambda p: kernel)
    counts = []
    for rows, keys, offset, lengths in (
        (200, 300, 100, [90, 150]),
        (200, 300, 77, [80, 300]),
        (300, 400, 90, [90, 150]),
        (301, 411, 110, [90, 411]),
    ):
        q, k = (torch.from_numpy(RNG.normal(size=(2, heads, n, 8))) for heads, n in ((4, rows), (2, keys)))
        mask = masks.key_lengths(torch.tensor(lengths)) & masks.causal()
        options: dict[str, Any] = {"mask": mask, "query_offset": offset, "score_mod": mods.softcap(2.0)}
        out = attention(q, k, k, **options, implementation="fused")
        kv = np.arange(keys)
        allowed = (kv <= np.arange(rows)[:, None] + offset) & (kv < np.array(lengths)[:, None, None, None])
        judged = truth(Spec(q.numpy(), k.numpy(), k.numpy(), allowed=allowed, softcap=2.0))["out"]
        assert eta(out.numpy(), judged, "float64") <= ACCEPTANCE
        counts.append(len(compiled))
    assert counts == [1, 1, 2, 2]


@WARNINGS
@pytest.mark.slow
@pytest.mark.usefixtures("flex")
def test_what_flex_attention_is_given_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where its kernel gives no lse: lists of positions, a scale for each head, a bias and a soft cap."""
    kernel = compiled_flex()

    def without_lse(*args: Any, return_aux: Any, **options: Any) -> Any:
        return kernel(*args, **options), return_aux._replace(lse=torch.zeros(()))

    monkeypatch.setattr(polyattn_torch.flex_kernel, "_kernel", lambda p: without_lse)
    at, kv = np.arange(200) + 50, np.stack([np.arange(300), np.arange(300) - 5])
    q, k, bias = (
        round_to(RNG.normal(size=n), "float32") for n in ((2, 4, 200, 16), (2, 2, 300, 16), (1, 4, 1, 300))
    )
    scale = np.array([0.125, 0.25, 0.5, 1.0])
    with torch.no_grad():
        out = attention(
            *(torch.from_numpy(x).float() for x in (q, k, k)),
            is_causal=True,
            query_positions=torch.from_numpy(at),
            key_positions=torch.from_numpy(kv),
            scale=torch.from_numpy(scale).float(),
            score_mod=mods.softcap(2.0),
            bias=torch.from_numpy(bias).float(),
            implementation="fused",
        )
    allowed = (kv[:, None, :] <= at[:, None]) & (kv[:, None, :] >= 0)
    spec = Spec(q, k, k, allowed=allowed[:, None], scale=scale, softcap=2.0, bias=bias)
    assert eta(out.numpy(), truth(spec)["out"], "float32") <= ACCEPTANCE


@pytest.mark.gpu
@WARNINGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention_on_cuda_agrees(dtype: str) -> None:
    assert torch.cuda.is_available(), "the GPU tests were asked for and there is no GPU"
    check_backend(TorchBench(device="cuda"), dtypes=[dtype], attention=fused_or_refused)
