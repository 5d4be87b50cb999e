"""A module of PyTorch, watched by hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

from polyattn.parity.models.trees import is_array, library_of, to_numpy
from polyattn.parity.models.watching import OUTPUT, Leave, Site, Watch
from polyattn.truth.spec import Floats

__all__ = ["TorchRunner"]


@cache
def _widened() -> Any:
    """A mode in which what a module writes as float32 is float64: norms cast to it by name."""
    import torch
    from torch.overrides import TorchFunctionMode

    narrow = (torch.float32, torch.float16, torch.bfloat16)
    casts = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    def wide(x: Any) -> Any:
        return torch.float64 if isinstance(x, torch.dtype) and x in narrow else x

    class Widened(TorchFunctionMode):  # type: ignore[misc] # PyTorch is seen as Any
        """The mode."""

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            func = torch.Tensor.double if func in casts else func
            return func(*map(wide, args), **{name: wide(x) for name, x in (kwargs or {}).items()})

    return Widened


class TorchRunner:
    """Every module below a module of PyTorch is a component, named as `named_modules` does; gradients are off."""

    library = "torch"

    def __init__(self, model: Any, wide: bool = False) -> None:
        self.model = getattr(model, "_orig_mod", model)  # of a compiled one
        self.wide = wide
        self.names = {id(module): name or OUTPUT for name, module in self.model.named_modules()}
        self.modules = list(self.model.modules())
        self.called = dict[
            int, dict[int, Any]
        ]()  # id of a module -> those that were called in its calls, by id
        self.counting = any(module.training for module in self.modules)
        # A module that was put in later says that it is in training, and most do nothing else then.
        changed = ("Dropout", "BatchNorm")
        self.training = self.model.training or any(
            module.training and any(word in type(module).__name__ for word in changed)
            for module in self.modules
        )
        some = next(iter([*self.model.parameters(), *self.model.buffers()]), None)
        self.device = None if some is None else some.device

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        with self._watching(Watch(leave)):
            return self.model(*args, **kwargs)

    def again(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave | None = None
    ) -> Any:
        """One component alone, hooked with what it was seen to call."""
        below = {id(site.module): site.module} | self.called.get(id(site.module), {})
        held = (
            nullcontext() if leave is None else self._hooked(Watch(leave, site.counts), list(below.values()))
        )
        with self._quiet(), held:
            return site.module(*args, **kwargs)

    @contextmanager
    def _watching(self, watch: Watch) -> Iterator[None]:
        with self._quiet(), self._hooked(watch, self.modules):
            yield

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without gradients; what a module that is being trained counts on the way is put back."""
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()] if self.counting else []
        import torch

        with torch.no_grad(), _widened()() if self.wide else nullcontext():
            try:
                yield
            finally:
                for buffer, old in kept:
                    buffer.copy_(old)

    @contextmanager
    def _hooked(self, watch: Watch, modules: Iterable[Any]) -> Iterator[None]:
        begun: list[tuple[Any, Any]] = []

        def before(module: Any, args: Any, kwargs: Any) -> None:
            for holder, _ in begun:
                self.called.setdefault(id(holder), {})[id(module)] = module
            begun.append((module, watch.enter(self.names[id(module)], module, args, kwargs)))

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            return watch.finish(begun.pop()[1], module, output, self.again)

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
            yield

    def given(self, x: Any) -> Any:
        """On the device of the model."""
        if library_of(x) != "torch":
            import torch

            x = torch.tensor(to_numpy(x))
        if self.wide and x.is_floating_point():
            x = x.double()
        return x.to(self.device) if self.device is not None else x

    def weights(self) -> dict[str, Floats]:
        return {name: to_numpy(x) for name, x in self.model.state_dict().items() if is_array(x)}

    def doubled(self) -> TorchRunner | None:
        try:
            model = copy.deepcopy(self.model)
        except Exception:  # a module that holds what cannot be copied
            return None
        return TorchRunner(model.double(), wide=True)
