"""The chips that programs are compiled for: what is told of them where nothing is installed that compiles."""

from __future__ import annotations

from typing import Any

import pytest
from shared.libraries import jax, jnp, polyattn_jax


@pytest.fixture
def targets() -> Any:
    assert polyattn_jax.backend.name == "jax"  # skips where JAX is not installed
    from polyattn_jax import targets

    return targets


def test_a_chip_that_is_not_known_is_answered_with_those_that_are(targets: Any) -> None:
    with pytest.raises(ValueError) as refusal:
        targets.target("v7")
    assert str(refusal.value) == (
        "polyattn_jax.targets.target: expected name to be one of 'v5e', 'v5p', 'v6e', 'h100', got 'v7'; these are "
        "the chips that programs are compiled for without one"
    )


@pytest.mark.parametrize(
    ("name", "package", "title"), [("v5p", "libtpu", "TPU v5p"), ("h100", "jax-cuda12-pjrt", "H100")]
)
def test_without_a_compiler_it_is_said_what_to_install(
    targets: Any, monkeypatch: pytest.MonkeyPatch, name: str, package: str, title: str
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda module: None)
    chip = targets.target(name)
    vars(chip).pop("device", None)  # which is kept where it was found
    with pytest.raises(ModuleNotFoundError) as refusal:
        chip.shape((8,), "float32")
    assert str(refusal.value) == (
        f"polyattn_jax.targets: expected the package {package}, with which JAX compiles for the {title}, got an "
        "environment without it; pip install 'polyattn[jax,aot]'"
    )


def test_a_program_is_traced_for_the_chip_of_the_mesh(targets: Any) -> None:
    from polyattn_jax.eager import platform

    seen = []

    def traced(x: Any) -> Any:
        seen.append((platform(x), polyattn_jax.backend.is_concrete(x)))
        return x

    for name, chip in targets.TARGETS.items():
        with jax.sharding.use_abstract_mesh(chip.mesh):
            jax.jit(traced).trace(jnp.zeros(3))
            assert seen.pop() == (chip.platform, False), name
            assert platform(jnp.zeros(3)) == "cpu"  # what lies somewhere lies there
    jax.jit(traced).trace(jnp.zeros(4))
    assert seen == [(jax.default_backend(), False)]


def test_what_came_of_it_is_one_line(targets: Any) -> None:
    mib, gib = 2**20, 2**30
    some = targets.Compiled(1.25, 40, 12 * mib, 4 * mib, 3 * mib // 2, 16 * gib)
    assert (str(some), some.needs, some.fits) == (
        "1.5 MiB of temporaries, compiled in 1.2 s",
        35 * mib // 2,
        True,
    )
    assert str(targets.Compiled(1.0, 40, 0, 0, 3 * gib // 2, 16 * gib)).startswith("1.5 GiB of temporaries, ")
    large = targets.Compiled(1.0, 40, gib, gib, 31 * gib, 16 * gib)
    assert (str(large), large.fits) == ("does not fit: needs 33.0 of 16.00 GiB", False)
    refused = targets.Compiled(1.0, 0, gib, gib, 0, 16 * gib, "ValueError: no")
    assert (str(refused), refused.fits) == ("does not compile: ValueError: no", False)
