"""Capabilities are data: what an implementation does not list it refuses, and every cell of the table holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from shared.libraries import installed, jax, jnp, torch
from shared.torch_kernels import flex_on_the_cpu, tiles_as_traced

from polyattn import attention, attention_vjp, masks, mods
from polyattn.arrays import backend_named
from polyattn.implementations import TRANSFORMS, Blockwise, Implementation, implementations_of
from polyattn.implementations.blockwise import with_derivative
from polyattn.implementations.table import columns, markdown
from polyattn.normalizers import Normalizer, TopK
from polyattn.places import Places
from polyattn.problem import FEATURES, Problem, pose

pytestmark = pytest.mark.rule("rule-13", "rule-20")

LIBRARIES = ("numpy", "jax", "torch")
B, H, L, S, D = 2, 4, 6, 6, 8
RNG = np.random.default_rng(0)
QKV = tuple(RNG.normal(size=shape) for shape in ((B, H, L, D), (B, 2, S, D), (B, 2, S, D)))
TANGENT = tuple(RNG.normal(size=x.shape) for x in QKV)
COTANGENT = RNG.normal(size=(B, H, L, D))


@dataclass(frozen=True)
class Squares(Normalizer):
    """One that is not of the library."""

    name = "squares"
    formula = "w = max(s, 0)^2 / sum max(s, 0)^2"

    def weights(self, scores: Any, sinks: Any = None) -> Any:
        xp = array_namespace(scores)
        squares = xp.where(scores > 0, scores, 0.0) ** 2
        total = xp.sum(squares, axis=-1, keepdims=True)
        return squares / xp.where(total == 0, 1.0, total)


#: feature -> the arguments that have it, and nothing else that needs listing beside `mask`
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"mask": masks.window(2, 1)},
    "query_offset": {"query_offset": 3},
    "traced_offset": {"query_offset": np.array([1, 2], np.int32)},
    "positions": {"query_positions": np.arange(L), "key_positions": np.array([0, 2, -1, 1, 5, 3])},
    "bias": {"bias": RNG.normal(size=(1, 1, L, S))},
    "score_mod": {"score_mod": mods.softcap(2.0)},
    "scale": {"scale": np.array([0.3, 0.2, 0.4, 0.1])},
    "sinks": {"sinks": RNG.normal(size=H)},
    "sigmoid": {"normalizer": "sigmoid"},
    "softpick": {"normalizer": "softpick"},
    "sparsemax": {"normalizer": "sparsemax"},
    "entmax15": {"normalizer": "entmax15"},
    "top_k": {"normalizer": TopK(3)},
    "normalizer": {"normalizer": Squares()},
    "dropout": {"dropout_rate": 0.25, "dropout_seed": 7},
    "origin": {"origin": Places(batch=3, head=4), "dropout_rate": 0.0},
    "lse": {"wanted": ("lse",)},
    "weights": {"wanted": ("weights",)},
    "scores": {"wanted": ("scores",)},
    "max_scores": {"wanted": ("max_scores",)},
}


#: Arrays of these have lengths of their own, so that the exported length is no symbol.
FIXED = ("bias", "positions")


def to(library: str, x: Any) -> Any:
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.kind == "i":
        x = x.astype(np.int32)
    return x if library == "numpy" else jnp.asarray(x) if library == "jax" else torch.from_numpy(x.copy())


class Call:
    """An implementation on a problem with a feature, as a function of query, key and value."""

    def __init__(self, library: str, implementation: Implementation, feature: str) -> None:
        self.library, self.implementation, self.feature = library, implementation, feature
        with jax.enable_x64(True):
            self.options = {name: to(library, x) for name, x in ASKED[feature].items()}

    def pose(self, q: Any, k: Any, v: Any) -> Problem:
        return pose("test", q, k, v, **self.options)

    def __call__(self, q: Any, k: Any, v: Any) -> Any:
        if self.implementation.title == "the flash kernel of the CPU":  # which wants equal heads
            k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
        p = self.pose(q, k, v)
        reason = self.implementation.refuses(p)
        if reason is not None:
            raise ValueError(reason)
        found = self.implementation.run(p, None)
        # What is wanted beside the output is judged with it, by its sum over the keys or as it is.
        extra = {name: getattr(found, name) for name in p.wanted}
        if "lse" in extra or "max_scores" in extra:
            return found.out + next(iter(extra.values()))[..., None]
        return found.out + extra.popitem()[1].sum(-1)[..., None] if extra else found.out


def cells() -> list[Any]:
    found = []
    for library in filter(installed, LIBRARIES):
        backend = backend_named(library)
        assert backend is not None
        for implementation in implementations_of(backend):
            if implementation.title == "the engine as one kernel":  # interpreted, in float32: test_fused*.py
                continue
            on_gpu = implementation.title.startswith("cuDNN")
            marks = [pytest.mark.gpu] if on_gpu else []
            found += [
                pytest.param(library, implementation, what, id=f"{library}-{implementation.title}-{what}", marks=marks)
                for what in ("alone", *TRANSFORMS)
            ]  # fmt: skip
    return found


@cache
def expected(feature: str, what: str, library: str) -> Any:
    """By the definition, in float64, on the other library: the same numbers from other derivatives."""
    other = "torch" if library == "jax" else "jax"
    if not installed(other):
        pytest.skip(f"{other} is not installed")
    with jax.enable_x64(True):
        backend = backend_named(other)
        assert backend is not None
        definition = implementations_of(backend)[-1]
        f = Call(other, definition, feature)
        return [np.asarray(x) for x in DO[other][what](f)] if what != "vmap" else None


def test_the_features_that_are_asked_here_are_those_of_the_table() -> None:
    assert set(ASKED) - {"plain"} == set(FEATURES)
    for name, options in ASKED.items():
        features = pose("test", *QKV, **options).features
        assert features <= {name} | ({"mask"} if name == "positions" else set()), name
        assert name in features or name == "plain"


@pytest.mark.parametrize(("library", "implementation", "what"), cells())
def test_every_cell_of_the_table_holds(
    library: str, implementation: Implementation, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is listed computes what the definition computes; what is not listed is refused or fails."""
    if (library, implementation.name) == ("torch", "fused"):
        tiles_as_traced(monkeypatch)
        flex_on_the_cpu(monkeypatch)
    for feature in ASKED:
        listed = feature == "plain" or feature in implementation.accepts
        claimed = listed and (what == "alone" or what in implementation.transforms)
        f = Call(library, implementation, feature)
        if not listed:
            with pytest.raises(ValueError, match="does not take"):
                f(*(to(library, x) for x in QKV))
            continue
        if what == "export" and feature in FIXED and not claimed:
            continue
        do = DO[library].get(what)
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = None if do is None else do(f)
            except Exception:
                if claimed:
                    raise
                continue
            if do is None:
                assert not claimed, f"{library} has no {what}"
                continue
            said = f"{implementation.title} goes through {what} with {feature}, which its table does not say"
            assert claimed, said
            expect = expected(feature, what, library) or [0 * np.asarray(x) for x in found]
        for x, true in zip(found, expect, strict=True):
            x, true = np.asarray(x), np.asarray(true)
            assert np.abs(x - true).max() <= 2.0**12 * 2.0**-53 * max(np.abs(true).max(), 1.0), feature


# how each library does each of them; every function gives a list of arrays


def _jax(what: str) -> Callable[[Any], list[Any]]:
    def args(*given: Any) -> list[Any]:
        return [jnp.asarray(x) for x in given]

    def loss(f: Any) -> Any:
        return lambda *qkv: (f(*qkv) * jnp.asarray(COTANGENT)).sum()

    def second(f: Any) -> Any:
        first = jax.grad(loss(f), argnums=(0, 1, 2))
        squares = jax.grad(lambda *qkv: sum((x * x).sum() for x in first(*qkv)), argnums=(0, 1, 2))
        return jax.jit(squares)(*args(*QKV))

    def batched(f: Any) -> Any:
        several = [jnp.stack([x, 2.0 * x]) for x in args(*QKV)]
        together, alone = jax.jit(jax.vmap(f))(*several), jax.jit(f)
        return [together[i] - alone(*(x[i] for x in several)) for i in range(2)]

    def exported(f: Any) -> Any:
        n = L if f.feature in FIXED else jax.export.symbolic_shape("n")[0]
        shapes = [jax.ShapeDtypeStruct((*x.shape[:2], n, D), jnp.float64) for x in QKV]
        return [jax.export.export(jax.jit(f))(*shapes).call(*args(*QKV))]

    ways: dict[str, Callable[[Any], Any]] = {
        "alone": lambda f: [f(*args(*QKV))],
        # Compiled: op by op it takes thrice as long.
        "grad": lambda f: jax.jit(jax.grad(loss(f), argnums=(0, 1, 2)))(*args(*QKV)),
        "second order": second,
        "jvp": lambda f: jax.jit(partial(jax.jvp, f))(args(*QKV), args(*TANGENT)),
        "vmap": batched,
        "compile": lambda f: [jax.jit(f)(*args(*QKV))],
        "export": exported,
    }
    return lambda f: list(ways[what](f))


def _torch(what: str) -> Callable[[Any], list[Any]]:
    def args(*given: Any, grad: bool = False) -> list[Any]:
        return [torch.from_numpy(x.copy()).requires_grad_(grad) for x in given]

    def first(f: Any, leaves: Any, **how: Any) -> Any:
        return torch.autograd.grad((f(*leaves) * torch.from_numpy(COTANGENT)).sum(), leaves, **how)

    def second(f: Any) -> Any:
        leaves = args(*QKV, grad=True)
        squares = sum((x * x).sum() for x in first(f, leaves, create_graph=True))
        return torch.autograd.grad(squares, leaves)

    def batched(f: Any) -> Any:
        several = [torch.stack([x, 2.0 * x]) for x in args(*QKV)]
        together = torch.func.vmap(f)(*several)
        return [together[i] - f(*(x[i] for x in several)) for i in range(2)]

    def compiled(f: Any) -> Any:
        torch.compiler.reset()
        return [torch.compile(f, fullgraph=True, dynamic=True, backend="eager")(*args(*QKV))]

    def exported(f: Any) -> Any:
        class Program(torch.nn.Module):
            def forward(self, q: Any, k: Any, v: Any) -> Any:
                return f(q, k, v)

        n = torch.export.Dim("n", min=2, max=4096)
        # PyTorch 2.13 cannot prove min(n, 2 n n) = n, which grouped heads ask: every query head gets its own here.
        own = [x.repeat_interleave(H // x.shape[1], 1) for x in args(*QKV)]
        if f.feature in FIXED:
            return [torch.export.export(Program(), tuple(own)).module()(*own)]
        longer = [torch.cat([x, x], 2) for x in own]
        program = torch.export.export(Program(), tuple(longer), dynamic_shapes=({2: n},) * 3)
        return [program.module()(*own)]

    ways: dict[str, Callable[[Any], Any]] = {
        "alone": lambda f: [f(*args(*QKV))],
        "grad": lambda f: first(f, args(*QKV, grad=True)),
        "second order": second,
        "jvp": lambda f: torch.func.jvp(f, tuple(args(*QKV)), tuple(args(*TANGENT))),
        "vmap": batched,
        "compile": compiled,
        "export": exported,
    }
    return lambda f: [x.detach().numpy() for x in ways[what](f)]


def _numpy(f: Any) -> list[Any]:
    """By the engine's own derivative, which is what `attention_vjp` gives."""
    if f.implementation.name != "blockwise":
        raise ValueError("NumPy has no autodiff")
    _, derivative = with_derivative(f.pose(*QKV), Blockwise(4, 4))
    of_lse = COTANGENT.sum(-1) * (f.feature == "lse")
    return list(derivative(COTANGENT, of_lse)[:3])


DO: dict[str, dict[str, Callable[[Any], list[Any]]]] = {
    "numpy": {"alone": lambda f: [f(*QKV)], "grad": _numpy},
    "jax": {what: _jax(what) for what in ("alone", *TRANSFORMS)},
    "torch": {what: _torch(what) for what in ("alone", *TRANSFORMS)},
}


@dataclass(frozen=True, eq=False)
class Newer(Problem):
    """A Problem of tomorrow, with a field that nobody lists."""

    whiskers: int | None = None


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_feature_that_nobody_lists_is_refused_by_every_implementation(library: str) -> None:
    p = pose("test", *(to(library, x) for x in QKV))
    known = {f.name: getattr(p, f.name) for f in fields(Problem)}
    for implementation in implementations_of(p.backend):
        assert implementation.refuses(Newer(**known, whiskers=2)) == (
            f"{implementation.title} does not take the argument whiskers"
        )
        assert "whiskers" not in str(implementation.refuses(Newer(**known)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_feature_that_is_new_to_the_table_is_accepted_by_nobody(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyattn.problem.features.FEATURES", {**FEATURES, "whiskers": "whiskers"})
    p = pose("test", *(to(library, x) for x in QKV))
    newer = Newer(**{f.name: getattr(p, f.name) for f in fields(Problem)}, whiskers=2)
    for implementation in implementations_of(p.backend):
        assert implementation.refuses(newer) == f"{implementation.title} does not take whiskers"
    definition = implementations_of(p.backend)[-1]
    assert definition.accepts == frozenset(FEATURES), "the definition has everything that is described"


@pytest.mark.skipif(not all(map(installed, LIBRARIES)), reason="the table has every library")
def test_the_page_prints_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "capabilities.md").read_text()
    assert markdown(LIBRARIES) in page, (
        "write it anew: python -m polyattn.implementations docs/capabilities.md"
    )
    assert [c.library for c in columns(("nobody",))] == []


def test_a_wrong_keyword_names_the_function_that_was_called() -> None:
    for function, who in ((attention, "polyattn.attention"), (attention_vjp, "polyattn.attention_vjp")):
        with pytest.raises(TypeError) as caught:
            function(*QKV, masks=None)
        assert str(caught.value).startswith(
            f"{who}: expected arguments among query, key, value, mask, bias, "
        )
        assert str(caught.value).endswith(", got masks=; did you mean mask=?")
