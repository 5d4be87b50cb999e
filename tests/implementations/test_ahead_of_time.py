"""Programs compiled for a TPU and an H100 on a machine that has neither: `make aot-tests`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from shared.libraries import jax, jnp, polyattn_jax

from polyattn import attention, masks, mods

pytestmark = pytest.mark.aot
HEADS, WIDTH = 8, 128
IMPLEMENTATIONS = ("blockwise", "fused")
DIRECTIONS = ("forward", "backward")
PROBLEMS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "window": {"mask": masks.sliding_window(1024)},
    "soft cap and sinks": {"is_causal": True, "score_mod": mods.softcap(30.0), "sinks": 0.0},
    "dropout": {"is_causal": True, "dropout_rate": 0.1, "dropout_seed": 0},
}


@pytest.fixture(params=["v5e", "h100"])
def chip(request: pytest.FixtureRequest) -> Any:
    """A chip that can be compiled for here."""
    from polyattn_jax.targets import target

    polyattn_jax.backend  # noqa: B018  skips where JAX is not installed
    found = target(request.param)
    try:
        assert found.device.platform == found.platform
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return found


def program(implementation: str, direction: str, options: dict[str, Any]) -> Callable[..., Any]:
    def attend(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, implementation=implementation, **options)

    if direction == "forward":
        return attend
    return jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32)), argnums=(0, 1, 2))


@cache
def compiled(
    chip: Any, implementation: str, direction: str, problem: str, length: int, dtype: str = "bfloat16"
) -> Any:
    x = chip.shape((1, HEADS, length, WIDTH), dtype)
    return chip.compile(program(implementation, direction, PROBLEMS[problem]), x, x, x)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_and_fits(chip: Any, implementation: str, problem: str) -> None:
    directions = DIRECTIONS if problem in ("causal", "dropout") else ("forward",)
    for direction in directions:
        found = compiled(chip, implementation, direction, problem, 2048)
        assert found.fits, str(found)


def test_what_auto_chooses_compiles(chip: Any) -> None:
    found = compiled(chip, "auto", "forward", "causal", 2048)
    assert found.fits, str(found)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_program_does_not_grow_with_the_length(chip: Any, implementation: str, direction: str) -> None:
    short, long = (compiled(chip, implementation, direction, "causal", n) for n in (2048, 32768))
    assert 0 < long.program <= short.program


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_is_that_of_the_arrays_and_not_of_the_scores(
    chip: Any, implementation: str, direction: str
) -> None:
    # As float32: q, k, v, out, and for each its gradient; the compiler of the TPU makes them where they are needed.
    arrays = 2 if chip.platform == "tpu" else 8
    for length in (2048, 32768):
        found = compiled(chip, implementation, direction, "causal", length)
        assert found.temporaries < arrays * 4 * HEADS * length * WIDTH


def test_what_does_not_fit_is_said_with_both_numbers(chip: Any) -> None:
    def scores(q: Any, k: Any) -> Any:
        s = jnp.exp(q @ k.mT)
        return s, s.mT

    x = chip.shape((16, 131072, WIDTH), "float32")
    found = chip.compile(scores, x, x)
    assert not found.fits
    assert str(found) == f"does not fit: needs {found.needs / 2**30:.1f} of {found.memory / 2**30:.2f} GiB"
    assert found.needs > 2 * 16 * 4 * 131072**2


def test_what_the_compiler_refuses_is_said_in_its_first_line(chip: Any) -> None:
    x = chip.shape((8, 8), "float32")
    found = chip.compile(jnp.linalg.eigvals, x)
    assert re.fullmatch(r"does not compile: \w+Error: \S.+", str(found))
    assert not found.fits


def test_shapes_of_another_chip_are_not_compiled_for_that_one(chip: Any) -> None:
    from polyattn_jax.targets import target

    x = target("v6e" if chip.platform == "tpu" else "v5e").shape((8,), "float32")
    with pytest.raises(ValueError, match=f"expected shapes on the {chip.title}, got one on "):
        chip.compile(jnp.exp, x)
