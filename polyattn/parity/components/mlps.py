"""Why the MLP of a block is wrong: its activation, gate and up exchanged, biases, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from polyattn.parity.components.functions import FUNCTIONS, described
from polyattn.parity.components.orders import likely_orders, say_order
from polyattn.parity.components.relation import relation
from polyattn.parity.components.trial import Candidate, Case
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["MLP", "tiers"]


#: How gate and up meet.
_FORMS: dict[str, Callable[[Callable[[Floats], Floats], Floats, Floats], Floats]] = {
    "as stated": lambda f, gate, up: f(gate) * up,
    "exchanged": lambda f, gate, up: gate * f(up),
    "product": lambda f, gate, up: f(gate * up),
    "both": lambda f, gate, up: f(gate) * f(up),
    "sum": lambda f, gate, up: f(gate) + up,
    "gate alone": lambda f, gate, up: f(gate),
    "up alone": lambda f, gate, up: up,
}


@dataclass(frozen=True)
class MLP:
    """down(f(gate(x)) * up(x)), or down(f(up(x))) without a gate."""

    arrays: Mapping[str, Floats]
    function: str
    form: str = "as stated"

    def __call__(self, case: Case) -> Floats:
        up = self._part("up", case.x)
        f = FUNCTIONS[self.function]
        if "gate.weight" not in self.arrays:
            return self._part("down", f(up))
        gate = self._part("gate", case.x)
        return self._part("down", _FORMS[self.form](f, gate, up))

    def _part(self, name: str, x: Floats) -> Floats:
        y = x @ self.arrays[f"{name}.weight"]
        bias = self.arrays.get(f"{name}.bias")
        return y if bias is None else y + bias

    def without(self, name: str) -> MLP:
        return replace(self, arrays={n: x for n, x in self.arrays.items() if n != name})

    def with_(self, **arrays: Floats) -> MLP:
        return replace(self, arrays={**self.arrays, **{n.replace("_", "."): x for n, x in arrays.items()}})


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    arrays = {
        n: x.astype(np.float64)
        for n, x in case.facts.arrays.items()
        if n.partition(".")[0] in ("gate", "up", "down") and n.partition(".")[2] in ("weight", "bias")
    }
    if not _fits(case, arrays):
        return
    told = case.facts.numbers.get("function")
    names = [told] if isinstance(told, str) and told in FUNCTIONS else list(FUNCTIONS)
    part = case.cut()
    mlp = next((m for name in names if part.reproduces((m := MLP(arrays, name))(part))), None)
    if mlp is not None:
        yield _functions(mlp)
        yield _weights(case, mlp)
        yield _orders(mlp)


def _fits(case: Case, arrays: Mapping[str, Floats]) -> bool:
    """Whether these are the arrays of an MLP from this input to this output."""
    up, down = arrays.get("up.weight"), arrays.get("down.weight")
    if up is None or down is None or up.ndim != 2 or case.x.dtype.kind != "f":
        return False
    hidden, out = up.shape[1], case.expected.shape[-1]
    shapes = {
        "up.weight": up.shape,
        "gate.weight": up.shape,
        "down.weight": (hidden, out),
        "down.bias": (out,),
    }
    shapes |= {"up.bias": (hidden,), "gate.bias": (hidden,)}
    return case.x.shape == (*case.expected.shape[:-1], up.shape[0]) and all(
        x.shape == shapes[name] for name, x in arrays.items()
    )


def _functions(mlp: MLP) -> Iterator[Candidate]:
    for other in FUNCTIONS:
        if other != mlp.function:
            yield Candidate(
                f"{described(other)}, not {described(mlp.function)}", replace(mlp, function=other)
            )
    if "gate.weight" in mlp.arrays:
        said = {
            "exchanged": "gate and up exchanged: the activation is on up, not on gate",
            "product": "activation on the product of gate and up, not on the gate",
            "both": "activation on both gate and up",
            "sum": "gate and up added, not multiplied",
            "gate alone": "up left out: the activated gate alone goes down",
            "up alone": "gate left out: up alone goes down",
        }
        for form, sentence in said.items():
            yield Candidate(sentence, replace(mlp, form=form))
    for name in ("gate", "up", "down"):
        bias = mlp.arrays.get(f"{name}.bias")
        if bias is not None:
            yield Candidate(f"bias of {name} missing", mlp.without(f"{name}.bias"))
            yield Candidate(f"bias of {name} added twice", mlp.with_(**{f"{name}_bias": 2 * bias}))
    biases = [name for name in mlp.arrays if name.endswith(".bias")]
    if len(biases) > 1:
        plain = replace(mlp, arrays={n: x for n, x in mlp.arrays.items() if n not in biases})
        yield Candidate("all biases missing", plain)


def _weights(case: Case, mlp: MLP) -> Iterator[Candidate]:
    theirs = {} if case.port is None else case.port.arrays
    changed: dict[str, Floats] = {}
    for name, ours in mlp.arrays.items():
        other = theirs.get(name)
        if other is None or other.shape != ours.shape:
            continue
        said = relation(case.facts.arrays[name], other)
        if said is not None:
            changed[name] = other.astype(np.float64)
            yield Candidate(
                f"{name} of the port {said}", replace(mlp, arrays={**mlp.arrays, name: changed[name]})
            )
    if len(changed) > 1:
        said = f"{', '.join(changed)} of the port are others than those of the reference"
        yield Candidate(said, replace(mlp, arrays={**mlp.arrays, **changed}))
    for low in ("bfloat16", "float16"):
        rounded = {n: round_to(x, low) for n, x in mlp.arrays.items()}
        yield Candidate(f"weights rounded to {low}", replace(mlp, arrays=rounded))


def _orders(mlp: MLP) -> Iterator[Candidate]:
    for name, w in mlp.arrays.items():
        if w.ndim != 2:
            continue
        if w.shape[0] == w.shape[1]:
            yield Candidate(f"{name} transposed", replace(mlp, arrays={**mlp.arrays, name: w.T}))
    hidden = mlp.arrays["up.weight"].shape[1]
    if hidden <= 1024 and "gate.weight" in mlp.arrays:
        for order in likely_orders(hidden):
            up = {"up.weight": mlp.arrays["up.weight"][:, order]}
            said = f"hidden entries of up {say_order(order)}, and those of gate not"
            yield Candidate(said, replace(mlp, arrays={**mlp.arrays, **up}))
        yield from _packed(mlp)


def _packed(mlp: MLP) -> Iterator[Candidate]:
    """Gate and up in one matrix, taken apart in the other way: halves for turns, and the reverse."""
    gate, up = mlp.arrays["gate.weight"], mlp.arrays["up.weight"]
    halves = np.concatenate((gate, up), 1)
    turns = np.stack((gate, up), -1).reshape(halves.shape)
    n = gate.shape[1]
    parts = {
        "gate and up packed in halves and taken apart as every other column": (
            halves[:, 0::2],
            halves[:, 1::2],
        ),
        "gate and up packed in turns and taken apart as halves": (turns[:, :n], turns[:, n:]),
    }
    for said, (g, u) in parts.items():
        yield Candidate(said, replace(mlp, arrays={**mlp.arrays, "gate.weight": g, "up.weight": u}))
