"""Dialects of PyTorch and what is made of it."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS"]

_SDPA = claims(
    tested=USUAL
    | {
        "mask and causal": "kernel",
        "grouped heads": "h // G, flag",
    },
    notes={
        "mask and causal": "the flash kernel of the CPU takes both, the math kernel raises; documented as an error",
    },
)

DIALECTS = (
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
        name="torch.flex",
        what="torch.nn.attention.flex_attention.flex_attention",
        package="torch",
        version="2.13",
        signature="query: query, key: key, value: value, score_mod: score_mod = None, block_mask: block_mask = None, "
        "scale: scale = None, enable_gqa: gqa = False, return_lse: lse = False, kernel_options: free = None, *, "
        "return_aux: aux = None",
        answers=claims(
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
        name="torch.varlen",
        what="torch.nn.attention.varlen.varlen_attn",
        package="torch",
        version="2.13",
        signature="query: query, key: key, value: value, cu_seq_q: ends_q, cu_seq_k: ends_k, max_q: longest_q, "
        "max_k: longest_k, *, return_aux: aux = None, scale: scale = None, window_size: window = (-1, -1), "
        "enable_gqa: gqa = False, seqused_k: fixed = None, block_table: fixed = None, num_splits: free = None",
        with_aux="",
        answers=claims(
            read=USUAL
            | {
                "layout": "THD",
                "bool mask": "refused",
                "float mask": "refused",
                "empty bias row": "no bias",
                "bias": "none",
                "causal": "in the window",
                "mask and causal": "no flag",
                "window": "neighbours, last rows",
                "grouped heads": "h // G, flag",
                "value width": "same",
                "lse": "natural, no gradient",
                "poison": "unknown",
                "float64": "refused",
                "no keys": "unknown",
            },
            notes={
                "window": "(W, 0) is W + 1 keys; -1 is unbounded; cuDNN takes none but (-1, -1) and (-1, 0)",
                "grouped heads": "one kv head wants the flag too",
            },
        ),
        notes=("For CUDA alone; it computes with flash-attention, or cuDNN.", "lse comes as (H, T)."),
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
        returns="out, weights",
        mask_axes=("(BH)LS",),
        answers=claims(
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
        name="transformers",
        what="transformers.integrations.sdpa_attention.sdpa_attention_forward",
        package="transformers",
        version="5.23",
        signature="module: module, query: query, key: key, value: value, attention_mask: mask, "
        "dropout: dropout = 0.0, scaling: scale = None, is_causal: causal = None, position_bias: more_bias = None, "
        "cache: fixed = None",
        module="softcap: softcap = None, sliding_window: window = None, s_aux: sinks = None",
        result="BLHD",
        returns="out, None",
        answers=claims(
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
