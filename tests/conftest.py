"""The benches that every contract test runs on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import array_api_strict
import pytest
from shared.libraries import SPOKEN, installed

from polyattn.testing import Bench, StrictBench, load_bench

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of OpenMP that wait for each other made small products forty times slower
    # (measured 2026-11-24, two workers on two cores). Read when PyTorch is imported, and by what tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: no test touches the network

VARIANTS: dict[str, Callable[[], Bench]] = {
    "numpy": lambda: load_bench("numpy"),
    "autograd": lambda: load_bench("autograd"),
    "strict": StrictBench,
    "strict-device1": lambda: StrictBench("device1", name="strict-device1"),
    "strict-no-float64": lambda: StrictBench("no_float64", float64=False, name="strict-no-float64"),
    "strict-no-x64": lambda: StrictBench("no_x64", float64=False, name="strict-no-x64"),
    "strict-flags": lambda: StrictBench(name="strict-flags"),
    "jax-eager": lambda: load_bench("jax", jit=False),
    "jax-jit": lambda: load_bench("jax"),
    "torch": lambda: load_bench("torch"),
    "torch-compile": lambda: load_bench("torch", compile="aot_eager"),
}


#: Modules and folders of tests whose programs XLA optimises, and modules among them in which programs are only to run.
OPTIMISED = {"test_conformance", "implementations", "parity"}
UNOPTIMISED = {"test_fused", "test_fused_edges", "test_capabilities"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--libraries", help="only these of numpy, autograd, strict, jax and torch, joined by commas"
    )


def pytest_configure(config: pytest.Config) -> None:
    asked = config.getoption("--libraries")
    for library in asked.split(",") if asked is not None else ():
        if library not in SPOKEN:
            raise pytest.UsageError(
                f"--libraries: expected some of {', '.join(SPOKEN)}, got {library!r}; check its spelling"
            )
        try:
            import_module("array_api_strict" if library == "strict" else library)
        except ImportError as error:
            raise pytest.UsageError(f"--libraries: {library} was asked for and is missing: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --libraries the tests of another library are left out; without, those of one that is missing are skipped."""
    asked = config.getoption("--libraries")
    if asked is not None:
        others = set().union(*(words for name, words in SPOKEN.items() if name not in asked.split(",")))
        left_out = [item for item in items if others & _words(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not others & _words(item)]
        return
    for library in ("autograd", "jax", "torch"):
        if not installed(library):
            for item in items:
                if SPOKEN[library] & _words(item):
                    item.add_marker(pytest.mark.skip(reason=f"{library} is not installed"))


def _words(item: pytest.Item) -> set[str]:
    """The words that may name a library: in the name of a test, in its parameters ("jax-jit", "torch"), in its code.

    In the code of functions beside it too, where its parameters name none: these functions may have a branch for each.
    """
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    spoken = {re.split(r"[-_ ]", x)[0] for x in parameters if isinstance(x, str)}
    code, beside = (
        (item.function.__code__.co_names, item.function.__globals__)
        if hasattr(item, "function")
        else ((), {})
    )
    called = set(code)
    if spoken.isdisjoint(set().union(*SPOKEN.values())):
        helpers = (beside.get(name) for name in code)
        called.update(*(f.__code__.co_names for f in helpers if getattr(f, "__globals__", None) is beside))
    called = {name.partition(".")[0] for name in called} - {"autograd"}  # which is PyTorch's: torch.autograd
    return {*item.name.partition("[")[0].split("_"), *spoken, *called}


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of a module are let go at its end: they fill gigabytes, and hardly one serves two modules.

    XLA optimises them where programs themselves are tried: in the conformance suite, implementations and parity. The laws
    that other tests show do not depend on it, and it takes a third of their time.
    """
    name = request.path.stem
    optimised = name not in UNOPTIMISED and not OPTIMISED.isdisjoint({name, request.path.parent.name})
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if optimised else "1"  # read when JAX is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_disable_most_optimizations", not optimised)
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def _set_up(variant: str) -> Iterator[Bench]:
    if variant == "strict-flags":
        with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
            yield VARIANTS[variant]()
    else:
        yield VARIANTS[variant]()


@pytest.fixture(params=list(VARIANTS))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Every library, in every way it can run."""
    yield from _set_up(request.param)


@pytest.fixture(params=["numpy", "autograd", "strict", "jax-eager", "torch"])
def eager(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Every library, run eagerly: for laws that do not depend on a compiler."""
    yield from _set_up(request.param)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list that grows with every call of polyattn's attention, from Flax or from a program of the docs."""
    import polyattn_jax.flax

    import polyattn

    attention = polyattn.attention
    called: list[str] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        called.append(options.get("layout", "BHLD"))
        return attention(*arguments, **options)

    monkeypatch.setattr(polyattn, "attention", counting)
    monkeypatch.setattr(polyattn_jax.flax, "attend", lambda who, *x, **options: counting(*x, **options))
    yield called
    assert called, "polyattn was not called"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven through its own driver."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()
