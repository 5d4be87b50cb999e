"""PyTorch's fused kernels on a machine that does not compile them: the same programs, run as they are."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from shared.libraries import polyattn_torch, torch


def tiles_as_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are traced as for the compiler, which takes seconds for each, and their programs run."""
    monkeypatch.setattr(polyattn_torch.fused._Tile, "compile", lambda self, traced, arrays: traced)
    monkeypatch.setattr(polyattn_torch.fused, "_KEPT", OrderedDict())


def flex_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention is the function that its kernel computes, with lse and derivatives, in every dtype."""
    from torch.nn.attention import flex_attention as theirs

    def uncompiled(*args: Any, **options: Any) -> Any:
        torch.compiler.reset()  # it goes through Dynamo each time, which keeps a few programs alone
        return theirs.flex_attention(*args, **options)

    monkeypatch.setattr(polyattn_torch.flex_kernel, "_no_kernel", lambda p: None)
    monkeypatch.setattr(polyattn_torch.flex_kernel, "_kernel", lambda p: uncompiled)
    monkeypatch.setattr(theirs, "_validate_device", lambda *qkv: None)


def compiled_flex(**how: Any) -> Any:
    """FlexAttention under torch.compile."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, **how)
