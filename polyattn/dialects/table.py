"""The dialects: one table that translators, documentation and tests are made of."""

from __future__ import annotations

from collections.abc import Mapping

from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Claim, Dialect


def _answers(
    *base: Mapping[str, Claim],
    tested: Mapping[str, str] | None = None,
    read: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Mapping[str, Claim]:
    """Claims in the order of the questions: `tested` ones on the library itself, the others read in its source."""
    claims: dict[str, Claim] = {}
    for earlier in base:
        claims.update(earlier)
    for given, by_test in ((tested, True), (read, False)):
        for name, choice in (given or {}).items():
            claims[name] = Claim(choice, by_test, (notes or {}).get(name, ""))
    missing = set(QUESTIONS) ^ set(claims)
    assert not missing, missing
    for name, claim in claims.items():
        assert claim.choice in QUESTIONS[name].choices, (name, claim.choice)
    return {name: claims[name] for name in QUESTIONS}


_SDPA = _answers(
    tested={
        "layout": "BHLD",
        "bool mask": "attend",
        "float mask": "added",
        "empty row": "0",
        "empty bias row": "0",
        "bias": "mask",
        "causal": "first rows",
        "mask and causal": "kernel",
        "window": "in the mask",
        "scale": "given",
        "grouped heads": "h // G, flag",
        "value width": "any",
        "softcap": "none",
        "sinks": "none",
        "lse": "none",
        "poison": "leaks",
        "float64": "float64",
        "no keys": "0",
    },
    notes={
        "mask and causal": "the flash kernel of the CPU takes both, the math kernel raises; documented as an error",
    },
)

_JAX = _answers(
    tested={
        "layout": "BLHD",
        "bool mask": "attend",
        "float mask": "refused",
        "empty row": "mean",
        "empty bias row": "NaN",
        "bias": "bias",
        "causal": "first rows",
        "mask and causal": "both",
        "window": "neighbours",
        "scale": "given",
        "grouped heads": "h // G",
        "value width": "same",
        "softcap": "none",
        "sinks": "none",
        "lse": "natural, low",
        "poison": "values leak",
        "float64": "float32",
        "no keys": "0",
    },
    notes={
        "empty row": "padding counts as values too, and they get gradients",
        "window": "one integer is a window on both sides",
    },
)

_ONNX = _answers(
    tested={
        "layout": "BHLD",
        "bool mask": "attend",
        "float mask": "added",
        "empty row": "0",
        "empty bias row": "0",
        "bias": "mask",
        "causal": "first rows, last with a cache",
        "mask and causal": "both",
        "window": "in the mask",
        "scale": "given",
        "grouped heads": "h // G",
        "value width": "any",
        "softcap": "before the bias",
        "sinks": "none",
        "lse": "none",
        "poison": "leaks",
        "float64": "float64",
        "no keys": "refused",
    },
    notes={
        "softcap": "opset 23 was published with the cap after the mask, and corrected",
        "float64": "not with a scale: the attribute is a float32, and so is the root that is taken of it",
        "window": "an earlier draft of opset 25 counted the token itself",
    },
)

_ONNX_INPUTS = "Q: query, K: key, V: value, attn_mask: mask = None, past_key: past_key = None, past_value: past_value = None"
_ONNX_ATTRIBUTES = (
    "is_causal: causal = 0, kv_num_heads: kv_heads = None, q_num_heads: heads = None, "
    "qk_matmul_output_mode: free = 0, scale: scale = None, softcap: softcap = 0.0, softmax_precision: free = None"
)

_FLASH = _answers(
    read={
        "layout": "BLHD",
        "bool mask": "refused",
        "float mask": "refused",
        "empty row": "0",
        "empty bias row": "no bias",
        "bias": "none",
        "causal": "last rows",
        "mask and causal": "no mask",
        "window": "neighbours, last rows",
        "scale": "given",
        "grouped heads": "h // G",
        "value width": "same",
        "softcap": "before the bias",
        "sinks": "none",
        "lse": "natural, no gradient",
        "poison": "unknown",
        "float64": "refused",
        "no keys": "unknown",
    },
    notes={
        "causal": "since 2.1; before that first query with first key",
        "window": "(W, 0) is W + 1 keys; -1 is unbounded",
    },
)

_DIALECTS = (
    Dialect(
        name="torch.sdpa",
        what="torch.nn.functional.scaled_dot_product_attention",
        package="torch",
        version="2.13",
        signature="query: query, key: key, value: value, attn_mask: mask = None, dropout_p: dropout = 0.0, "
        "is_causal: causal = False, *, scale: scale = None, enable_gqa: gqa = False",
        answers=_SDPA,
        notes=(
            "Keys and values of different lengths are accepted, and read beyond their end.",
            "dropout_p is applied in evaluation too.",
            "A row of finfo.min in a float mask gives the mean of all values, a row of False gives 0.",
        ),
    ),
    Dialect(
        name="torch.mha",
        what="torch.nn.MultiheadAttention",
        package="torch",
        version="2.13",
        signature="query: query, key: key, value: value, key_padding_mask: padding = None, "
        "need_weights: weights = True, attn_mask: mask = None, average_attn_weights: average = True, "
        "is_causal: causal = False",
        module="num_heads: heads, batch_first: batch_first = False",
        returns="(out, weights)",
        answers=_answers(
            _SDPA,
            tested={
                "layout": "LB(HD)",
                "bool mask": "ignore",
                "empty row": "NaN",
                "empty bias row": "NaN",
                "causal": "hint",
                "mask and causal": "mask",
                "scale": "fixed",
                "grouped heads": "none",
                "value width": "same",
                "sinks": "zero",
            },
            notes={"empty row": "0 with need_weights=False, unless the fast path of no_grad is taken"},
        ),
        notes=(
            "What is translated is the attention inside, of query, key and value after their projections.",
            "add_zero_attn is a sink of logit 0; the weights have one column more then.",
        ),
    ),
    Dialect(
        name="torch.flex",
        what="torch.nn.attention.flex_attention.flex_attention",
        package="torch",
        version="2.13",
        signature="query: query, key: key, value: value, score_mod: score_mod = None, block_mask: block_mask = None, "
        "scale: scale = None, enable_gqa: gqa = False, return_lse: lse = False, kernel_options: free = None, *, "
        "return_aux: aux = None",
        answers=_answers(
            _SDPA,
            tested={
                "bias": "score_mod",
                "causal": "in the mask",
                "mask and causal": "no flag",
                "softcap": "score_mod",
                "lse": "natural",
                "poison": "values leak",
                "no keys": "refused",
            },
            read={"float mask": "refused"},
            notes={"no keys": "uncompiled"},
        ),
        notes=("score_mod comes before the mask, and may read captured arrays at [b, h, q_idx, kv_idx].",),
    ),
    Dialect(
        name="jax.nn",
        what="jax.nn.dot_product_attention",
        package="jax",
        version="0.10.2",
        signature="query: query, key: key, value: value, bias: bias = None, mask: mask = None, *, "
        "scale: scale = None, is_causal: causal = False, query_seq_lengths: query_lengths = None, "
        "key_value_seq_lengths: key_lengths = None, local_window_size: window = None, "
        "implementation: free = None, return_residual: lse = False",
        answers=_JAX,
        notes=("A -inf in the bias of a row that sees nothing makes gradients of other rows NaN.",),
    ),
    Dialect(
        name="flax.nnx",
        what="flax.nnx.dot_product_attention",
        package="flax",
        version="0.12.8",
        signature="query: query, key: key, value: value, bias: bias = None, mask: mask = None, "
        "broadcast_dropout: free = True, dropout_rng: free = None, dropout_rate: dropout = 0.0, "
        "deterministic: free = False, dtype: fixed = None, precision: free = None, module: free = None, "
        "promote_dtype: free = None, is_causal: causal = False",
        answers=_answers(
            _JAX,
            tested={
                "float mask": "as bool",
                "window": "in the mask",
                "scale": "fixed",
                "lse": "none",
            },
        ),
        notes=(
            "Delegates to jax.nn unless there is dropout or a module.",
            "Dropout drops the same pairs in every batch item and head unless broadcast_dropout=False.",
            "MultiHeadAttention(decode=True) with is_causal attends to key 0 alone after the first step.",
        ),
    ),
    Dialect(
        name="equinox",
        what="equinox.nn.MultiheadAttention",
        package="equinox",
        version="0.13.8",
        signature="query: query, key_: key, value: value, mask: mask = None, *, key: free = None, "
        "inference: free = None, deterministic: free = None, process_heads: fixed = None",
        module="num_heads: heads",
        answers=_answers(
            _JAX,
            tested={
                "layout": "B(L HD)",
                "float mask": "as bool",
                "empty bias row": "no bias",
                "bias": "none",
                "causal": "in the mask",
                "mask and causal": "no flag",
                "window": "in the mask",
                "scale": "fixed",
                "value width": "any",
                "lse": "none",
                "float64": "float64",
                "no keys": "refused",
            },
            read={"grouped heads": "none"},
        ),
        notes=(
            "Takes one item; a batch goes through jax.vmap, and here along the first axis.",
            "What is translated is the attention inside, of query, key and value after their projections.",
            "A mask has exactly the shape (L, S) or (H, L, S).",
        ),
    ),
    Dialect(
        name="keras",
        what="keras.ops.dot_product_attention",
        package="keras",
        version="3.15, on JAX",
        signature="query: query, key: key, value: value, bias: bias = None, mask: mask = None, scale: scale = None, "
        "is_causal: causal = False, flash_attention: free = None, attn_logits_soft_cap: fixed = None",
        answers=_answers(
            _JAX,
            tested={
                "float mask": "as bool",
                "window": "in the mask",
                "lse": "none",
            },
            notes={"float mask": "jax.nn refuses it, which is logged; then a path of its own is taken"},
        ),
        notes=(
            "Each backend of Keras answers for itself: on PyTorch values of another width are taken, bias and mask "
            "together are an error, float64 stays float64; on NumPy there are no grouped heads.",
            "attn_logits_soft_cap is for TPU: documented as x / (1 + |x| / cap), computed as cap tanh(x / cap).",
            "Layers take (query, value, key); keras.layers.Attention has no scale by default.",
        ),
    ),
    Dialect(
        name="onnx.23",
        what="ONNX Attention, opset 23",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, *, {_ONNX_ATTRIBUTES}",
        answers=_ONNX,
    ),
    Dialect(
        name="onnx.24",
        what="ONNX Attention, opset 24",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, nonpad_kv_seqlen: nonpad = None, *, {_ONNX_ATTRIBUTES}",
        answers=_ONNX,
    ),
    Dialect(
        name="onnx.25",
        what="ONNX Attention, opset 25",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, nonpad_kv_seqlen: nonpad = None, *, {_ONNX_ATTRIBUTES}, "
        "left_window_size: left = -1, right_window_size: right = -1",
        answers=_answers(_ONNX, tested={"window": "neighbours"}),
    ),
    Dialect(
        name="flash_attn.2",
        what="flash_attn.flash_attn_func",
        package="flash_attn",
        version="2",
        signature="q: query, k: key, v: value, dropout_p: dropout = 0.0, softmax_scale: scale = None, "
        "causal: causal = False, window_size: window = (-1, -1), softcap: softcap = 0.0, "
        "alibi_slopes: slopes = None, deterministic: free = False, return_attn_probs: lse = False",
        answers=_FLASH,
        notes=("ALiBi counts distances from the last query and key: |i + S - L - j|.",),
    ),
    Dialect(
        name="flash_attn.3",
        what="flash_attn_interface.flash_attn_func",
        package="flash_attn_interface",
        version="3",
        signature="q: query, k: key, v: value, softmax_scale: scale = None, causal: causal = False, qv: fixed = None, "
        "q_descale: fixed = None, k_descale: fixed = None, v_descale: fixed = None, "
        "window_size: window = (-1, -1), attention_chunk: fixed = 0, softcap: softcap = 0.0, num_splits: free = 1, "
        "pack_gqa: free = None, deterministic: free = False, sm_margin: free = 0, return_attn_probs: lse = False",
        answers=_answers(_FLASH, read={"value width": "some"}),
        notes=("With qv the default scale is 1/sqrt(D + E).",),
    ),
    Dialect(
        name="flash_attn.4",
        what="flash_attn.cute.flash_attn_func",
        package="flash_attn.cute",
        version="4",
        signature="q: query, k: key, v: value, softmax_scale: scale = None, causal: causal = False, "
        "window_size: window = (None, None), learnable_sink: sinks = None, softcap: softcap = 0.0, "
        "num_splits: free = 1, pack_gqa: free = None, deterministic: free = False, mask_mod: fixed = None, "
        "score_mod: fixed = None, aux_tensors: fixed = None, return_lse: lse = False",
        answers=_answers(
            _FLASH,
            read={"value width": "some", "sinks": "given"},
            notes={"window": "(W, 0) is W + 1 keys; None is unbounded"},
        ),
        notes=("mask_mod and score_mod are functions of CuTe, not of arrays.",),
    ),
    Dialect(
        name="xformers",
        what="xformers.ops.memory_efficient_attention",
        package="xformers",
        version="",
        signature="query: query, key: key, value: value, attn_bias: mask = None, p: dropout = 0.0, "
        "scale: scale = None, *, op: free = None",
        answers=_answers(
            _FLASH,
            read={
                "float mask": "added",
                "empty row": "unknown",
                "empty bias row": "unknown",
                "bias": "mask",
                "causal": "in the mask",
                "mask and causal": "no flag",
                "window": "with itself",
                "grouped heads": "none",
                "value width": "any",
                "softcap": "none",
                "lse": "none",
                "float64": "unknown",
            },
            notes={
                "causal": "LowerTriangularMask aligns the first rows, the ...FromBottomRight ones the last",
                "window": "of the ...LocalAttention masks",
                "grouped heads": "arrays of rank 5 have them",
            },
        ),
        notes=("A mask is an object or a float tensor; objects with materialize(shape) are translated.",),
    ),
    Dialect(
        name="x_transformers",
        what="x_transformers.attend.Attend",
        package="x_transformers",
        version="2.31",
        signature="q: query, k: key, v: value, mask: mask = None, attn_bias: bias = None, prev_attn: fixed = None",
        module="causal: causal = False, scale: scale = None, softclamp_logits: clamps = False, "
        "logit_softclamp_value: softcap = 50.0, add_zero_kv: zero_sink = False, dropout: dropout = 0.0, "
        "flash: free = False",
        returns="(out, None)",
        answers=_answers(
            _SDPA,
            read={
                "layout": "BHLD",
                "bool mask": "attend",
                "float mask": "refused",
                "empty row": "0, causal mean",
                "empty bias row": "NaN",
                "bias": "bias",
                "causal": "last rows",
                "mask and causal": "both",
                "window": "in the mask",
                "scale": "given",
                "grouped heads": "h % Hkv",
                "value width": "any",
                "softcap": "after the bias",
                "sinks": "zero",
                "lse": "none",
                "poison": "values leak",
                "float64": "float32",
                "no keys": "unknown",
            },
            notes={"grouped heads": "checkpoints need their query heads permuted"},
        ),
        notes=("A mask of shape (B, S) hides keys; add_zero_kv is a key before all others.",),
    ),
    Dialect(
        name="transformers",
        what="transformers.integrations.sdpa_attention.sdpa_attention_forward",
        package="transformers",
        version="5.23",
        signature="module: module, query: query, key: key, value: value, attention_mask: mask, "
        "dropout: dropout = 0.0, scaling: scale = None, is_causal: causal = None, position_bias: more_bias = None, "
        "cache: fixed = None",
        module="softcap: softcap = None, sliding_window: window = None, s_aux: sinks = None",
        result="BLHD",
        returns="(out, None)",
        answers=_answers(
            _SDPA,
            tested={
                "causal": "first rows unless alone",
                "mask and causal": "mask",
                "window": "ignored",
                "grouped heads": "h // G, module",
                "sinks": "ignored",
            },
            notes={
                "bool mask": "the eager functions of models add it as 0 and 1",
                "window": "sliding_window=W counts the token itself where masks are made of it",
            },
        ),
        notes=(
            "The result comes as (B, L, H, E), query as (B, H, L, D).",
            "is_causal=None is the module's, and True if that has none: without a mask an encoder becomes causal.",
            "softcap, sliding_window and s_aux are arguments of every attention function; each takes what it knows.",
        ),
    ),
)

#: Every dialect by name.
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in _DIALECTS}


def dialect(name: str) -> Dialect:
    """The dialect of that name, or a ValueError that lists them."""
    if name not in DIALECTS:
        raise ValueError(
            f"polyattn.dialects: expected one of {', '.join(DIALECTS)}, got {name!r}; name one of these"
        )
    return DIALECTS[name]
