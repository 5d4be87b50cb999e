"""Dialects of what serves and trains large models; read, not asked."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.table.kernels import FLASH
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS"]

DIALECTS = (
    Dialect(
        name="flashinfer",
        what="flashinfer.single_prefill_with_kv_cache",
        package="flashinfer",
        version="0.7.4",
        signature="q: query, k: key, v: value, scale_q: fixed = None, scale_k: fixed = None, scale_v: fixed = None, "
        "o_dtype: fixed = None, custom_mask: mask = None, packed_custom_mask: fixed = None, causal: causal = False, "
        "kv_layout: fixed = 'NHD', pos_encoding_mode: fixed = 'NONE', use_fp16_qk_reduction: free = False, "
        "sm_scale: scale = None, window_left: left = -1, logits_soft_cap: softcap = None, rope_scale: free = None, "
        "rope_theta: free = None, backend: free = 'auto', return_lse: lse = False, kv_cache_sf: fixed = None, "
        "k_scale: fixed = None, v_scale: fixed = None",
        mask_axes=("LS",),
        answers=claims(
            FLASH,
            read={
                "layout": "LHD",
                "bool mask": "attend",
                "empty row": "unknown",
                "causal": "last rows",
                "mask and causal": "mask",
                "window": "neighbours, last rows",
                "value width": "some",
                "lse": "base 2",
            },
            notes={"window": "on the left alone; -1 is unbounded"},
        ),
        notes=(
            "Read in the docstring of the function, and in attention/variants.cuh of the package.",
            "lse comes as (L, H). merge_state and its like expect base 2 too; flash-attention's lse is natural.",
            "One request; batches are ragged or paged, by the wrappers.",
        ),
    ),
    Dialect(
        name="te",
        what="transformer_engine.pytorch.DotProductAttention",
        package="transformer_engine",
        version="2.20.2",
        signature="query_layer: query = None, key_layer: key = None, value_layer: value = None, "
        "attention_mask: mask = None, qkv_format: fixed = None, attn_mask_type: mask_word = 'causal', "
        "window_size: window = (-1, -1), bottom_right_diagonal: fixed = None, softcap: softcap = 0.0, "
        "core_attention_bias_type: bias_word = 'no_bias', core_attention_bias: bias = None, "
        "alibi_slopes: fixed = None",
        module="softmax_scale: scale = None, attention_dropout: dropout = 0.0",
        result="LB(HD)",
        answers=claims(
            FLASH,
            read={
                "layout": "LBHD",
                "bool mask": "ignore",
                "empty row": "unknown",
                "empty bias row": "unknown",
                "bias": "bias",
                "causal": "words",
                "mask and causal": "flag",
                "window": "neighbours, last rows",
                "value width": "some",
                "sinks": "apart",
                "lse": "none",
                "float64": "unknown",
            },
            notes={
                "causal": "attn_mask_type, 'causal' by default",
                "mask and causal": "the mask counts with 'arbitrary' and the padding types alone",
                "window": "with 'causal' from the first row; (-1, -1) is unbounded",
                "sinks": "softmax_type='learnable'; 'off-by-one' is one of logit 0",
            },
        ),
        notes=(
            "Read in the docstrings of the module.",
            "Padding types, cu_seqlens, ALiBi and biases before the scale are not translated.",
            "qkv_format is 'sbhd' by default; the result comes as (L, B, H E).",
        ),
    ),
    Dialect(
        name="ggml",
        what="ggml_flash_attn_ext",
        package="ggml",
        version="of ggml-python 0.0.45",
        signature="q: query, k: key, v: value, mask: mask, scale: scale, max_bias: fixed = 0.0, "
        "logit_softcap: softcap = 0.0",
        result="BLHD",
        answers=claims(
            read=USUAL
            | {
                "bool mask": "refused",
                "causal": "in the mask",
                "mask and causal": "no flag",
                "scale": "required",
                "softcap": "before the bias",
                "sinks": "apart",
                "poison": "cannot leak",
                "float64": "no float64",
                "no keys": "unknown",
            },
            notes={
                "bias": "float16; max_bias > 0 multiplies it by slopes of ALiBi",
                "sinks": "by ggml_flash_attn_ext_add_sinks, a logit per head",
            },
        ),
        notes=(
            "Read in ggml.h and ggml-cpu/ops.cpp, and once asked on a CPU, by hand.",
            "Axes are named from the last one there: ne = (D, L, H, B). The result is permuted: (E, H, L, B).",
            "ggml_soft_max_ext scales and masks scores likewise.",
        ),
    ),
)
