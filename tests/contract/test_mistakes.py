"""Every mistake in mistakes.toml ends in the sentence that stands beside it."""

from __future__ import annotations

import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn
from polyattn import layers

pytestmark = pytest.mark.rule("rule-13")

FILE = Path(__file__).with_name("mistakes.toml")
OURS = tuple(str(Path(polyattn.__file__).parents[1] / folder) for folder in ("polyattn", "backends"))
LIBRARIES = dict.fromkeys(("PyTorch", "transformers", "xformers"), "torch") | dict.fromkeys(
    ("JAX", "Flax", "Keras"), "jax"
)
NAMES = """
import math
import numpy as np
from shared.libraries import jax, jnp, torch
from polyattn import *
from polyattn import layers
from polyattn.additive import additive_attention
from polyattn.caches import KVCache
from polyattn.linear import linear_attention
from polyattn.rotary import Rotary


def causal_lower_right(*sizes):
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(*sizes)
"""


def mistakes() -> Iterator[tuple[str, str, str, str]]:
    """Where it comes from, the call, the kind of the error and the sentence."""
    for section, entries in tomllib.loads(FILE.read_text()).items():
        for entry in entries:
            (kind,) = set(entry) - {"write"}
            yield section, entry["write"], kind, entry[kind]


@lru_cache
def namespace(library: str) -> Mapping[str, Any]:
    """What the calls may name."""
    found: dict[str, Any] = {}
    exec(NAMES, found)
    makers: dict[str, Callable[[], Any]] = {
        "numpy": lambda: np.asarray,
        "jax": lambda: found["jnp"].asarray,
        "torch": lambda: found["torch"].tensor,
    }
    make = makers[library]()
    rng = np.random.default_rng(0)
    for name in "qkv":
        found[name] = make(rng.normal(size=(2, 4, 6, 8)).astype(np.float32))
    found["visible"] = make(np.tril(np.ones((6, 6), bool)))
    found["padding"] = make(np.arange(6) < np.array([[4], [6]]))
    found["x"] = make(rng.normal(size=(2, 6, 8)).astype(np.float32))
    found["layer"] = layers.MultiHeadAttention(8, 2)
    found["params"] = found["layer"].init(0, like=found["x"])
    return found


def ended(section: str, call: str) -> tuple[str, str]:
    """How a call ended: the kind of the error, and what it says; and where it was raised, if not here."""
    try:
        eval(call, dict(namespace(LIBRARIES.get(section, "numpy"))))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        here = "" if where.startswith(OURS) else f"of {where}: "
        return type(error).__name__, f"{here}{error}"
    return "nothing", "it is no mistake"


@pytest.mark.parametrize(
    ("section", "call", "kind", "sentence"),
    [pytest.param(*mistake, id=f"{mistake[0]}: {mistake[1]}") for mistake in mistakes()],
)
def test_a_mistake_is_answered(section: str, call: str, kind: str, sentence: str) -> None:
    assert ended(section, call) == (kind, sentence)


def test_there_are_a_hundred_and_each_says_what_was_expected_what_came_and_what_to_do() -> None:
    found = list(mistakes())
    assert len({(section, call) for section, call, _, _ in found}) == len(found) >= 100
    for _, call, kind, sentence in found:
        assert kind in ("TypeError", "ValueError", "AttributeError"), call
        assert sentence.startswith("polyattn"), call
        assert ": expected " in sentence or "has no truth value" in sentence or "is no number" in sentence, (
            call
        )
        assert "; " in sentence, call
        assert "\n" not in sentence, call
