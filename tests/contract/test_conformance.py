"""The conformance suite on every library, in every way it can run; and adapters of others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import polyattn
from polyattn.arrays import Backend, backend_of
from polyattn.testing import Bench, check_backend


@pytest.mark.slow
def test_every_case_of_the_contract_agrees(bench: Bench) -> None:
    compiled = bench.name == "jax" or getattr(bench, "compile", None)
    dtypes = ("float32",) if compiled else bench.dtypes  # `polyattn verify` compiles for every dtype
    outcomes = check_backend(bench, dtypes=dtypes)
    assert len(outcomes) >= 30 * len(dtypes)


def test_an_array_that_is_none_is_named() -> None:
    with pytest.raises(TypeError) as caught:
        polyattn.attention([[1.0]], [[1.0]], [[1.0]])
    assert str(caught.value) == (
        "polyattn.attention: expected query to be an array of an array API library (NumPy, JAX, PyTorch, ...), "
        "got list; convert it, for example with numpy.asarray"
    )


def test_a_library_without_an_adapter_runs_on_the_standard_alone() -> None:
    import array_api_strict as strict

    backend = backend_of(strict.asarray([1.0]))
    assert type(backend) is Backend
    assert backend.name == "array_api_strict"


ADAPTER = """
import array_api_strict
from polyattn.arrays import Backend

class ToyBackend(Backend):
    calls = 0

    def matmul(self, a, b):
        ToyBackend.calls += 1
        return super().matmul(a, b)

backend = ToyBackend("array_api_strict", array_api_strict)
"""

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "polyattn-toy"
version = "1.0"
[project.entry-points."polyattn.backends"]
array_api_strict = "polyattn_toy:backend"
"""

USE = """
import json, sys
import polyattn
loaded_at_import = "polyattn_toy" in sys.modules
import numpy
x = numpy.eye(2)
polyattn.attention(x, x, x)
loaded_by_numpy = "polyattn_toy" in sys.modules
from polyattn.testing import StrictBench, check_backend
outcomes = check_backend(StrictBench(), dtypes=["float32"])
from polyattn_toy import ToyBackend
print(json.dumps([loaded_at_import, loaded_by_numpy, len(outcomes), ToyBackend.calls]))
"""


@pytest.mark.slow
def test_an_adapter_in_a_distribution_of_its_own_is_found_used_and_checked(tmp_path: Path) -> None:
    (tmp_path / "polyattn_toy").mkdir()
    (tmp_path / "polyattn_toy/__init__.py").write_text(ADAPTER)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
    ]
    subprocess.run([*install, str(site), str(tmp_path)], check=True)
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{USE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    at_import, by_numpy, results, calls = json.loads(run.stdout)
    assert not at_import
    assert not by_numpy
    assert results >= 30
    assert calls >= 2 * (results - 2)  # two products a case, but for the empty ones


def test_values_of_an_unknown_library_become_lists() -> None:
    import array_api_strict as strict

    backend = backend_of(strict.asarray([1]))
    assert backend.to_list(strict.asarray([[True], [False]])) == [[True], [False]]
    assert backend.to_list(strict.asarray([1, 2])) == [1, 2]
    assert backend.to_list(strict.asarray(0.5)) == 0.5


@pytest.mark.gpu
def test_every_case_agrees_on_cuda() -> None:
    import torch

    from polyattn.testing import TorchBench

    assert torch.cuda.is_available(), "the GPU tests were asked for and there is no GPU"
    check_backend(TorchBench(device="cuda"))


@pytest.mark.gpu
def test_every_case_agrees_on_a_jax_accelerator() -> None:
    import jax

    from polyattn.testing import JaxBench

    assert jax.default_backend() != "cpu", "the GPU tests were asked for and there is no accelerator"
    check_backend(JaxBench())


def test_numpy_views_of_every_stride_are_read_and_not_written() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 6, 4))
    flipped = [np.flip(np.flip(x, -1).copy(), -1) for x in (q, k, v)]
    for x in flipped:
        x.flags.writeable = False
    assert (polyattn.attention(*flipped) == polyattn.attention(q, k, v)).all()
