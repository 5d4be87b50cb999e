"""Facts of a module of any framework, told apart by the packages that its classes come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.layers import Layer
from polyattn.parity.components.facts.of_jax import equinox_facts, linen_facts, nnx_facts
from polyattn.parity.components.facts.of_keras import keras_facts
from polyattn.parity.components.facts.of_torch import torch_facts
from polyattn.parity.components.facts.own import own_facts
from polyattn.parity.components.facts.record import Facts, roots

__all__ = ["facts_of"]


def facts_of(module: Any) -> Facts:
    """What a component is and holds: its kind, its arrays in NumPy, its settings, by the names of `Facts`.

    Reads norms, linear maps, embeddings, activations, MLPs and attention of PyTorch and transformers, Flax (nnx, and
    linen bound to its variables), Keras, Equinox, and polyattn's own layers, given as a pair (layer, params) or without
    params. A norm or an activation of PyTorch is asked what it computes, and believed rather than its name. Of anything
    else, a plain function among it, and of a module whose formula is another than its name says, the kind is "other":
    nothing is guessed. Imports no framework, and changes nothing.

    >>> import numpy as np
    >>> from polyattn.layers import RMSNorm
    >>> facts = facts_of((RMSNorm(2, epsilon=1e-6), {"scale": np.ones(2)}))
    >>> facts.kind, facts.numbers["eps"], facts.arrays["weight"]
    ('norm', 1e-06, array([1., 1.]))
    """
    if isinstance(module, Layer):
        return own_facts(module, {})
    if (
        isinstance(module, tuple)
        and len(module) == 2
        and isinstance(module[0], Layer)
        and isinstance(module[1], Mapping)
    ):
        return own_facts(*module)
    packages = roots(module)
    if "keras" in packages:  # on its PyTorch backend it is both
        return keras_facts(module)
    if "torch" in packages and hasattr(module, "named_parameters"):
        return torch_facts(module)
    if "flax" in packages:
        linen = any(base.__module__.startswith("flax.linen") for base in type(module).__mro__)
        return linen_facts(module) if linen else nnx_facts(module)
    return equinox_facts(module) if "equinox" in packages else Facts("other")
