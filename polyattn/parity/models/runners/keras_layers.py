"""A model of Keras on any of its backends."""

from __future__ import annotations

from typing import Any

from polyattn.parity.models.runners.classes import Calls
from polyattn.parity.models.trees import to_numpy
from polyattn.parity.models.watching import OUTPUT
from polyattn.truth.spec import Floats

__all__ = ["KerasRunner"]


class KerasRunner(Calls):
    """Every layer below a layer or a model is a component, named by the names of the layers it lies in."""

    library = "keras"
    training = False  # what Keras does in training is an argument of the call

    def __init__(self, model: Any) -> None:
        import keras

        self.model = model
        self.names = {id(model): OUTPUT}
        self._name(model, "")
        self.classes = (keras.layers.Layer,)

    def _name(self, layer: Any, path: str) -> None:
        for part in layer._flatten_layers(include_self=False, recursive=False):
            name = f"{path}.{part.name}" if path else part.name
            if id(part) not in self.names:
                self.names[id(part)] = name
                self._name(part, name)

    def given(self, x: Any) -> Any:
        import keras

        return keras.ops.convert_to_tensor(to_numpy(x))

    def weights(self) -> dict[str, Floats]:
        import keras

        return {x.path.replace("/", "."): to_numpy(keras.ops.convert_to_numpy(x)) for x in self.model.weights}

    def doubled(self) -> None:
        """A layer of Keras keeps the dtype that it was made for."""
