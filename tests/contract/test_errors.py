"""Every wrong argument raises, in one sentence: who speaks, what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn import AuxRequest, attention, masks, mods
from polyattn.normalizers import Sigmoid, TopK
from polyattn.testing import Bench

pytestmark = pytest.mark.rule("rule-13")

LIBRARY = {"numpy": "numpy", "strict": "array_api_strict", "jax": "jax", "torch": "torch"}

SHAPES: dict[str, tuple[tuple[tuple[int, ...], ...], str]] = {
    "a rank of 1": (
        ((3,), (3,), (3,)),
        "expected query, key and value of one rank, 2 or more, got query (3,), key (3,), value (3,) in layout "
        "BHLD; add the axes that are missing, of size 1",
    ),
    "different ranks": (
        ((2, 3, 8), (3, 8), (3, 8)),
        "expected query, key and value of one rank, 2 or more, got query (2, 3, 8), key (3, 8), value (3, 8) "
        "in layout BHLD; add the axes that are missing, of size 1",
    ),
    "heads that do not divide": (
        ((2, 4, 3, 8), (2, 3, 5, 8), (2, 3, 5, 6)),
        "expected a number of query heads that is a multiple of the number of key heads, got query "
        "(2, 4, 3, 8), key (2, 3, 5, 8), value (2, 3, 5, 6) in layout BHLD; grouped heads read key head "
        "h // (Hq // Hkv); check the layout",
    ),
    "no key heads": (
        ((2, 4, 3, 8), (2, 0, 5, 8), (2, 0, 5, 6)),
        "expected a number of query heads that is a multiple of the number of key heads, got query "
        "(2, 4, 3, 8), key (2, 0, 5, 8), value (2, 0, 5, 6) in layout BHLD; grouped heads read key head "
        "h // (Hq // Hkv); check the layout",
    ),
    "key and value heads": (
        ((2, 4, 3, 8), (2, 2, 5, 8), (2, 4, 5, 6)),
        "expected key and value of one number of heads, got query (2, 4, 3, 8), key (2, 2, 5, 8), value "
        "(2, 4, 5, 6) in layout BHLD; every key head needs its value head",
    ),
    "key and value lengths": (
        ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 6, 6)),
        "expected key and value of one length S, got query (2, 4, 3, 8), key (2, 2, 5, 8), value "
        "(2, 2, 6, 6) in layout BHLD; every key needs its value",
    ),
    "query and key widths": (
        ((2, 4, 3, 8), (2, 2, 5, 7), (2, 2, 5, 6)),
        "expected query and key of one width D, got query (2, 4, 3, 8), key (2, 2, 5, 7), value "
        "(2, 2, 5, 6) in layout BHLD; project them to the same width",
    ),
    "leading axes": (
        ((2, 4, 3, 8), (3, 2, 5, 8), (3, 2, 5, 6)),
        "expected leading axes that broadcast against each other, got query (2, 4, 3, 8), key (3, 2, 5, 8), "
        "value (3, 2, 5, 6) in layout BHLD; give each axis one size, or 1",
    ),
}

AMBIGUOUS = (
    "expected query_offset, because the mask or score_mod compares positions and L = 3 differs from S = 5; "
    "got None, which is ambiguous: query_offset=0 aligns the first rows (PyTorch, JAX, Keras), "
    "query_offset='end' the last (FlashAttention, MLX, decoding with a cache)"
)
NOT_BROADCAST = (
    "that broadcasts to the scores (..., Hq, L, S) = (2, 4, 3, 5), got shape (4, 5); write a key padding mask "
    "of shape (B, S) as {0}[:, None, None, :], an (L, S) one as {0}[None, None]"
)
PER_HEAD = "to be a scalar or of shape (4,), one per query head, got shape (3,); pass one value per head"
RATE = "; it is the share of weights dropped"
OFFSET = "; it is the position of query row 0"
NORMALIZER = (
    "expected normalizer among 'softmax', 'sigmoid', 'softpick', 'sparsemax', 'entmax15', a Sigmoid or a TopK of "
    "polyattn.normalizers, got "
)
ONE_SEED = "expected dropout_seed to be an integer or a 0-d integer array, got "

VALUES: dict[str, tuple[Callable[[Bench], dict[str, Any]], str]] = {
    "mask shape": (
        lambda b: {"mask": b.array(np.ones((4, 5), bool))},
        "expected a mask " + NOT_BROADCAST.format("mask"),
    ),
    "bias shape": (
        lambda b: {"bias": b.array(np.ones((4, 5)), "float32")},
        "expected a bias " + NOT_BROADCAST.format("bias"),
    ),
    "causal": (lambda b: {"is_causal": True}, AMBIGUOUS),
    "window": (lambda b: {"mask": masks.window(1, 1)}, AMBIGUOUS),
    "chunked": (lambda b: {"mask": ~masks.chunked(2) | masks.prefix(1)}, AMBIGUOUS),
    "mask_mod": (lambda b: {"mask": lambda b, h, q, kv: kv <= q}, AMBIGUOUS),
    "alibi": (lambda b: {"score_mod": mods.alibi(4)}, AMBIGUOUS),
    "layout": (
        lambda b: {"layout": "BHDL"},
        "expected layout 'BHLD' or 'BLHD', got 'BHDL'; name the axes of query, key and value (batch, heads, "
        "length, width)",
    ),
    "implementation": (
        lambda b: {"implementation": "flash"},
        "expected implementation 'auto', 'reference', 'blockwise', 'fused', 'native', a Reference, a Blockwise or a Fused, "
        "got 'flash'; use 'auto'",
    ),
    "query_offset": (
        lambda b: {"query_offset": "start"},
        "expected query_offset to be an integer, an integer array or 'end', got 'start'; 'end' is S - L",
    ),
    "offsets": (
        lambda b: {"query_offset": b.array(np.arange(3, dtype=np.int32))},
        "expected query_offset to be one integer or of shape (2,), one per batch item, got shape (3,); the "
        "batch is every axis before the head axis",
    ),
    "scale": (lambda b: {"scale": b.array(np.ones(3), "float32")}, f"expected scale {PER_HEAD}"),
    "sinks": (lambda b: {"sinks": b.array(np.ones(3), "float32")}, f"expected sinks {PER_HEAD}"),
    "no seed": (
        lambda b: {"dropout_rate": 0.5},
        "expected dropout_seed with dropout_rate = 0.5, got None; pass an integer that changes from step to "
        "step, or dropout_rate=0.0 outside training",
    ),
    "a rate of 1": (
        lambda b: {"dropout_rate": 1.0, "dropout_seed": 0},
        f"expected 0 <= dropout_rate < 1, got 1.0{RATE}",
    ),
    "a rate below 0": (
        lambda b: {"dropout_rate": -0.1, "dropout_seed": 0},
        f"expected 0 <= dropout_rate < 1, got -0.1{RATE}",
    ),
    "a rate of nan": (
        lambda b: {"dropout_rate": float("nan"), "dropout_seed": 0},
        f"expected 0 <= dropout_rate < 1, got nan{RATE}",
    ),
    "seed": (
        lambda b: {"dropout_rate": 0.5, "dropout_seed": 2**64},
        "expected 0 <= dropout_seed < 2**64, got 18446744073709551616; reduce it modulo 2**64",
    ),
    "lengths": (
        lambda b: {"mask": masks.key_lengths([1, 2, 3])},
        "expected the lengths of masks.key_lengths as one integer or as one per batch item, shape (2,), got "
        "shape (3,); the batch is every axis before the head axis (give a rank-3 query a head axis: "
        "query[:, None])",
    ),
    "a normaliser that nobody knows": (
        lambda b: {"normalizer": "sofmax"},
        NORMALIZER + "'sofmax'; did you mean 'softmax'?",
    ),
    "a normaliser that has a parameter": (
        lambda b: {"normalizer": "top_k"},
        NORMALIZER + "'top_k'; write normalizers.TopK(k)",
    ),
    "sinks beside a sigmoid": (
        lambda b: {"normalizer": "sigmoid", "sinks": 0.0},
        "expected sinks beside a softmax, got them with the normaliser sigmoid, in which one more logit has no meaning; "
        "leave them out",
    ),
    "lse of a normaliser": (
        lambda b: {"normalizer": TopK(2), "return_aux": AuxRequest(lse=True)},
        "expected no wish for lse beside the normaliser top_k, got AuxRequest(lse=True); averages of a softmax alone are "
        "merged by it: leave it out",
    ),
    "a normaliser that the engine has not": (
        lambda b: {"normalizer": "sparsemax", "implementation": "blockwise"},
        "expected a problem that the blockwise engine computes exactly for implementation='blockwise', got one with the "
        "normaliser sparsemax, which it does not take; use 'auto'",
    ),
    "segments": (
        lambda b: {"mask": masks.segments(b.array(np.zeros(3, np.int32)))},
        "expected kv_ids of masks.segments to have shape (5,) or (2, 5), got (3,); give one id per key "
        "(kv_ids too where L != S)",
    ),
}

FLOAT_MASK = "; write mask=(mask != 0) if its numbers are 1 and 0, bias=mask if they are 0 and -inf or large negative ones"
INTEGER_MASK = "; write mask=(mask != 0) if 1 may attend, mask=(mask == 0) if 1 hides"
NO_BIAS = "; a bool mask goes to mask= (True = may attend), integers are cast by the caller"
NO_MASK = (
    "expected mask to be a bool array, a polyattn.masks mask or a function (b, h, q_idx, kv_idx) -> bool, "
    "got {}; make it an array of query's library"
)

# `{int32}` and the like stand for the dtype as the library writes it.
TYPES: dict[str, tuple[Callable[[Bench], dict[str, Any]], str]] = {
    "a float mask": (
        lambda b: {"mask": b.array(np.ones((3, 5)), "float32")},
        "expected a bool mask (True = may attend), got dtype {float32}" + FLOAT_MASK,
    ),
    "an integer mask": (
        lambda b: {"mask": b.array(np.ones((3, 5), np.int32))},
        "expected a bool mask (True = may attend), got dtype {int32}" + INTEGER_MASK,
    ),
    "a list": (lambda b: {"mask": [[True] * 5] * 3}, NO_MASK.format("list")),
    "a word": (lambda b: {"mask": "upper"}, NO_MASK.format("'upper'")),
    "a bool bias": (
        lambda b: {"bias": b.array(np.ones((3, 5), bool))},
        "expected a real floating bias, got {bool}" + NO_BIAS,
    ),
    "an integer bias": (
        lambda b: {"bias": b.array(np.ones((3, 5), np.int32))},
        "expected a real floating bias, got {int32}" + NO_BIAS,
    ),
    "is_causal": (
        lambda b: {"is_causal": "yes"},
        "expected is_causal to be True or False, got 'yes'; a mask goes to mask=",
    ),
    "query_offset": (
        lambda b: {"query_offset": 1.0},
        f"expected query_offset to be an integer, an integer array or 'end', got 1.0{OFFSET}",
    ),
    "a list of offsets": (
        lambda b: {"query_offset": [0, 1]},
        f"expected query_offset to be an integer, an integer array or 'end', got [0, 1]{OFFSET}",
    ),
    "float offsets": (
        lambda b: {"query_offset": b.array(np.ones(2), "float32")},
        "expected query_offset to be of an integer dtype, got {float32}; positions are whole numbers",
    ),
    "scale": (
        lambda b: {"scale": "auto"},
        "expected scale to be a number or an array of query's library, got 'auto'; make it a float, or an "
        "array of shape (Hq,)",
    ),
    "an integer scale": (
        lambda b: {"scale": b.array(np.ones(4, np.int32))},
        "expected scale of a real floating dtype, got {int32}; cast it",
    ),
    "dropout_rate": (
        lambda b: {"dropout_rate": "half", "dropout_seed": 0},
        "expected dropout_rate to be a Python number, got 'half'; pass a Python float",
    ),
    "a float seed": (
        lambda b: {"dropout_rate": 0.5, "dropout_seed": 1.5},
        ONE_SEED + "1.5; pass a Python int",
    ),
    "many seeds": (
        lambda b: {"dropout_rate": 0.5, "dropout_seed": b.array(np.ones(2, np.int32))},
        ONE_SEED + "{int32} of shape (2,); one seed serves the whole call",
    ),
    "return_aux": (
        lambda b: {"return_aux": True},
        "expected return_aux to be an AuxRequest or None, got True; write return_aux=AuxRequest(lse=True)",
    ),
    "a normaliser": (lambda b: {"normalizer": 2}, NORMALIZER + "2; leave it out for the softmax"),
    "no normaliser": (lambda b: {"normalizer": None}, NORMALIZER + "None; leave it out for the softmax"),
    "a class of normalisers": (
        lambda b: {"normalizer": Sigmoid},
        NORMALIZER + "the class Sigmoid; write Sigmoid()",
    ),
    "score_mod": (
        lambda b: {"score_mod": 3.0, "query_offset": 0},
        "expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, got float; an array of "
        "additive values goes to bias=",
    ),
    "a score_mod that compares": (
        lambda b: {"score_mod": lambda s, b, h, q, kv: s > 0, "query_offset": 0},
        "expected score_mod(score, b, h, q_idx, kv_idx) to return real floating scores, got {bool}; return an "
        "array made from score",
    ),
    "a mask_mod that counts": (
        lambda b: {"mask": lambda b, h, q, kv: q + kv, "query_offset": 0},
        "expected mask_mod(b, h, q_idx, kv_idx) to return a bool array, got {int32}; return a comparison, "
        "True = may attend",
    ),
}


def qkv(bench: Bench, *shapes: tuple[int, ...], dtype: str = "float32") -> list[Any]:
    return [bench.array(np.ones(s), dtype) for s in shapes or ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6))]


def says(bench: Bench, text: str) -> str:
    dtypes = {
        n: bench.array(np.ones(1, n), n if n == "float32" else None).dtype
        for n in ("float32", "int32", "bool")
    }
    for name, dtype in dtypes.items():
        text = text.replace("{" + name + "}", str(dtype))
    return f"polyattn.attention: {text}"


@pytest.mark.parametrize("what", SHAPES)
def test_shapes_that_do_not_fit_are_named(eager: Bench, what: str) -> None:
    shapes, text = SHAPES[what]
    with pytest.raises(ValueError) as error:
        attention(*qkv(eager, *shapes))
    assert str(error.value) == says(eager, text)


@pytest.mark.parametrize("what", VALUES)
def test_a_value_out_of_range_is_named(eager: Bench, what: str) -> None:
    options, text = VALUES[what]
    with pytest.raises(ValueError) as error:
        attention(*qkv(eager), **options(eager))
    assert str(error.value) == says(eager, text)


@pytest.mark.parametrize("what", TYPES)
def test_an_argument_of_the_wrong_type_is_named(eager: Bench, what: str) -> None:
    options, text = TYPES[what]
    with pytest.raises(TypeError) as error:
        attention(*qkv(eager), **options(eager))
    assert str(error.value) == says(eager, text)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: TopK(0), ValueError, "TopK: expected k >= 1, got 0; it is how many keys a row reads"),
        (
            lambda: TopK(2.0),
            TypeError,
            "TopK: expected k to be an integer, got 2.0; it is how many keys a row reads",
        ),
        (lambda: TopK(), TypeError, "TopK: expected k too, got nothing; write TopK(k)"),
        (
            lambda: Sigmoid(float("nan")),
            ValueError,
            "Sigmoid: expected a bias between -2**60 and 2**60, got nan; models begin with -log(S)",
        ),
        (
            lambda: Sigmoid(bias=float("inf")),
            ValueError,
            "Sigmoid: expected a bias between -2**60 and 2**60, got inf; models begin with -log(S)",
        ),
        (
            lambda: Sigmoid("learned"),
            TypeError,
            "Sigmoid: expected bias to be a Python number, got 'learned'; one for each head goes to bias= of attention",
        ),
    ],
)
def test_a_parameter_of_a_normaliser_that_is_none_is_named(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == f"polyattn.normalizers.{text}"
