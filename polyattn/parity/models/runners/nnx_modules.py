"""A module of Flax's nnx."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from polyattn.parity.models.runners.classes import Calls
from polyattn.parity.models.trees import is_float, to_numpy
from polyattn.parity.models.watching import OUTPUT
from polyattn.truth.spec import Floats

__all__ = ["NnxRunner"]


class NnxRunner(Calls):
    """Every module in the graph of an nnx module is a component, named by its path: "layers.0.attention"."""

    library = "jax"

    def __init__(self, model: Any, wide: bool = False) -> None:
        from flax import nnx

        self.model, self.wide = model, wide
        found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
        self.names = {}
        for path, node in found:
            self.names.setdefault(id(node), ".".join(map(str, path)) or OUTPUT)
        self.classes = tuple({base: None for _, node in found for base in type(node).__mro__})
        dropouts = [node for _, node in found if isinstance(node, nnx.Dropout)]
        self.training = any(not node.deterministic and node.rate > 0 for node in dropouts)

    def context(self) -> AbstractContextManager[Any]:
        import jax

        return jax.enable_x64(True) if self.wide else nullcontext()

    def given(self, x: Any) -> Any:
        import jax.numpy as jnp

        with self.context():
            made = jnp.asarray(to_numpy(x) if not hasattr(x, "devices") else x)
            return made.astype(jnp.float64) if self.wide and is_float(made) else made

    def weights(self) -> dict[str, Floats]:
        from flax import nnx

        flat = nnx.to_flat_state(nnx.state(self.model, nnx.Param))
        return {".".join(map(str, path)): to_numpy(leaf.get_value()) for path, leaf in flat}

    def doubled(self) -> NnxRunner | None:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        graph, state = nnx.split(self.model)

        def widened(x: Any) -> Any:
            return x.astype(jnp.float64) if is_float(x) else x

        with jax.enable_x64(True):
            return NnxRunner(nnx.merge(graph, jax.tree.map(widened, state)), wide=True)
