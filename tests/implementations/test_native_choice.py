"""What the kernels of PyTorch take, refuse and leave to others, on the values of a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import polyattn_torch, torch

from polyattn import AuxRequest, attention, mods
from polyattn.parity import FLOOR_ACCEPTANCE, floor_ratio, round_to
from polyattn.problem import pose
from polyattn.truth import Spec, eta, truth

pytestmark = pytest.mark.rule("rule-13", "rule-20")

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(1, 2, 6, 8)))
CAP = mods.softcap(2.0)


def by_name(x: torch.Tensor = X, **options: Any) -> Any:
    return attention(x, x, x, **options, implementation="native")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sinks and gradients": (
        lambda: by_name(X.clone().requires_grad_(), sinks=0.0),
        "autograd cannot pass through the fused kernel that tells its lse",
    ),
    "sinks and vmap": (
        lambda: torch.func.vmap(lambda x: by_name(x, sinks=0.0))(X[None]),
        "the fused kernel that tells its lse is one of the CPU, called eagerly",
    ),
    "nothing": (lambda: by_name(X[:, :, :0]), "there is nothing to compute"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_kernel_that_cannot_says_why(what: str) -> None:
    call, reason = REFUSED[what]
    with pytest.raises(ValueError) as caught:
        call()
    assert reason in str(caught.value)


@pytest.mark.parametrize("what", ["widths", "heads", "batches", "scale", "plain"])
def test_sinks_on_the_kernel_or_beside_it_are_the_definition(what: str) -> None:
    q, k, v = RNG.normal(size=(3, 2, 4, 7, 8))
    sinks = np.array([-1.0, 0.0, 2.0, 5.0])
    if what == "widths":
        v = v[..., :3]
    elif what == "heads":
        k, v = k[:, :2], v[:, :2]
    elif what == "batches":
        q = q[:1]
    scale = 0.7 if what == "scale" else None
    with torch.no_grad():
        out, aux = attention(
            *map(torch.tensor, (q, k, v)), sinks=torch.tensor(sinks), scale=scale, return_aux=AuxRequest()
        )
    assert aux.implementation == ("native" if what in ("scale", "plain") else "reference")
    assert eta(out.numpy(), truth(Spec(q, k, v, sinks=sinks, scale=scale))["out"], "float64") <= 4


@pytest.mark.rule("rule-21")
def test_a_bias_of_float32_keeps_its_digits_beside_half_precision() -> None:
    q, k, v = (round_to(x, "bfloat16") for x in RNG.normal(size=(3, 1, 2, 6, 8)))
    bias = round_to(100 + RNG.normal(size=(1, 1, 6, 6)), "float32")
    given = [torch.tensor(x).bfloat16() for x in (q, k, v)]
    out = attention(*given, bias=torch.tensor(bias).float(), implementation="native")
    judged = truth(Spec(q, k, v, bias=bias))["out"]
    assert floor_ratio(out.double().numpy(), judged, "bfloat16") <= FLOOR_ACCEPTANCE


@pytest.mark.parametrize("heads", ["one", "each"])
@pytest.mark.parametrize("items", ["one", "each"])
def test_masks_of_items_and_heads_beyond_a_tile_of_rows(heads: str, items: str) -> None:
    q, k, v = RNG.normal(size=(3, 2, 4, 140, 4))
    shape = (2 if items == "each" else 1, 4 if heads == "each" else 1, 140, 140)
    allowed = RNG.random(shape) < 0.3
    out = attention(*map(torch.tensor, (q, k, v)), mask=torch.tensor(allowed), implementation="native")
    assert eta(out.numpy(), truth(Spec(q, k, v, allowed=allowed))["out"], "float64") <= 4


def test_auto_compiles_no_kernel_on_the_cpu_by_itself() -> None:
    _, aux = attention(X.float(), X.float(), X.float(), score_mod=CAP, return_aux=AuxRequest())
    assert aux.implementation == "reference"


def test_under_a_compiler_the_definition_is_taken_up_to_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (torch.empty(1, 1, n, 8, device="meta") for n in (2**14, 2**15))
    problems = [pose("test", x, x, x, score_mod=CAP) for x in (small, large)]
    assert [polyattn_torch.reasons.passed_over_blockwise(p) for p in problems] == [None, None]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [polyattn_torch.reasons.passed_over_blockwise(p) for p in problems] == [
        "torch.compile fuses the definition",
        None,
    ]
