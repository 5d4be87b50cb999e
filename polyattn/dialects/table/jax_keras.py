"""Dialects of JAX, and Keras on it."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS"]

_JAX = claims(
    tested=USUAL
    | {
        "layout": "BLHD",
        "float mask": "refused",
        "empty row": "mean",
        "empty bias row": "NaN",
        "bias": "bias",
        "window": "neighbours",
        "value width": "same",
        "lse": "natural, low",
        "poison": "values leak",
        "float64": "float32",
    },
    notes={
        "empty row": "padding counts as values too, and they get gradients",
        "window": "one integer is a window on both sides",
    },
)

DIALECTS = (
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
        name="tokamax",
        what="tokamax.dot_product_attention",
        package="tokamax",
        version="0.0.12, XLA on a CPU",
        signature="query: query, key: key, value: value, bias: bias = None, mask: mask = None, *, "
        "scale: scale = None, is_causal: causal = False, query_seq_lengths: query_lengths = None, "
        "key_value_seq_lengths: key_lengths = None, local_window_size: window = None, "
        "logits_soft_cap: softcap = None, precision: free = None, implementation: free = None, q_sharding: free = None",
        answers=claims(
            _JAX,
            tested={
                "float mask": "as bool",
                "empty row": "mean",
                "value width": "any",
                "softcap": "after the bias",
                "lse": "none",
                "float64": "float64",
                "no keys": "refused",
            },
            read={"window": "neighbours"},
            notes={"window": "an error unless L = S"},
        ),
        notes=("Takes more batch axes than one; other implementations than XLA may refuse what it takes.",),
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
        answers=claims(
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
        mask_axes=("(BH)LS", "BLS"),  # of one item, or of a batch
        answers=claims(
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
        answers=claims(
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
)
