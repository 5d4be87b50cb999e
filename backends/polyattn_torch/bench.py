"""PyTorch on the test bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyattn.arrays import Array
from polyattn.parity.bench import Function
from polyattn.truth.spec import Floats

__all__ = ["TorchBench", "bench"]


class TorchBench:
    """PyTorch, eager by default; `compile` names a backend of torch.compile (always fullgraph)."""

    name: str = "torch"
    version = str(torch.__version__)
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")

    def __init__(self, compile: str | None = None, device: str = "cpu") -> None:
        self.compile = compile
        self.device = device

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        made = torch.from_numpy(np.array(x))
        if x.dtype.kind == "f" and dtype is not None:
            made = made.to(getattr(torch, dtype))
        return made.to(self.device)

    def numpy(self, x: Array) -> Floats:
        x = x.detach().cpu()
        values: Floats = (x.double() if x.dtype.is_floating_point else x).numpy()
        return values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        if self.compile:
            torch.compiler.reset()
            f = torch.compile(f, fullgraph=True, backend=self.compile)
        leaves = {name: x.requires_grad_(cotangent is not None) for name, x in arrays.items()}
        out, lse = f(leaves)
        if cotangent is None:
            return out, lse, None
        grads = torch.autograd.grad(out, list(leaves.values()), cotangent, materialize_grads=True)
        return out, lse, dict(zip(leaves, grads, strict=True))

    def bert(self, folder: Path, dtype: str, tokens: Floats, mask: Floats) -> Floats:
        """The last hidden states of `transformers.BertModel`, every layer of which must call polyattn."""
        from transformers import BertModel
        from transformers.utils import logging

        from polyattn_torch import transformers as adapter

        adapter.register()
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = BertModel.from_pretrained(
                folder, local_files_only=True, attn_implementation="polyattn", dtype=getattr(torch, dtype)
            ).eval()
        finally:
            if bars:
                logging.enable_progress_bar()
        batch = {
            "input_ids": torch.from_numpy(tokens).long(),
            "attention_mask": torch.from_numpy(mask).long(),
        }
        if not (found := adapter.check(model, batch)).ok:
            raise AssertionError(found.sentence)
        with torch.no_grad():
            return self.numpy(model(**batch).last_hidden_state)


bench = TorchBench
