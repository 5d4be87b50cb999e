"""Dialects of kernels and others that were read, not asked."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS", "FLASH"]

FLASH = claims(
    read=USUAL
    | {
        "layout": "BLHD",
        "bool mask": "refused",
        "float mask": "refused",
        "empty bias row": "no bias",
        "bias": "none",
        "causal": "last rows",
        "mask and causal": "no mask",
        "window": "neighbours, last rows",
        "value width": "same",
        "softcap": "before the bias",
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

DIALECTS = (
    Dialect(
        name="flash_attn.2",
        what="flash_attn.flash_attn_func",
        package="flash_attn",
        version="2",
        signature="q: query, k: key, v: value, dropout_p: dropout = 0.0, softmax_scale: scale = None, "
        "causal: causal = False, window_size: window = (-1, -1), softcap: softcap = 0.0, "
        "alibi_slopes: slopes = None, deterministic: free = False, return_attn_probs: lse = False",
        with_lse="out, lse, None",
        answers=FLASH,
        notes=("ALiBi counts distances from the last query and key: |i + S - L - j|.",),
    ),
    Dialect(
        name="flash_attn.varlen",
        what="flash_attn.flash_attn_varlen_func",
        package="flash_attn",
        version="2",
        signature="q: query, k: key, v: value, cu_seqlens_q: ends_q, cu_seqlens_k: ends_k, max_seqlen_q: longest_q, "
        "max_seqlen_k: longest_k, dropout_p: dropout = 0.0, softmax_scale: scale = None, causal: causal = False, "
        "window_size: window = (-1, -1), softcap: softcap = 0.0, alibi_slopes: slopes = None, "
        "deterministic: free = False, return_attn_probs: lse = False, block_table: fixed = None",
        with_lse="out, lse, None",
        answers=claims(FLASH, read={"layout": "THD"}),
        notes=(
            "cu_seqlens_q and cu_seqlens_k are int32, 0 and the sums of the lengths; positions, causality, windows and "
            "ALiBi begin anew in every sequence, the last query of which stands at its last key.",
            "lse comes as (H, T).",
        ),
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
        answers=claims(FLASH, read={"value width": "some"}),
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
        answers=claims(
            FLASH,
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
        answers=claims(
            FLASH,
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
        returns="out, None",
        mask_axes=("BS",),
        answers=claims(
            read=USUAL
            | {
                "float mask": "refused",
                "empty row": "0, causal mean",
                "empty bias row": "NaN",
                "bias": "bias",
                "causal": "last rows",
                "grouped heads": "h % Hkv",
                "softcap": "after the bias",
                "sinks": "zero",
                "poison": "values leak",
                "float64": "float32",
                "no keys": "unknown",
            },
            notes={"grouped heads": "checkpoints need their query heads permuted"},
        ),
        notes=("A mask of shape (B, S) hides keys; add_zero_kv is a key before all others.",),
    ),
)
