"""Dialects: the table is true of the libraries that are here, translators keep the meaning, traps are named."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import polyattn
from polyattn import attention, dialects, masks, mods
from polyattn.cli import app
from polyattn.conventions.answers import Answer, answer
from polyattn.conventions.settings import Settings
from polyattn.dialects import DIALECTS, QUESTIONS, explain
from polyattn.dialects.page import cell, peers_markdown, table_markdown, update
from polyattn.dialects.peers import PEERS, Library, PeerOutcome, judge, library_of
from polyattn.dialects.probes import calls, check
from polyattn.parity.case import Case, Later, Sample
from polyattn.parity.cases import cases
from polyattn.truth.definition import Judged, truth
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, eta

Array = Any
Keywords = Mapping[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
HERE = [d.name for d in DIALECTS.values() if any(claim.tested for claim in d.answers.values())]


def library(name: str) -> Library:
    found = library_of(name)
    assert isinstance(found, Library), found
    return found


# the table


@pytest.mark.parametrize("name", HERE)
def test_the_libraries_answer_as_the_table_says(name: str) -> None:
    tested = [question for question, claim in DIALECTS[name].answers.items() if claim.tested]
    assert [said for question in tested if (said := check(name, question)) is not None] == []


def test_every_dialect_of_an_installed_library_is_tested_and_says_what_is_only_read() -> None:
    assert set(DIALECTS) - set(HERE) == {
        "flash_attn.2",
        "flash_attn.3",
        "flash_attn.4",
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
    if name.startswith("onnx"):
        import onnx

        schema = onnx.defs.get_schema("Attention", int(name[-2:]), "")
        inputs = {x.name: inspect.Parameter.empty if i < 3 else None for i, x in enumerate(schema.inputs)}
        attributes = {
            n: onnx.helper.get_attribute_value(a.default_value) if a.default_value.name else None
            for n, a in schema.attributes.items()
        }
        return {**inputs, **attributes}
    function: Callable[..., Any]
    if name == "torch.mha":
        function = torch.nn.MultiheadAttention.forward
    elif name == "torch.flex":
        from torch.nn.attention.flex_attention import flex_attention as function
    elif name == "transformers":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward as function
    elif name == "jax.nn":
        from jax.nn import dot_product_attention as function
    elif name == "flax.nnx":
        from flax.nnx import dot_product_attention as function
    else:
        from equinox.nn import MultiheadAttention

        function = MultiheadAttention.__call__
    found = inspect.signature(function).parameters
    return {n: p.default for n, p in found.items() if n != "self" and p.kind is not p.VAR_KEYWORD}


def _from_ast(tree: ast.Module, name: str) -> Mapping[str, Any]:
    made = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    names = [arg.arg for arg in made.args.args]
    defaults = [ast.literal_eval(node) for node in made.args.defaults]
    return dict.fromkeys(names, inspect.Parameter.empty) | dict(
        zip(names[-len(defaults) :], defaults, strict=True)
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


# from polyattn and back


def drawn(
    case: Case, array: Callable[[Array], Array] = lambda x: x
) -> tuple[Sample, tuple[Array, ...], dict[str, Any]]:
    sample = case.sample(0, "float32")

    def convert(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return array(x.astype(np.float32) if x.dtype.kind == "f" else x)

    operands = tuple(convert(x) for x in sample.inputs or (sample.spec.q, sample.spec.k, sample.spec.v))
    options = {n: x.make(convert) if isinstance(x, Later) else convert(x) for n, x in sample.options.items()}
    return sample, operands, options


def unsaid(name: str) -> Iterator[str]:
    """The cases that a dialect has no words for."""
    for case in cases():
        _, operands, options = drawn(
            case, library("torch.sdpa").array if name == "torch.flex" else lambda x: x
        )
        refused = None
        try:
            said = DIALECTS[name].from_polyattn(*operands, **options)
        except ValueError as error:
            refused = str(error)
        if refused is not None:
            assert refused.startswith(f"polyattn.dialects['{name}'].from_polyattn: ")
            yield case.name
            continue
        sample = case.sample(0, "float32")
        with np.errstate(all="ignore"):
            out = DIALECTS[name].attention(**said)
        out = DIALECTS[name].result_of(out[0] if isinstance(out, tuple) else out, sample.spec.q.shape[1])
        assert eta(np.asarray(out, np.float64), truth(sample.spec)["out"], "float32") <= ACCEPTANCE, case.name


SOFT = {"softcap bias mask"}
NEVER = {"dropout", "functions on positions"}
WIDE = {"values of another width", "layout blhd", "many keys"}
BIASED = {
    "masks combine",
    "sinks and empty rows",
    "sinks",
    "alibi",
    "relative position bias",
    "bias per item and head",
}
MASKED = {
    "mask polarity",
    "causal first rows",
    "causal offset per item",
    "prefix chunks dilation",
    "packed documents",
    "rows that see nothing",
    "poison in hidden keys",
    "query and key lengths",
}
UNSAID = {
    "torch.sdpa": SOFT | NEVER,
    "torch.mha": SOFT | NEVER | WIDE,
    "torch.flex": {"dropout", "no keys"},
    "jax.nn": SOFT | NEVER | WIDE,
    "flax.nnx": SOFT | NEVER | WIDE,
    "equinox": SOFT | NEVER | BIASED | {"no keys"},
    "keras": SOFT | NEVER | WIDE,
    "onnx.23": NEVER | {"no keys"},
    "onnx.24": NEVER | {"no keys"},
    "onnx.25": NEVER | {"no keys"},
    "flash_attn.2": SOFT | NEVER | WIDE | BIASED | MASKED,
    "flash_attn.3": SOFT | NEVER | BIASED | MASKED,
    "flash_attn.4": SOFT | NEVER | BIASED - {"sinks"} | MASKED,
    "xformers": SOFT | NEVER,
    "x_transformers": SOFT | NEVER,
    "transformers": SOFT | NEVER,
}


@pytest.mark.parametrize("name", list(DIALECTS))
def test_what_is_said_in_a_dialect_means_the_same_when_it_is_heard(name: str) -> None:
    assert set(unsaid(name)) == UNSAID[name]


REPAIRED = ("rows that see nothing", "poison in hidden keys", "sinks and empty rows", "causal last rows")


@pytest.mark.parametrize(
    "name", ["torch.sdpa", "torch.mha", "torch.mha no weights", "onnx.25", "jax.nn", "transformers"]
)
def test_repaired_calls_return_what_is_meant_from_the_library_itself(name: str) -> None:
    name = name.removeprefix("torch.") if name.endswith("weights") else name
    asked = library(name)
    d = DIALECTS[PEERS[name].dialect]
    wrong_without = 0
    for case in cases():
        if case.name in REPAIRED[: 2 if name == "jax.nn" else 4]:
            sample, operands, options = drawn(case, asked.array)
            for repair in (True, False):
                found = asked.call(d.from_polyattn(*operands, repair=repair, **options))
                out = d.result_of(found[0] if isinstance(found, tuple) else found, sample.spec.q.shape[1])
                error = eta(np.asarray(out, np.float64), truth(sample.spec)["out"], "float32")
                assert error <= ACCEPTANCE or not repair, case.name
                wrong_without += error > ACCEPTANCE
    assert wrong_without


def test_the_translators_work_under_a_compiler() -> None:
    import jax

    d = DIALECTS["jax.nn"]
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 8)).astype(np.float32)
    allowed = np.arange(4) < 3
    options = {"mask": jax.numpy.asarray(allowed[None, None, None]), "scale": jax.numpy.asarray(0.3)}

    @jax.jit
    def both(q: Array, k: Array, v: Array) -> Array:
        said = d.from_polyattn(q, k, v, **options)
        return jax.nn.dot_product_attention(**said), d.attention(**said)

    theirs, ours = both(q, k, v)
    expected = attention(q, k, v, mask=allowed[None, None, None], scale=0.3).swapaxes(1, 2)
    for found in (theirs, ours):
        assert np.abs(np.asarray(found) - expected).max() <= bound(q, k, v, 0.3)


def bound(q: Array, k: Array, v: Array, scale: float) -> float:
    """How far two results in float32 may be apart: an average of values, its weights erring with the scores."""
    q, k, v = (np.asarray(x) for x in (q, k, v))
    scores = scale * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
    return float(2 * ACCEPTANCE * UNIT_ROUNDOFF["float32"] * np.abs(v).max() * (1 + 2 * scores))


# what libraries do with their own calls, and what is heard


def foreign_calls(name: str, array: Callable[[Array], Array]) -> Iterator[Keywords]:
    """Calls as users of the library write them."""
    rng = np.random.default_rng(3)

    def x(*shape: int) -> Array:
        return array(rng.normal(size=shape).astype(np.float32))

    def visible(*shape: int) -> Array:
        mask = rng.random(shape) < 0.6
        mask[..., 0] = True
        return mask

    hidden = np.where(visible(2, 4, 3, 5), rng.normal(size=(2, 4, 3, 5)), -np.inf).astype(np.float32)
    if name == "torch.sdpa":
        q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 6)
        yield {"query": q, "key": k, "value": v, "attn_mask": array(visible(3, 5)), "enable_gqa": True}
        yield {"query": q, "key": k, "value": v, "is_causal": True, "scale": 0.2, "enable_gqa": True}
        yield {"query": q, "key": k[:, :1], "value": v[:, :1], "attn_mask": array(hidden)}
        yield {"query": q[0], "key": x(4, 5, 8), "value": x(4, 5, 8), "is_causal": True}
    elif name == "torch.mha":
        q, k, v = x(3, 2, 16), x(5, 2, 16), x(5, 2, 16)
        per_head = array(~visible(8, 3, 5))
        padding = array(np.arange(5) >= np.array([[4], [5]]))
        yield {
            "query": q,
            "key": k,
            "value": v,
            "num_heads": 4,
            "attn_mask": per_head,
            "key_padding_mask": padding,
        }
        yield {"query": x(2, 3, 16), "key": x(2, 5, 16), "value": x(2, 5, 16), "num_heads": 2, "batch_first": True, "attn_mask": array(hidden[0, 0])}  # fmt: skip
        yield {"query": q[:, 0], "key": k[:, 0], "value": v[:, 0], "num_heads": 2}
        yield {
            "query": q,
            "key": k,
            "value": v,
            "num_heads": 2,
            "attn_mask": array(~visible(3, 5)),
            "is_causal": True,
        }
    elif name == "torch.flex":
        from torch.nn.attention.flex_attention import create_block_mask

        block = create_block_mask(lambda b, h, q, kv: kv <= q, None, None, 3, 5, device="cpu")
        q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 8)
        yield {"query": q, "key": k, "value": v, "enable_gqa": True, "block_mask": block, "scale": 0.2}
        yield {"query": q, "key": x(2, 4, 5, 8), "value": x(2, 4, 5, 8), "score_mod": lambda s, b, h, q, kv: s - h * (q - kv)}  # fmt: skip
    elif name in ("jax.nn", "flax.nnx", "keras"):
        q, k, v = x(2, 3, 4, 8), x(2, 5, 2, 8), x(2, 5, 2, 8)
        yield {"query": q, "key": k, "value": v, "mask": array(visible(2, 1, 3, 5)), "bias": x(1, 4, 3, 5), "is_causal": True}  # fmt: skip
        if name == "jax.nn":
            lengths = {
                "query_seq_lengths": np.array([2, 3], np.int32),
                "key_value_seq_lengths": np.array([5, 4], np.int32),
            }
            yield {"query": q, "key": k, "value": v, "scale": 0.2} | {n: array(m) for n, m in lengths.items()}
            yield {"query": q, "key": k, "value": v, "local_window_size": 1}
            yield {"query": q[0], "key": k[0], "value": v[0], "local_window_size": (2, 0)}
        elif name == "flax.nnx":
            yield {"query": q, "key": k, "value": v, "mask": array(visible(2, 1, 3, 5).astype(np.float32))}
    elif name == "equinox":
        yield {
            "query": x(3, 16),
            "key_": x(5, 16),
            "value": x(5, 12),
            "num_heads": 4,
            "mask": array(visible(4, 3, 5)),
        }
        yield {"query": x(3, 16), "key_": x(5, 16), "value": x(5, 12), "num_heads": 2, "mask": array(visible(3, 5).astype(np.float32))}  # fmt: skip
    elif name == "onnx.25":
        q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 6)
        yield {
            "Q": x(2, 3, 32),
            "K": x(2, 5, 16),
            "V": x(2, 5, 8),
            "q_num_heads": 4,
            "kv_num_heads": 2,
            "is_causal": 1,
        }
        yield {"Q": q, "K": k, "V": v, "past_key": x(2, 2, 2, 8), "past_value": x(2, 2, 2, 6), "is_causal": 1, "left_window_size": 3}  # fmt: skip
        yield {
            "Q": q,
            "K": k,
            "V": v,
            "nonpad_kv_seqlen": np.array([5, 4]),
            "is_causal": 1,
            "attn_mask": visible(3, 5),
        }
        yield {"Q": q, "K": k, "V": v, "attn_mask": hidden[..., :4], "softcap": 1.5, "scale": 0.25}
        yield {"Q": q, "K": k, "V": v, "left_window_size": 1, "right_window_size": 1}
    elif name == "transformers":
        q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 8)
        module = SimpleNamespace(num_key_value_groups=2)
        yield {"module": module, "query": q, "key": k, "value": v, "attention_mask": None, "scaling": 0.2}
        yield {
            "module": module,
            "query": q[:, :, :1],
            "key": k,
            "value": v,
            "attention_mask": None,
            "is_causal": True,
        }
        yield {"module": module, "query": q, "key": k, "value": v, "attention_mask": array(visible(2, 1, 3, 5)), "is_causal": True}  # fmt: skip
        yield {"module": module, "query": q, "key": k, "value": v, "attention_mask": array(visible(2, 1, 3, 5)), "position_bias": x(1, 4, 3, 5)}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in HERE if not name.startswith("onnx")] + ["onnx.25"])
def test_a_foreign_call_gives_what_the_library_gives(name: str) -> None:
    asked, d = library(name), DIALECTS[name]
    given = list(foreign_calls(name, asked.array))
    assert given
    for call in given:
        theirs, ours = asked.call(call), d.attention(**call)
        theirs, ours = (np.asarray(y[0] if isinstance(y, tuple) else y) for y in (theirs, ours))
        assert ours.shape == theirs.shape
        said = {n: np.asarray(y) for n, y in d.to_polyattn(**call).items() if n in ("query", "key", "value")}
        assert np.abs(ours - theirs).max() <= bound(*said.values(), 0.36)  # the largest scale is 1/sqrt(8)


def test_weights_and_logs_come_in_the_form_of_the_library() -> None:
    import jax

    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(3, 2, 8)).astype(np.float32))
    layer = torch.nn.MultiheadAttention(8, 2, bias=False)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([torch.eye(8)] * 3))
        layer.out_proj.weight.copy_(torch.eye(8))
    for average in (True, False):
        theirs = layer(x, x, x, average_attn_weights=average)[1]
        ours = DIALECTS["torch.mha"].attention(x, x, x, average_attn_weights=average, num_heads=2)[1]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= bound(*(x.numpy(),) * 2, np.ones(1), 0.5)
    q = jax.numpy.asarray(rng.normal(size=(2, 3, 2, 8)), np.float32)
    theirs = jax.nn.dot_product_attention(q, q, q, return_residual=True)[1]
    ours = DIALECTS["jax.nn"].attention(q, q, q, return_residual=True)[1]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound(q, q, np.ones(1), 0.36)
    assert DIALECTS["torch.mha"].attention(x, x, x, num_heads=2, need_weights=False)[1] is None
    lse = DIALECTS["flash_attn.4"].attention(np.asarray(q), np.asarray(q), np.asarray(q), return_lse=True)[1]
    assert lse.shape == (2, 2, 3)


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


# traps on the way in

Q = np.zeros((2, 4, 3, 8), np.float32)
K = np.zeros((2, 2, 5, 8), np.float32)
SQUARE = np.zeros((1, 2, 3, 8), np.float32)
ONES = np.tril(np.ones((3, 3), np.float32))


@pytest.mark.parametrize(
    ("name", "call", "sentence"),
    [
        ("torch.sdpa", {"query": Q, "key": K}, "expected the arguments of torch.nn.functional.scaled_dot_product"),
        ("torch.sdpa", {"query": Q, "key": K, "value": K, "mask": None}, "got an unexpected keyword argument 'mask'"),
        ("torch.sdpa", {"query": [0.0], "key": K, "value": K}, "expected query to be an array, got list"),
        ("torch.sdpa", {"query": Q, "key": K, "value": K}, "expected enable_gqa = True, got False with 4 query heads and 2"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE, "attn_mask": ONES}, "nothing but 0.0 and 1.0; torch.sdpa would add them to the scores and hide nothing"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE, "attn_mask": ONES > 0, "is_causal": True}, "expected is_causal or a mask, got both"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE, "is_causal": "yes"}, "expected is_causal to be True or False"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE, "dropout_p": 0.1}, "no two libraries drop the same weights"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE[:, :, :2]}, "expected key and value of one length S"),
        ("torch.sdpa", {"query": SQUARE, "key": SQUARE, "value": SQUARE, "attn_mask": [[1.0]]}, "expected attn_mask to be an array, got list"),
        ("torch.mha", {"query": ONES, "key": ONES, "value": ONES, "num_heads": 3, "is_causal": True}, "the flag is a hint there; pass attn_mask"),
        ("torch.mha", {"query": Q, "key": Q, "value": Q, "num_heads": 2}, "of one rank, 2 or 3, got shapes (2, 4, 3, 8)"),
        ("torch.mha", {"query": ONES, "key": ONES, "value": ONES, "num_heads": 2}, "expected num_heads to divide the width, got 2 and width 3"),
        ("torch.flex", {"query": Q, "key": Q, "value": Q, "block_mask": ONES}, "expected block_mask to be a BlockMask, got ndarray"),
        ("jax.nn", {"query": Q, "key": Q, "value": Q, "mask": ONES}, "expected mask of bools, got float32; jax.nn takes no other"),
        ("jax.nn", {"query": Q, "key": Q, "value": Q, "bias": ONES > 0}, "expected bias to be a real floating array, got bool"),
        ("flax.nnx", {"query": Q, "key": Q, "value": Q, "dtype": "bfloat16"}, "expected dtype = None, got another value"),
        ("keras", {"query": Q, "key": Q, "value": Q, "attn_logits_soft_cap": 20.0}, "expected attn_logits_soft_cap = None"),
        ("onnx.25", {"Q": Q, "K": K, "V": K, "past_key": K}, "expected past_key and past_value together"),
        ("xformers", {"query": Q, "key": Q, "value": Q, "attn_bias": ONES > 0}, "expected attn_bias of numbers that are added, got bools"),
        ("x_transformers", {"q": Q, "k": K, "v": K, "attn_bias": ONES, "softclamp_logits": True}, "there the cap comes after the bias"),
        ("flash_attn.2", {"q": SQUARE, "k": SQUARE, "v": SQUARE, "alibi_slopes": ONES}, "expected alibi_slopes of shape (Hq,), got (3, 3)"),
        ("flash_attn.3", {"q": SQUARE, "k": SQUARE, "v": SQUARE, "qv": SQUARE}, "expected qv = None, got another value"),
    ],
)  # fmt: skip
def test_what_cannot_be_heard_is_said_in_a_sentence(name: str, call: Keywords, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        DIALECTS[name].attention(**call)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("flash_attn.2", {"is_causal": True, "query_offset": 0}, "the mask causal() with query_offset = 0. Only causality and"),
        ("flash_attn.2", {"bias": np.zeros((1, 1, 3, 5), np.float32)}, "values added to the scores, in flash_attn.2: none"),
        ("flash_attn.2", {"sinks": np.zeros(4, np.float32)}, "sinks in the denominator, in flash_attn.2: none"),
        ("torch.sdpa", {"score_mod": mods.softcap(2.0)}, "soft cap, in torch.sdpa: none; this call has Softcap"),
        ("torch.sdpa", {"score_mod": lambda s, b, h, q, kv: s * s, "query_offset": 0}, "which does not only add"),
        ("torch.sdpa", {"dropout_rate": 0.5, "dropout_seed": 1}, "ask it for its own dropout"),
        ("torch.sdpa", {"return_aux": None}, "got return_aux; leave them out"),
        ("torch.sdpa", {"mask": np.zeros((3, 5), np.float32)}, "expected a bool mask (True = may attend), got dtype float32"),
        ("x_transformers", {"score_mod": mods.softcap(2.0), "bias": np.zeros((1, 1, 3, 5), np.float32)}, "after the bias"),
        ("x_transformers", {"score_mod": mods.softcap(2.0), "sinks": np.zeros(4, np.float32)}, "after the bias"),
    ],
)  # fmt: skip
def test_what_a_dialect_has_no_words_for_is_said_in_a_sentence(
    name: str, options: Keywords, sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        DIALECTS[name].from_polyattn(Q, K, K, **options)
    assert sentence in str(error.value)


def test_float64_is_refused_where_the_softmax_would_be_in_float32() -> None:
    q, k = Q.astype(np.float64), K.astype(np.float64)
    with pytest.raises(ValueError, match=r"float64 input, in jax\.nn: softmax in float32"):
        DIALECTS["jax.nn"].from_polyattn(q, k, k)
    assert DIALECTS["jax.nn"].from_polyattn(q, k, k, repair=False)["query"].dtype == np.float64
    assert DIALECTS["torch.sdpa"].from_polyattn(q, k, k)["enable_gqa"] is True


def test_objects_of_libraries_that_are_not_here_are_translated() -> None:
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 2, 5, 4, 8)).astype(np.float32)  # (B, L, H, D)

    class LowerTriangular:
        def materialize(self, shape: tuple[int, ...], dtype: Any, device: Any) -> Array:
            return np.where(np.tril(np.ones(shape, bool)), 0.0, -np.inf).astype(dtype)

    causal = attention(q, k, v, layout="BLHD", is_causal=True)
    assert np.array_equal(DIALECTS["xformers"].attention(q, k, v, attn_bias=LowerTriangular()), causal)
    windowed = DIALECTS["flash_attn.2"].attention(q, k, v, causal=True, window_size=(1, -1))
    assert np.array_equal(windowed, attention(q, k, v, layout="BLHD", mask=masks.sliding_window(2)))
    decoding = DIALECTS["flash_attn.3"].attention(q[:, :2], k, v, causal=True)
    assert np.array_equal(
        decoding, attention(q[:, :2], k, v, layout="BLHD", is_causal=True, query_offset="end")
    )
    sinks = np.ones(4, np.float32)
    assert np.array_equal(
        DIALECTS["flash_attn.4"].attention(q, k, v, learnable_sink=sinks),
        attention(q, k, v, layout="BLHD", sinks=sinks),
    )
    tiled = DIALECTS["x_transformers"].attention(
        *(x.swapaxes(1, 2) for x in (q, k[:, :, :2], v[:, :, :2])),
        add_zero_kv=True,
        mask=np.arange(5) < [[3], [5]],
    )[0]
    lengths = masks.key_lengths([3, 5])
    for head in range(4):
        one = attention(*(x[:, :, [h]].swapaxes(1, 2) for x, h in ((q, head), (k, head % 2), (v, head % 2))), sinks=0.0, mask=lengths)  # fmt: skip
        assert np.abs(tiled[:, [head]] - one).max() <= bound(q, k, v, 0.36)


# explain


def draw(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_explain_names_the_traps_that_bite_and_what_each_library_returns() -> None:
    q, k, v = draw((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4))
    allowed = np.ones((1, 1, 3, 3), bool)
    allowed[..., 1, :] = False
    found = explain("torch.sdpa", "jax.nn", q, k, v, mask=allowed)
    assert [trap.question for trap in found.bites] == ["layout", "empty row"]
    trap = found.bites[1]
    assert trap.where == (0, 0, 1, 0)
    assert trap.values is not None
    assert trap.values[0] == trap.meant == 0.0
    assert trap.values[1] == pytest.approx(v[0, 0, :, 0].mean(), abs=1e-12 + bound(q, k, v, 0.5))
    assert trap.eta == np.inf
    theirs = library("jax.nn").call(DIALECTS["jax.nn"].from_polyattn(q, k, v, mask=allowed, repair=False))
    assert np.abs(found.returns[1] - theirs.swapaxes(1, 2)).max() <= bound(q, k, v, 0.5)
    assert "jax.nn: mean of all values -> " in str(found)
    assert "lurks  float64 input" in str(found)


@pytest.mark.parametrize(
    ("a", "b", "case", "bites", "shared"),
    [
        ("torch.sdpa", "flash_attn.2", {"is_causal": True, "query_offset": "end"}, ["causal"], []),
        ("torch.sdpa", "jax.nn", {"is_causal": True, "query_offset": "end"}, [], ["causal"]),
        ("torch.sdpa", "torch.mha", {"mask": np.array([[[[1, 0, 1, 0, 1]]]], bool)}, ["bool mask", "grouped heads"], []),
        ("torch.sdpa", "keras", {"mask": np.array([[[[1.0, 0, 1, 0, 1]]]])}, ["float mask"], []),
        ("onnx.25", "transformers", {"mask": masks.window(1, 1), "query_offset": 0}, ["window"], []),
        ("onnx.25", "x_transformers", {"score_mod": mods.compose(mods.softcap(1.0), mods.alibi(4)), "query_offset": 0}, ["grouped heads", "softcap"], []),
        ("flash_attn.4", "transformers", {"sinks": np.ones(4)}, ["sinks"], []),
        ("jax.nn", "flax.nnx", {"scale": 0.1}, ["scale"], []),
        ("jax.nn", "x_transformers", {}, ["grouped heads"], []),
        ("transformers", "torch.sdpa", {"is_causal": True, "mask": np.ones((1, 1, 3, 5), bool), "query_offset": 0}, ["mask and causal"], []),
        ("torch.sdpa", "equinox", {"bias": np.ones((1, 1, 3, 5))}, ["bias", "grouped heads"], []),
        ("torch.sdpa", "torch.flex", {"return_aux": polyattn.AuxRequest(lse=True)}, ["lse"], []),
    ],
)  # fmt: skip
def test_each_trap_bites_where_its_call_is(
    a: str, b: str, case: Keywords, bites: list[str], shared: list[str]
) -> None:
    q, k, v = draw((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    found = explain(a, b, q, k, v, **case)
    numeric = [t.question for t in found.bites if t.question != "layout"]
    # What differs only in needing a flag, or is refused by both, is another matter than what is asked here.
    assert [name for name in numeric if name in bites] == bites
    assert {name for name in numeric if name not in bites} <= {"grouped heads", "bias"}
    assert [t.question for t in found.shared if t.question in ("causal", "mask and causal")] == shared


def test_explain_knows_dtypes_poison_and_rows_without_bias() -> None:
    q, k, v = (x.astype(np.float64) for x in draw((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)))
    found = explain("torch.sdpa", "jax.nn", q, k, v)
    assert "float64" in [trap.question for trap in found.bites]
    k, v = k.astype(np.float32).copy(), v.astype(np.float32)
    k[:, :, 2] = np.nan
    found = explain("torch.sdpa", "jax.nn", q.astype(np.float32), k, v, mask=masks.prefix(2))
    assert "poison" in [trap.question for trap in found.bites]
    assert "NaN of" in found.results()[0]
    hollow = np.zeros((1, 1, 3, 3), np.float32)
    hollow[..., 0, :] = -np.inf
    found = explain("torch.sdpa", "jax.nn", q.astype(np.float32), v, v, bias=hollow)
    assert [trap.question for trap in found.bites] == ["layout", "empty bias row"]


@pytest.mark.parametrize(
    ("a", "case", "sentence"),
    [
        ("torch.sdp", {}, "expected one of torch.sdpa, torch.mha,"),
        (
            "torch.sdpa",
            {"mask": np.array([[0.5]])},
            "got other numbers; what is added to the scores is bias=",
        ),
        (
            "torch.sdpa",
            {"dropout_rate": 0.5},
            "expected arguments of polyattn.attention that have conventions",
        ),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(a: str, case: Keywords, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        explain(a, "jax.nn", SQUARE, SQUARE, SQUARE, **case)
    assert sentence in str(error.value)


# the libraries as columns


@pytest.mark.parametrize(
    "name", [n for n in PEERS if n not in ("flax.nnx", "keras torch", "equinox", "torch.flex")]
)
def test_the_verdicts_in_the_documentation_are_those_of_the_libraries(name: str) -> None:
    asked = library_of(name)
    table = PAGE.read_text().split("<!-- peers -->\n")[1].split("\n<!-- end -->")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    if isinstance(asked, str):
        assert name not in header
        return
    some = ("mask polarity", "rows that see nothing", "poison in hidden keys", "values of another width")
    for case in cases():
        if case.name in some:
            said = next(row[header.index(name)] for row in rows if row[0] == case.name)
            assert cell(judge(PEERS[name], asked, case))[-1] == said[-1], case.name


def test_outcomes_become_a_table() -> None:
    outcomes = [
        PeerOutcome("one", "1", "torch.sdpa", 0.5),
        PeerOutcome("one", "1", "jax.nn", np.inf),
        PeerOutcome("two", "2", "torch.sdpa", None, "no"),
    ]
    assert peers_markdown(outcomes).splitlines()[2:] == ["| one | 1 | 0.50 ✓ | inf ✗ |", "| two | 2 | – |  |"]


# the command line


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def test_the_command_shows_dialects_answers_and_traps() -> None:
    everything = run("dialects")
    assert everything.exit_code == 0
    assert all(name in everything.output for name in DIALECTS)
    one = run("dialects", "flash_attn.2")
    assert "last query with last key (read, not tested)" in one.output
    two = run("dialects", "torch.sdpa", "flash_attn.2")
    assert two.exit_code == 0
    assert re.search(r"^bites +causal with L != S +first query with first key -> ", two.output, re.MULTILINE)
    assert "flash_attn.2 returns what is meant" in two.output
    assert not re.search(
        r"^bites +causal", run("dialects", "jax.nn", "flash_attn.2", "--call", "L=4,causal=1").output
    )


def test_wrong_usage_of_the_commands_is_status_2_and_a_sentence() -> None:
    for args, sentence in (
        (["dialects", "torch.sdpa", "nobody"], "expected one of torch.sdpa,"),
        (["dialects", "torch.sdpa", "jax.nn", "--call", "L=x"], "expected NAME=NUMBER"),
        (["dialects", "torch.sdpa", "jax.nn", "--call", "L=9000"], "explain a smaller call"),
        (["verify", "--peers", "--backend", "jax"], "expected --peers with --case, --seed and --json alone"),
        (
            ["verify", "--peers", "--case", "nobody"],
            "polyattn verify: expected a part of the name of a case, got 'nobody'; there are golden",
        ),
    ):
        result = run(*args)
        assert result.exit_code == 2
        assert sentence in " ".join(result.output.split())


def test_verify_has_the_libraries_as_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = {name: PEERS[name] for name in ("torch.sdpa", "sdpa cudnn", "onnx.23")}
    monkeypatch.setattr("polyattn.dialects.peers.PEERS", few)
    result = run(
        "verify",
        "--peers",
        "--case",
        "no keys",
        "--case",
        "causal first",
        "--json",
        str(tmp_path / "rows.json"),
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^causal first rows +4 +\S+ ✓ +\S+ ✓", result.output, re.MULTILINE)
    assert re.search(r"^no keys +14 +0.00 ✓ +-", result.output, re.MULTILINE)
    assert "onnx.23 'no keys': " in result.output
    assert "note: sdpa cudnn was not asked: " in result.output
    assert '"peer": "torch.sdpa"' in (tmp_path / "rows.json").read_text()


def test_an_unknown_dialect_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"expected one of torch\.sdpa, .*, got 'nobody'; name one of these"):
        dialects.dialect("nobody")
