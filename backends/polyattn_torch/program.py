"""A function of 0-d tensors, traced to ATen operations and run on arrays of any library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from polyattn.arrays import backend_of, is_array, numpy_backend
from polyattn.masks.fitting import fill_rank
from polyattn_torch.aten import OPERATIONS, Arrays, Value

__all__ = ["Program", "Ref"]


@dataclass(frozen=True)
class Ref:
    """The result of an earlier step."""

    step: int


class Step(NamedTuple):
    """An argument (no target), a captured tensor (no name), or an operation."""

    name: str
    target: Any
    args: Any = ()
    kwargs: Any = None
    varies: bool = False  # from place to place; what does not is left to torch


def _replace(x: Any, kind: type, f: Callable[[Any], Any]) -> Any:
    """x with f in place of everything of a kind, however deep in lists and dicts."""
    if isinstance(x, kind):
        return f(x)
    if isinstance(x, dict):
        return {name: _replace(value, kind, f) for name, value in x.items()}
    return [_replace(value, kind, f) for value in x] if isinstance(x, (list, tuple)) else x


class _Lookups(TorchFunctionMode):
    """Makes table[q_idx] a lookup where torch would ask for the value of q_idx, as FlexAttention does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            table, index = args
            index = index if isinstance(index, tuple) else (index,)
            if all(isinstance(i, (torch.Tensor, int)) for i in index):
                where = [i if isinstance(i, torch.Tensor) else torch.tensor(i) for i in index]
                return torch.ops.aten.index.Tensor(table, where)
        return func(*args, **(kwargs or {}))


class Program:
    """A function of 0-d tensors as steps, and the way to run them on arrays."""

    def __init__(self, f: Callable[..., Any], given: Sequence[torch.Tensor], who: str) -> None:
        self.name = getattr(f, "__name__", type(f).__name__)
        self.who = who
        self.steps: list[Step] = []
        try:
            with torch.no_grad(), _Lookups():
                traced = make_fx(lambda *xs: f(*xs), core_aten_decompositions())(*given)
        except RuntimeError as error:
            if "value out of a tracing tensor" not in str(error):
                raise
            raise TypeError(
                f"{who}: expected one computation for all scores, got {self.name}, which asks for the value of a "
                "tensor (if, while, int(), item()); write torch.where, and read captured tensors outside of it"
            ) from error
        numbers: dict[Node, int] = {}
        *nodes, output = traced.graph.nodes
        for node in nodes:
            numbers[node] = len(self.steps)
            self.steps.append(self._step(traced, node, numbers))
        values = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        self.wide = any(value.dtype == torch.float64 for value in values)
        (result,) = output.args
        if isinstance(result, Node) and (shape := tuple(result.meta["val"].shape)):
            raise ValueError(
                f"{who}: expected one value for every score, got an array of shape {shape} from {self.name}; look up "
                "all of its axes, or reduce them"
            )
        self.result = _replace(result, Node, lambda node: Ref(numbers[node]))

    def _step(self, traced: GraphModule, node: Node, numbers: dict[Node, int]) -> Step:
        if node.op == "placeholder":
            return Step("", None, varies=True)
        if node.op == "get_attr":
            return Step("", getattr(traced, str(node.target)))
        target: Any = node.target
        name = str(getattr(target, "overloadpacket", target)).removeprefix("aten.")
        varies = any(self.steps[numbers[n]].varies for n in node.all_input_nodes)
        if name == "full_like":
            value = node.meta["val"]
            return Step(name, torch.full, (list(value.shape), node.args[1]), {"dtype": value.dtype})
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            self._refuse(name, "other libraries draw other numbers; capture a tensor of them")
        if getattr(target, "_schema", None) is not None and target._schema.is_mutable:
            if not (varies and name.endswith("_") and self.steps[numbers[node.all_input_nodes[0]]].varies):
                self._refuse(name, "it changes a tensor in place that others may hold; write it without")
            name = name[:-1]
        if varies and name not in OPERATIONS:
            self._refuse(name, "that has no counterpart here; compute it outside, or write it otherwise")
        args, kwargs = (_replace(x, Node, lambda n: Ref(numbers[n])) for x in (node.args, dict(node.kwargs)))
        return Step(name, target, args, kwargs, varies)

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise NotImplementedError(
            f"{self.who}: expected elementwise operations, reductions and lookups in captured tensors, got {name} in "
            f"{self.name}: {why}"
        )

    def __call__(self, given: Sequence[Any], floating: Any = None) -> Any:
        """The function on broadcastable arrays; floating: the dtype of floating numbers, None for torch's."""
        arrays = [x for x in given if is_array(x)] or [numpy_backend().xp.asarray(given[0])]
        backend = backend_of(arrays[0])
        if floating is None:
            xp = backend.xp
            has_wide = "float64" in xp.__array_namespace_info__().dtypes(kind="real floating")
            floating = xp.float64 if self.wide and has_wide else xp.float32
        on = Arrays(self.who, backend, arrays[0], floating, max(x.ndim for x in arrays))
        # What torch is silent about, NumPy warns of: log(0) where another branch is taken.
        with nullcontext() if backend.name == "torch" else np.errstate(all="ignore"):
            known = self._run(on, given)
        result = _replace(self.result, Ref, lambda ref: known[ref.step])
        if not isinstance(result, (Value, torch.Tensor)):
            return result
        return fill_rank(on.value(result).array, on.rank)

    def _run(self, on: Arrays, given: Sequence[Any]) -> list[Any]:
        """The result of every step."""
        inputs = iter(given)
        known: list[Any] = []
        for step in self.steps:
            if step.target is None:
                x = next(inputs)
                known.append(Value(x, 0) if is_array(x) else x)
            elif not step.name:
                known.append(step.target)
            else:
                args, kwargs = (
                    _replace(x, Ref, lambda ref: known[ref.step]) for x in (step.args, step.kwargs)
                )
                run = OPERATIONS[step.name] if step.varies else step.target
                known.append(run(on, *args, **kwargs) if step.varies else run(*args, **kwargs))
        return known
