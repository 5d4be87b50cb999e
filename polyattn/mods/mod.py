"""What a score modification is, how several become one, and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import answers, shown
from polyattn.places import Positions

ScoreMod = Callable[[Array, Array, Array, Array, Array], Array]


class Mod:
    """A built-in score modification."""

    #: Whether it compares query positions with key positions, so that it needs to know the offset.
    compares_positions = False
    #: Whether it has a number for each key that differs among the query heads which read one kv head.
    keys_per_head = False
    #: The number of heads that it has parameters for; None for any.
    heads: int | None = None
    #: The number of batch items that it has parameters for; None for any.
    batch: int | None = None

    def __init_subclass__(cls) -> None:
        cls.__call__ = answers("polyattn.mods", line="mod")(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        raise NotImplementedError

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        """The gradients for the score and for the arrays of the modification."""
        raise NotImplementedError

    def built_in(self) -> Iterator[Mod]:
        """The built-in modifications that this one consists of."""
        yield self

    def arrays(self) -> Iterator[Array]:
        """The arrays that the modification holds."""
        for part in self.built_in():
            for field in fields(part):  # type: ignore[arg-type]
                if is_array(value := getattr(part, field.name)):
                    yield value


@dataclass(frozen=True, eq=False)
class Compose(Mod):
    parts: tuple[ScoreMod, ...]

    @property
    def compares_positions(self) -> bool:  # type: ignore[override]
        return any(compares_positions(part) for part in self.parts)

    @property
    def keys_per_head(self) -> bool:  # type: ignore[override]
        return any(part.keys_per_head for part in self.built_in())

    def built_in(self) -> Iterator[Mod]:
        for part in self.parts:
            if isinstance(part, Mod):
                yield from part.built_in()

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        for part in self.parts:
            score = part(score, b, h, q_idx, kv_idx)
        return score

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        entering = [score]
        for part in self.parts[:-1]:
            entering.append(part(entering[-1], at.b, at.h, at.q, at.kv))
        gradients: tuple[Array, ...] = ()
        for part, before in zip(reversed(self.parts), reversed(entering), strict=True):
            cotangent, own = _derivative(part, before, at, cotangent)
            gradients = own + gradients
        return cotangent, gradients


def compose(*mods: ScoreMod) -> Mod:
    """The modifications one after the other, the first one first.

    >>> import numpy as np
    >>> compose(lambda s, b, h, q, kv: s + 1, lambda s, b, h, q, kv: 2 * s)(np.array(1.0), 0, 0, 0, 0)
    np.float64(4.0)
    """
    for mod in mods:
        if not callable(mod):
            raise TypeError(
                "polyattn.mods.compose: expected functions (score, b, h, q_idx, kv_idx) -> score, "
                f"got {shown(mod)}; "
                + (
                    "write mods.compose(*functions)"
                    if isinstance(mod, (list, tuple))
                    else "an array of additive values is attention's bias="
                )
            )
    return Compose(mods)


def parameters(mod: ScoreMod | None) -> tuple[Array, ...]:
    """The arrays of a modification that have derivatives."""
    return tuple(mod.arrays()) if isinstance(mod, Mod) else ()


def parts(mod: ScoreMod | None) -> tuple[ScoreMod, ...]:
    """The modifications that a modification consists of, in their order."""
    return () if mod is None else mod.parts if isinstance(mod, Compose) else (mod,)


def functions(mod: ScoreMod | None) -> tuple[ScoreMod, ...]:
    """The functions in a modification that are not built in."""
    if isinstance(mod, Compose):
        return tuple(f for part in mod.parts for f in functions(part))
    return () if mod is None or isinstance(mod, Mod) else (mod,)


def derivative(
    mod: ScoreMod, score: Array, at: Positions, cotangent: Array, allowed: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """Gradients for scale (q . k) of a tile and for `parameters(mod)`; hidden scores have none."""
    if allowed is None:
        return _derivative(mod, score, at, cotangent)
    xp = backend_of(score).xp
    d_score, own = _derivative(mod, xp.where(allowed, score, 0.0), at, cotangent)
    return xp.where(allowed, d_score, 0.0), own


def _derivative(
    mod: ScoreMod, score: Array, at: Positions, cotangent: Array
) -> tuple[Array, tuple[Array, ...]]:
    if isinstance(mod, Mod):
        return mod.derivative(score, at, cotangent)

    def f(s: Array) -> Array:
        return mod(s, at.b, at.h, at.q, at.kv)

    found = backend_of(score).derivative(f, score, cotangent)
    if found is NotImplemented:
        from polyattn.gradients import vjp

        found = vjp(f, score)[1](cotangent)[0]
    return found, ()


def to_all(x: Array, here: Array, count: int) -> Array:
    """(..., n) gradients of the heads or items `here` of a tile, as (..., count) of all."""
    backend = backend_of(x)
    one = backend.xp.reshape(here, (-1, 1)) == backend.xp.reshape(backend.arange(0, count, x), (1, -1))
    return backend.matmul(x, backend.astype(one, x.dtype))


def compares_positions(mod: ScoreMod) -> bool:
    """Whether a modification may depend on where queries and keys stand to each other."""
    return mod.compares_positions if isinstance(mod, Mod) else True
