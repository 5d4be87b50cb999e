"""The engine on the CPU with every tile one compiled program: scores, mask, softmax and products by TorchInductor.

A tile is traced once, by running the engine's own code on one of them, and serves all tiles of its kind: where it lies
comes as two 0-d tensors. So neither the programs nor the time to compile them grow with the lengths. What is left over
at the edges, at most a line of tiles on either side, is run as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from polyattn.arrays import Array, TileSizes
from polyattn.arrays.leaves import put_in, says_all, take_out
from polyattn.implementations import BLOCKWISE, Blockwise, Implementation, Output
from polyattn.implementations.blockwise.plan import Plan
from polyattn.implementations.blockwise.rule import run
from polyattn.implementations.blockwise.tile import Blocks, Spot
from polyattn.problem import Problem
from polyattn_torch.reasons import nothing, why_not_blockwise
from polyattn_torch.state import can_read

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["FUSED"]

MOST = 64  # programs that are kept


class Kernel(NamedTuple):
    """A compiled tile, and the arrays that a function of the user holds."""

    program: Callable[..., Any]
    captured: Sequence[Array]
    tree: Any  # how its results belong together

    def __call__(self, *arrays: Array) -> Any:
        return tree_unflatten(self.program(*arrays, *self.captured), self.tree)


class _Kind(NamedTuple):
    """What is the same in all tiles of a kind: a problem without its arrays, and these."""

    static: Any
    held: list[Array]

    @classmethod
    def of(cls, p: Problem) -> _Kind:
        arrays: list[Array] = []
        static = take_out(p, arrays)
        return cls(static, [x.contiguous() for x in arrays])


class CompiledBlocks(Blocks):
    """Blocks whose whole tiles are compiled."""

    def __init__(self, p: Problem, plan: Plan) -> None:
        super().__init__(p, plan)
        anywhere = _anywhere(p, self.rows, self.keys)
        # Tiles that the mask fills are the same under every mask.
        self.kinds = {
            masked: _Kind.of(anywhere if masked else replace(anywhere, mask=None)) for masked in (True, False)
        }
        self.kernels: dict[Any, Kernel] = {}

    def run(self, body: Callable[..., Any], spot: Spot, *given: Any) -> Any:
        q, k, *_ = given
        if q.shape[2] != self.rows or k.shape[2] != self.keys:
            return body(self, spot, *given)
        bias = () if self.p.bias is None else (self._cut(self.p.bias, spot),)
        leaves, tree = tree_flatten((bias, given))
        # Contiguous, so that a program does not depend on the lengths of what the tile was cut from.
        arrays = [
            *(torch.tensor(n, dtype=torch.int32) for n in (spot.row, spot.key)),
            *self.kinds[spot.masked].held,
            *(x.contiguous() for x in leaves),
        ]
        which = body, spot.masked
        if which not in self.kernels:
            self.kernels[which] = _kernel(_Tile(self, body, spot.masked, tree), arrays)
        return self.kernels[which](*arrays)

    def _cut(self, x: Array, spot: Spot) -> Array:
        for axis, start, size in ((2, spot.row, self.rows), (3, spot.key, self.keys)):
            x = x if x.shape[axis] == 1 else x.narrow(axis, start, size)
        return x


class _Tile:
    """The work of one tile as a function of arrays alone."""

    def __init__(self, blocks: CompiledBlocks, body: Callable[..., Any], masked: bool, tree: Any) -> None:
        self.who, self.dropout = blocks.p.who, blocks.p.dropout_rate > 0.0
        self.static, self.held = blocks.kinds[masked].static, len(blocks.kinds[masked].held)
        self.sizes = TileSizes(blocks.rows, blocks.keys, None)
        self.body, self.masked, self.tree = body, masked, tree
        self.result: Any = None  # how what it gives belongs together, once it has run

    def __call__(self, row: Array, key: Array, *arrays: Array) -> Any:
        bias, given = tree_unflatten(list(arrays[self.held :]), self.tree)
        q, k, v, *_ = given
        nothing: Any = None
        p = replace(put_in(self.static, arrays[: self.held]), q=q, k=k, v=v, bias=bias[0] if bias else None)
        blocks = Blocks(p, Plan(self.sizes, nothing, nothing))
        found, self.result = tree_flatten(self.body(blocks, Spot(0, row, key, self.masked), *given))
        return found

    def trace(self, arrays: Sequence[Array]) -> GraphModule:
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            return make_fx(self)(*arrays)
        except RuntimeError as error:
            if "value out of a tracing tensor" not in str(error):
                raise
            raise TypeError(
                f"{self.who}: expected functions that compute alike for all scores, got one that asks for the value "
                "of an array (if, while, int(), item()), which a compiled tile cannot; write torch.where, or use "
                "implementation='blockwise'"
            ) from error

    def compile(self, traced: GraphModule, arrays: Sequence[Array]) -> Callable[..., Any]:
        # Twenty rounds of the generator that use each value twice: without an end to what is inlined, 2^20 steps.
        options = {"realize_opcount_threshold": 16} if self.dropout else {}
        return torch._inductor.compile(traced, list(arrays), options)


_KEPT: OrderedDict[Any, tuple[Callable[..., Any], Any]] = OrderedDict()
_LOCK = RLock()  # what is missing is compiled once, however many threads ask


def _kernel(tile: _Tile, arrays: Sequence[Array]) -> Kernel:
    """The compiled tile, from those that are there if one is the same."""
    # A function of the user may read what changes from call to call. It is asked in each, and what it says is the
    # program; arrays that it holds are arguments of that.
    known = says_all(tile.static)
    with _LOCK, torch.no_grad():
        traced = None if known else tile.trace(arrays)
        captured = _lift(traced) if traced is not None else ()
        key = (
            (tile.body, tile.masked, tile.static) if traced is None else traced.code,
            tuple((x.shape, x.dtype) for x in (*arrays, *captured)),
            torch.get_num_threads(),
        )
        if key not in _KEPT:
            traced = traced or tile.trace(arrays)
            _KEPT[key] = tile.compile(traced, [*arrays, *captured]), tile.result
            if len(_KEPT) > MOST:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        program, tree = _KEPT[key]
    return Kernel(program, captured, tree)


def _lift(traced: GraphModule) -> list[Array]:
    """Makes arguments of the arrays that a program holds, and gives them."""
    graph = traced.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    captured: list[Array] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        with graph.inserting_after(last):
            last = graph.placeholder(f"captured_{len(captured)}")
        captured.append(getattr(traced, str(node.target)).contiguous())
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    traced.recompile()
    return captured


def _anywhere(p: Problem, rows: int, keys: int) -> Problem:
    """What a tile has to know of a problem: no lengths, and numbers that change from call to call as arrays."""

    def traced(where: int | Array) -> int | Array:
        return torch.tensor(where, dtype=torch.int32) if isinstance(where, int) else where

    seed = p.dropout_seed
    if isinstance(seed, int):
        seed = torch.tensor((seed + 2**63) % 2**64 - 2**63)
    nothing: Any = None
    return replace(
        p,
        q=nothing,
        k=nothing,
        v=nothing,
        scale=1.0,  # the queries of a tile are scaled
        frame=p.frame._replace(rows=rows, keys=keys, lead=()),
        axes=nothing,
        bias=None,  # it comes cut
        sinks=None,  # they join at the end
        places=replace(p.places, query=traced(p.places.query), key=traced(p.places.key)),
        dropout_seed=seed if p.dropout_rate else 0,
        wanted=(),
    )


@cache
def _why_no_compiler() -> str | None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        return "TorchInductor finds no C++ compiler here"
    return None


def _why_not(p: Problem) -> str | None:
    """Why tiles are not compiled."""
    if p.q.device.type != "cpu":
        return "tiles of the engine are compiled for the CPU"
    if not can_read(p.q):
        return "the call is already being compiled or transformed"
    return why_not_blockwise(p) or _why_no_compiler() or nothing(p)


def _run(p: Problem, wish: Any) -> Output:
    return run(p, Blockwise(), CompiledBlocks)


FUSED = Implementation(
    name="fused",
    title="the engine with compiled tiles",
    accepts=BLOCKWISE.accepts,
    run=_run,
    why_not=_why_not,
    passed_over=lambda p: "a tile compiles for seconds: ask for it by name",
    transforms=frozenset({"grad"}),
)
