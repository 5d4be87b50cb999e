"""The table of dialects is true of the libraries that are here, and is what the documentation shows."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared.foreign import ELSEWHERE, HERE, PAGE, bound, library

from polyattn.conventions.answers import Answer, answer
from polyattn.conventions.settings import Settings
from polyattn.dialects import DIALECTS, QUESTIONS, dialect
from polyattn.dialects.markdown import table_markdown, update
from polyattn.dialects.probes import calls, check
from polyattn.truth.definition import Judged
from polyattn.truth.measure import ACCEPTANCE, eta


@pytest.mark.parametrize("name", HERE)
def test_the_libraries_answer_as_the_table_says(name: str) -> None:
    tested = [question for question, claim in DIALECTS[name].answers.items() if claim.tested]
    assert [said for question in tested if (said := check(name, question)) is not None] == []


def test_every_dialect_of_an_installed_library_is_tested_and_says_what_is_only_read() -> None:
    assert set(DIALECTS) - set(HERE) - set(ELSEWHERE) == {
        "torch.varlen",  # for CUDA alone
        "flash_attn.2",
        "flash_attn.varlen",
        "flash_attn.3",
        "flash_attn.4",
        "flashinfer",
        "te",
        "ggml",
        "xformers",
        "x_transformers",
    }
    read = {
        (d.name, question)
        for d in DIALECTS.values()
        for question, claim in d.answers.items()
        if not claim.tested
    }
    assert {pair for pair in read if pair[0] in HERE} == {
        ("torch.flex", "float mask"),
        ("equinox", "grouped heads"),
    }


def apart(a: Answer, b: Answer, dtype: str) -> bool:
    """Whether no result of that dtype can be accepted as both."""
    known = ~np.isnan(a.out) & ~np.isnan(b.out)
    reach = Judged(a.out[known], np.maximum(a.condition, b.condition)[known])
    return (
        bool((np.isnan(a.out) != np.isnan(b.out)).any()) or eta(b.out[known], reach, dtype) > 2 * ACCEPTANCE
    )


@pytest.mark.parametrize("question", [name for name in QUESTIONS if name not in ("layout", "lse")])
def test_the_calls_of_a_question_tell_its_answers_apart(question: str) -> None:
    posed = list(calls(DIALECTS["jax.nn"], question))
    outs: dict[str, list[Answer]] = {}
    with np.errstate(all="ignore"):
        for name, choice in QUESTIONS[question].choices.items():
            if not choice.refuses:
                outs[name] = [answer(case.call, Settings(**choice.changes(case))) for case in posed]
    changes = {  # "zero" is what happens anyway
        name: [
            {n: x for n, x in QUESTIONS[question].choices[name].changes(case).items() if x != "zero"}
            for case in posed
        ]
        for name in outs
    }
    for one in outs:
        for other in outs:
            if changes[one] != changes[other]:
                pairs = zip(outs[one], outs[other], strict=True)
                dtype = "float64" if question == "float64" else "float32"  # of the calls
                assert any(apart(a, b, dtype) for a, b in pairs), (one, other)


def _real_parameters(name: str) -> Mapping[str, Any]:
    """Name -> default of the function itself."""
    if name == "torch.sdpa":
        text = torch.nn.functional.scaled_dot_product_attention.__doc__.split(" -> ")[0]
        return _from_ast(ast.parse(f"def f{text[text.index('(') :]}: ..."), "f")
    if name == "keras":  # importing it would fix its backend
        spec = find_spec("keras")
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).parent / "src" / "ops" / "nn.py"
        return _from_ast(ast.parse(source.read_text()), "dot_product_attention")
    if name == "mlx":
        text = _named(DIALECTS[name].what).__doc__.split(" -> ")[0]
        text = re.sub(r"\barray\b|None \| str \| array|StreamOrDevice", "object", text)
        return _from_ast(ast.parse(f"def f{text[text.index('(') :]}: ..."), "f")
    if name == "onnxruntime.gqa":
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

        schema = next(s for s in get_all_operator_schema() if s.name == "GroupQueryAttention")
        own = {p.name: p.default for p in DIALECTS[name].parameters}  # they say no defaults
        return {x: own[x] for x in [*(i.name for i in schema.inputs), *schema.attributes]}
    if name.startswith("onnx"):
        import onnx

        schema = onnx.defs.get_schema("Attention", int(name[-2:]), "")
        inputs = {x.name: inspect.Parameter.empty if i < 3 else None for i, x in enumerate(schema.inputs)}
        attributes = {
            n: onnx.helper.get_attribute_value(a.default_value) if a.default_value.name else None
            for n, a in schema.attributes.items()
        }
        return {**inputs, **attributes}
    function = _named(DIALECTS[name].what)
    if inspect.isclass(function):
        function = function.forward if hasattr(function, "forward") else function.__call__
    found = inspect.signature(function).parameters
    return {n: p.default for n, p in found.items() if n != "self" and p.kind is not p.VAR_KEYWORD}


def _named(path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    return getattr(import_module(module), attribute)


def _from_ast(tree: ast.Module, name: str) -> Mapping[str, Any]:
    made = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    names = [arg.arg for arg in made.args.args]
    defaults = [ast.literal_eval(node) for node in made.args.defaults]
    named = zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True)
    return (
        dict.fromkeys(names, inspect.Parameter.empty)
        | dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        | {
            arg.arg: inspect.Parameter.empty if node is None else ast.literal_eval(node)
            for arg, node in named
        }
    )


@pytest.mark.parametrize("name", HERE)
def test_the_signatures_are_those_of_the_libraries(name: str) -> None:
    d, real = DIALECTS[name], _real_parameters(name)
    own = {p.name: p.default for p in d.parameters}
    module = set(re.findall(r"(\w+):", d.module))
    assert set(own) - module == set(real)
    differing = {n for n in real if own[n] != real[n] and not callable(real[n])}
    assert differing == set()


def test_the_table_in_the_documentation_is_the_data() -> None:
    page = PAGE.read_text()
    assert table_markdown().strip() in page
    assert update(page) == page


def test_the_programs_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(programs) == 3
    for program, printed in programs:
        exec(compile(program, "dialects.md", "exec"), {})
        assert capsys.readouterr().out == printed


def test_notes_on_libraries_are_true() -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 4, 8)).astype(np.float32))
    low = torch.zeros(4, 4)
    low[1] = torch.finfo(torch.float32).min
    assert (sdpa(x, x, x, attn_mask=low)[0, 0, 1] - x.mean(2)[0, 0]).abs().max() < bound(x, x, x, 0.36)
    with pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal"):
        library("sdpa math").call(
            {"query": x, "key": x, "value": x, "attn_mask": torch.ones(4, 4) > 0, "is_causal": True}
        )
    layer, y = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval(), x[0]
    nothing = torch.ones(1, 4, dtype=torch.bool)
    ask = {"key_padding_mask": nothing, "need_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            assert layer(y, y, y, **ask)[0].isnan().any()
        assert not layer(y, y, y, **ask)[0].isnan().any()


def test_an_unknown_dialect_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"expected one of torch\.sdpa, .*, got 'nobody'; name one of these"):
        dialect("nobody")
