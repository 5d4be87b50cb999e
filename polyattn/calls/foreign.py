"""What other libraries call the arguments of attention and of its layers, and what is written here instead.

The tests hold this against the table of `polyattn.dialects`, which has the signatures: every parameter that a dialect
has and attention has not is answered here, and names the dialects that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

__all__ = ["ANSWERS", "LAYERS", "SETTINGS", "Answer", "Words"]


class Answer(NamedTuple):
    """The answer to one word of others."""

    here: str  # what is expected instead
    line: str  # what to write
    needs: tuple[str, ...] = ()  # arguments without which the answer is none
    dialects: tuple[
        str, ...
    ] = ()  # those of `polyattn.dialects` whose word it is; the first one's translator is named
    others: str = ""  # who else says so

    def fits(self, names: Sequence[str]) -> bool:
        """Whether a function with arguments of these names can be told so."""
        return all(name in names for name in self.needs)

    @property
    def said(self) -> str:
        """Who says so, and who takes such a call as it is."""
        speakers = [*self.dialects, *([self.others] if self.others else [])]
        by = f"{', '.join(speakers[:-1])} and {speakers[-1]}" if len(speakers) > 1 else speakers[0]
        has = "have" if len(speakers) > 1 or self.others.endswith("s") or " and " in self.others else "has"
        if not self.dialects:
            return f"as {by} {has} it"
        takes = f"polyattn.dialects.DIALECTS[{self.dialects[0]!r}].attention takes such a call as it is"
        return f"as {by} {has} it ({takes})"


Words = Mapping[str, tuple[Answer, ...]]
_FLASH = ("flash_attn.2", "flash_attn.3", "flash_attn.4")
_ONNX = ("onnx.23", "onnx.24", "onnx.25")


def _sayer(found: dict[str, list[Answer]]) -> Callable[..., None]:
    def say(
        names: str, here: str, line: str, needs: str = "", dialects: Sequence[str] = (), others: str = ""
    ) -> None:
        for name in names.split():
            answer = Answer(here, line.format(name), tuple(needs.split()), tuple(dialects), others)
            found.setdefault(name, []).append(answer)

    return say


def _attention() -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    say = _sayer(found)
    none = "leave {} out"
    # operands
    for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        say(name, f"{ours}=", f"write {ours}={name}", ours, (*_FLASH, "x_transformers"))
        say(name.upper(), f"{ours}=", f"write {ours}={name.upper()}", ours, _ONNX)
    say("key_", "key=", "write key={}", "key", ["equinox"])
    say(
        "past_key past_value",
        "key and value with the earlier ones in front",
        "write attention(query, concat([past_key, key]), concat([past_value, value]), query_offset=past_key.shape[-2], ...), or keep a polyattn.caches.KVCache",
        "query key value",
        _ONNX,
    )
    # what is hidden
    say(
        "attn_mask",
        "mask= or bias=",
        "write mask={0} where it is bool (mask=~{0} from torch.nn.MultiheadAttention, where True hides), bias={0} where its numbers are added",
        "mask bias",
        ["torch.sdpa", "torch.mha", *_ONNX],
    )
    say(
        "attention_mask",
        "mask= or bias=",
        "write mask={0} where it is bool, bias={0} where its numbers are added, mask={0}[:, None, None, :] != 0 for one of shape (B, S) of 0 and 1",
        "mask bias",
        ["transformers"],
        "Keras's layers",
    )
    say("attn_bias", "bias=", "write bias={}", "bias", ["xformers", "x_transformers"])
    say("position_bias", "bias=", "write bias={}", "bias", ["transformers"])
    say("attention_bias ab", "bias=", "write bias={}", "bias", (), "others")
    say(
        "key_padding_mask",
        "mask=, in which True may attend",
        "write mask=~{}[:, None, None, :], for True hides there",
        "mask",
        ["torch.mha"],
    )
    say(
        "padding_mask src_key_padding_mask tgt_key_padding_mask memory_key_padding_mask",
        "mask=, in which True may attend",
        "write mask=~{}[:, None, None, :] where True hides there, as in torch.nn.Transformer",
        "mask",
        (),
        "torch.nn.Transformer",
    )
    say(
        "src_mask tgt_mask memory_mask",
        "mask=, in which True may attend",
        "write mask=~{}, for True hides there",
        "mask",
        (),
        "torch.nn.Transformer",
    )
    say(
        "key_mask kv_mask q_mask query_mask value_mask",
        "mask=, which broadcasts to (..., Hq, L, S)",
        "write mask={}[:, None, None, :] for keys, [:, None, :, None] for queries",
        "mask",
        (),
        "Keras's layers",
    )
    say(
        "block_mask",
        "mask=",
        "write mask={}.mask_mod, or polyattn_torch.flex.from_flex(...) for another library",
        "mask",
        ["torch.flex"],
    )
    say(
        "mask_mod",
        "mask=",
        "write mask={}, the same function (b, h, q_idx, kv_idx) -> bool",
        "mask",
        ["flash_attn.4"],
    )
    say(
        "causal",
        "is_causal=",
        "write is_causal={}, and query_offset='end' where L != S, for there the last query stands at the last key",
        "is_causal",
        [*_FLASH, "x_transformers"],
    )
    say(
        "use_causal_mask",
        "is_causal=",
        "write is_causal={}, and query_offset=0 where L != S",
        "is_causal",
        (),
        "Keras's layers",
    )
    say(
        "window_size",
        "mask=",
        "write mask=masks.window(left, right), with None for -1, and query_offset='end' where L != S",
        "mask",
        _FLASH,
    )
    say(
        "local_window_size",
        "mask=",
        "write mask=masks.window(left, right), an integer n of jax.nn being (n, n)",
        "mask",
        ["jax.nn"],
    )
    say(
        "left_window_size right_window_size",
        "mask=",
        "write mask=masks.window(left_window_size, right_window_size), with None for -1",
        "mask",
        ["onnx.25"],
    )
    say(
        "sliding_window",
        "mask=",
        "write mask=masks.sliding_window({}), which counts the token itself as transformers does",
        "mask",
        ["transformers"],
    )
    say("attention_chunk", "mask=", "write mask=masks.chunked({})", "mask", ["flash_attn.3"])
    say("query_seq_lengths", "mask=", "write mask=masks.query_lengths({})", "mask", ["jax.nn"])
    say("key_value_seq_lengths", "mask=", "write mask=masks.key_lengths({})", "mask", ["jax.nn"])
    say(
        "nonpad_kv_seqlen",
        "mask=",
        "write mask=masks.key_lengths({0}), and query_offset={0} - L where it is causal",
        "mask",
        _ONNX[1:],
    )
    say(
        "cache_seqlens seqused_k kv_lengths",
        "mask=",
        "write mask=masks.key_lengths({})",
        "mask",
        (),
        "flash_attn_with_kvcache",
    )
    say(
        "cu_seqlens_q cu_seqlens_k cu_seqlens max_seqlen_q max_seqlen_k",
        "mask=masks.segments(...)",
        "write mask=masks.segments(ids) with one id per token, np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(cu_seqlens))",
        "mask",
        (),
        "flash_attn_varlen_func",
    )
    say(
        "segment_ids q_segment_ids kv_segment_ids",
        "mask=",
        "write mask=masks.segments({})",
        "mask",
        (),
        "jax.experimental.pallas",
    )
    # scores
    say("softmax_scale", "scale=", "write scale={}", "scale", _FLASH)
    say("scaling", "scale=", "write scale={}", "scale", ["transformers"])
    say("sm_scale scale_factor", "scale=", "write scale={}", "scale", (), "jax.experimental.pallas")
    say(
        "temperature",
        "scale=",
        "write scale=1 / (temperature * math.sqrt(query.shape[-1]))",
        "scale",
        (),
        "others",
    )
    say(
        "softcap",
        "score_mod=",
        "write score_mod=mods.softcap({}), which acts before the bias",
        "score_mod",
        ["flash_attn.2", "flash_attn.3", "flash_attn.4", *_ONNX, "transformers"],
    )
    say("attn_logits_soft_cap", "score_mod=", "write score_mod=mods.softcap({})", "score_mod", ["keras"])
    say(
        "logits_soft_cap logit_cap attn_logit_softcapping logit_softcapping",
        "score_mod=",
        "write score_mod=mods.softcap({})",
        "score_mod",
        (),
        "jax.experimental.pallas",
    )
    say(
        "softclamp_logits logit_softclamp_value",
        "score_mod=",
        "write score_mod=mods.softcap(logit_softclamp_value), which acts before the bias, there after it",
        "score_mod",
        ["x_transformers"],
    )
    say(
        "alibi_slopes",
        "score_mod=",
        "write score_mod=mods.alibi({}), and query_offset='end' where L != S",
        "score_mod",
        ["flash_attn.2"],
    )
    say("learnable_sink", "sinks=", "write sinks={}", "sinks", ["flash_attn.4"])
    say("s_aux", "sinks=", "write sinks={}", "sinks", ["transformers"])
    say("add_zero_kv", "sinks=", "write sinks=0.0", "sinks", ["x_transformers"])
    say("add_zero_attn", "sinks=", "write sinks=0.0", "sinks", (), "torch.nn.MultiheadAttention")
    say(
        "prev_attn",
        "bias=",
        "write bias={}, where scores of the layer before are added",
        "bias",
        ["x_transformers"],
    )
    say(
        "aux_tensors",
        "functions that close over their arrays",
        "write score_mod=lambda score, b, h, q, kv: score + aux_tensors[0][h]",
        "score_mod",
        ["flash_attn.4"],
    )
    # dropout
    rate = "dropout_rate= and dropout_seed="
    say(
        "dropout_p",
        rate,
        "write dropout_rate={}, dropout_seed=an integer that changes from step to step",
        "dropout_rate",
        ["torch.sdpa", "flash_attn.2"],
    )
    say(
        "dropout",
        rate,
        "write dropout_rate={}, dropout_seed=an integer that changes from step to step",
        "dropout_rate",
        ["transformers", "x_transformers"],
    )
    say(
        "p",
        rate,
        "write dropout_rate={}, dropout_seed=an integer that changes from step to step",
        "dropout_rate",
        ["xformers"],
    )
    say(
        "dropout_rng",
        "dropout_seed=, an integer",
        "write dropout_seed=jax.random.bits({})",
        "dropout_seed",
        ["flax.nnx"],
    )
    say(
        "rng rngs seed generator prng_key dropout_key",
        "dropout_seed=, an integer",
        "write dropout_seed=jax.random.bits({0}), or int(torch.randint(2**31, (), generator={0}))",
        "dropout_seed",
        (),
        "others",
    )
    say(
        "deterministic",
        "a dropout_rate of 0.0, or no dropout_seed, where nothing is to be dropped",
        none,
        "dropout_seed",
        ["flax.nnx", "equinox", "flash_attn.2", "flash_attn.3", "flash_attn.4"],
    )
    say(
        "inference",
        "a dropout_rate of 0.0, or no dropout_seed, where nothing is to be dropped",
        none,
        "dropout_seed",
        ["equinox"],
    )
    say(
        "training train",
        "a dropout_rate of 0.0, or no dropout_seed, where nothing is to be dropped",
        none,
        "dropout_seed",
        (),
        "Keras's layers",
    )
    say("broadcast_dropout", "weights that are dropped one by one", none, "dropout_rate", ["flax.nnx"])
    # heads and layout
    flag = "no flag: grouped heads need none"
    say("enable_gqa", flag, none, "query", ["torch.sdpa", "torch.flex"])
    say("pack_gqa", flag, none, "query", ["flash_attn.3", "flash_attn.4"])
    heads = "heads on an axis of their own"
    say(
        "num_heads",
        heads,
        "write query=query.reshape(B, L, {}, D), layout='BLHD', and key and value likewise",
        "layout",
        ["torch.mha", "equinox"],
    )
    say(
        "q_num_heads kv_num_heads",
        heads,
        "write query=query.reshape(B, L, q_num_heads, D), layout='BLHD', and key and value likewise with kv_num_heads",
        "layout",
        _ONNX,
    )
    say(
        "batch_first",
        "layout=",
        "write layout='BLHD' for (B, L, H, D), 'BHLD' for (B, H, L, D)",
        "layout",
        ["torch.mha"],
    )
    say(
        "tensor_layout qkv_format input_layout",
        "layout=",
        "write layout='BLHD' for (B, L, H, D), 'BHLD' for (B, H, L, D)",
        "layout",
        (),
        "others",
    )
    # results
    lse = "write out, aux = attention(..., return_aux=AuxRequest(lse=True))"
    say("return_lse", "return_aux=", lse, "return_aux", ["torch.flex", "flash_attn.4"])
    say("return_residual", "return_aux=", lse, "return_aux", ["jax.nn"])
    say("return_attn_probs", "return_aux=", lse, "return_aux", ["flash_attn.2", "flash_attn.3"])
    weights = "write {}out, aux = attention(..., return_aux=AuxRequest(weights=True))"
    say("need_weights", "return_aux=", weights.format(""), "return_aux query", ["torch.mha"])
    say(
        "average_attn_weights",
        "return_aux=, whose weights are those of every head",
        weights.format(""),
        "return_aux query",
        ["torch.mha"],
    )
    say(
        "output_attentions return_attention_scores return_weights return_attn_weights",
        "return_aux=",
        weights.format(""),
        "return_aux query",
        (),
        "transformers and Keras's layers",
    )
    say(
        "qk_matmul_output_mode",
        "return_aux=",
        "write out, aux = attention(..., return_aux=AuxRequest(scores=True))",
        "return_aux query",
        _ONNX,
    )
    # how it is run
    say(
        "kernel_options",
        "implementation=",
        "write implementation=Blockwise(rows=128, keys=128), or leave {} out",
        "implementation",
        ["torch.flex"],
    )
    say(
        "flash_attention",
        "implementation=",
        "write implementation='native', or leave {} out",
        "implementation",
        ["keras"],
    )
    say(
        "flash",
        "implementation=",
        "write implementation='native', or leave {} out",
        "implementation",
        ["x_transformers"],
    )
    say(
        "backend attn_implementation impl",
        "implementation=",
        "write implementation='native', or leave {} out",
        "implementation",
        (),
        "others",
    )
    say("op", "implementation=", "leave {} out", "implementation", ["xformers"])
    say("num_splits", "implementation=", none, "implementation", ["flash_attn.3", "flash_attn.4"])
    say("sm_margin", "implementation=", none, "implementation", ["flash_attn.3"])
    say(
        "block_size block_sizes block_q block_k",
        "implementation=",
        "write implementation=Blockwise(rows=..., keys=...)",
        "implementation",
        (),
        "jax.experimental.pallas",
    )
    # numbers
    wide = "scores and sums carried in float32 or wider, whatever the dtype of query"
    say("softmax_precision", wide, none, "query", _ONNX)
    say("precision promote_dtype", wide, none, "query", ["flax.nnx"])
    say(
        "dtype",
        "arrays in the dtype of the result",
        "write query.astype(dtype), key.astype(dtype) and value.astype(dtype)",
        "query",
        ["flax.nnx"],
    )
    say("attention_dtype softmax_dtype", wide, none, "query", (), "others")
    say(
        "q_descale k_descale v_descale",
        "arrays of numbers that mean themselves",
        "multiply by {} first",
        "query",
        ["flash_attn.3"],
    )
    say(
        "qv",
        "one product of query and key",
        "write query=concat([query, qv], -1), key=concat([key, value], -1)",
        "query",
        ["flash_attn.3"],
    )
    # what belongs to modules
    say("module", "arrays alone", none, "query", ["transformers", "flax.nnx"])
    say(
        "cache",
        "key and value of a cache",
        "write attention(query, cache.key, cache.value, mask=cache.mask, query_offset=before)",
        "key value",
        ["transformers"],
    )
    say(
        "process_heads",
        "heads already turned",
        "write query=polyattn.rotary.Rotary()(query, positions), and key likewise",
        "query",
        ["equinox"],
    )
    return found


#: What other libraries call the arguments of attention.
ANSWERS: Words = {name: tuple(answers) for name, answers in _attention().items()}


def _layers() -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    say = _sayer(found)
    layer = "params"
    say(
        "need_weights average_attn_weights return_attention_scores output_attentions sow_weights",
        "layer.run, which gives more than the array",
        "write out, cache, aux = layer.run(params, x, return_aux=AuxRequest(weights=True))",
        layer,
        (),
        "torch.nn, Keras and Flax",
    )
    say(
        "deterministic inference training train",
        "a dropout_seed where weights are dropped, and none where not",
        "write dropout_seed=an integer in training, and leave {} out",
        layer,
        (),
        "Flax, Equinox and Keras",
    )
    say(
        "dropout_rng rng rngs seed",
        "dropout_seed=, an integer",
        "write dropout_seed=jax.random.bits({})",
        "params dropout_seed",
        (),
        "Flax",
    )
    say(
        "dropout_p dropout dropout_rate",
        "the rate as part of the layer",
        "write MultiHeadAttention(..., dropout_rate={}), and in the call dropout_seed=an integer",
        layer,
        (),
        "torch.nn",
    )
    say(
        "inputs_q query q inputs hidden_states src tgt",
        "x=",
        "write layer(params, {})",
        "params x",
        (),
        "other libraries",
    )
    say(
        "inputs_k inputs_v inputs_kv key value k v memory encoder_hidden_states key_value_states",
        "context=",
        "write layer(params, x, context={})",
        "params context",
        (),
        "other libraries",
    )
    say(
        "decode",
        "layer.run with a cache",
        "write out, cache, aux = layer.run(params, x, cache=layer.empty_cache(batch, capacity, like=x))",
        layer,
        (),
        "Flax",
    )
    say(
        "past_key_value past_key_values layer_past",
        "layer.run with a cache",
        "write out, cache, aux = layer.run(params, x, cache=cache)",
        layer,
        (),
        "transformers",
    )
    say(
        "position_ids",
        "query_offset=",
        "write query_offset=position_ids[:, 0]",
        "params query_offset",
        (),
        "transformers",
    )
    return found


#: And of the calls of layers.
LAYERS: Words = {**ANSWERS} | {
    name: (*answers, *ANSWERS.get(name, ())) for name, answers in _layers().items()
}


def _settings() -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    say = _sayer(found)
    mha = "num_heads"
    say(
        "dropout dropout_p attention_dropout attn_pdrop rate",
        "dropout_rate=",
        "write dropout_rate={}",
        "dropout_rate",
        (),
        "torch.nn, Keras and Equinox",
    )
    say(
        "bias use_bias",
        "qkv_bias= and out_bias=",
        "write qkv_bias={0}, out_bias={0}",
        "qkv_bias out_bias",
        (),
        "torch.nn, Keras and Flax",
    )
    say(
        "use_query_bias use_key_bias use_value_bias attention_bias",
        "qkv_bias=",
        "write qkv_bias={}",
        "qkv_bias",
        (),
        "Equinox and transformers",
    )
    say("use_output_bias", "out_bias=", "write out_bias={}", "out_bias", (), "Equinox")
    say(
        "key_dim value_dim size_per_head qk_size vo_size head_size d_k",
        "head_dim=",
        "write head_dim={}",
        "head_dim",
        (),
        "Keras and Equinox",
    )
    say(
        "d_model hidden_size hidden_dim features in_features query_size n_embd dim width model_dim embed_size",
        "embed_dim=",
        "write embed_dim={}",
        "embed_dim",
        (),
        "other libraries",
    )
    say(
        "qkv_features",
        "embed_dim= and head_dim=",
        "write head_dim={} // num_heads",
        "embed_dim head_dim",
        (),
        "Flax",
    )
    say(
        "out_features output_shape output_size",
        "an output as wide as x",
        "put a layers.Linear(embed_dim, {}) behind it",
        mha,
        (),
        "Flax, Keras and Equinox",
    )
    say(
        "heads n_heads n_head nhead nheads num_attention_heads num_query_heads",
        "num_heads=",
        "write num_heads={}",
        mha,
        (),
        "other libraries",
    )
    say(
        "num_key_value_heads n_kv_heads kv_heads n_kv_head num_groups num_query_groups",
        "num_kv_heads=",
        "write num_kv_heads={}",
        "num_kv_heads",
        (),
        "transformers and Keras",
    )
    say(
        "kdim vdim key_size value_size in_kv_features kv_dim encoder_dim cross_attention_dim",
        "context_dim=",
        "write context_dim={}",
        "context_dim",
        (),
        "torch.nn, Equinox and Flax",
    )
    say(
        "add_zero_attn add_bias_kv",
        "sinks=, a learned logit for each head",
        "write sinks=True",
        "sinks",
        (),
        "torch.nn",
    )
    say(
        "batch_first",
        "x of shape (..., L, embed_dim)",
        "leave {} out, and write x.transpose(1, 0, 2) for (L, B, E)",
        "embed_dim",
        (),
        "torch.nn",
    )
    say(
        "normalize_qk use_qk_norm",
        "qk_norm=",
        "write qk_norm=layers.RMSNorm(head_dim, epsilon=1e-6)",
        "qk_norm",
        (),
        "Flax",
    )
    say("causal", "is_causal=", "write is_causal={}", "is_causal", (), "other libraries")
    say(
        "max_position_embeddings block_size max_seq_len seq_len n_positions max_length",
        "context_length=",
        "write context_length={}",
        "context_length",
        (),
        "other libraries",
    )
    say(
        "sliding_window window_size",
        "mask=",
        "write mask=masks.sliding_window({})",
        "mask",
        (),
        "transformers",
    )
    say(
        "kernel_init kernel_initializer",
        "initializer=",
        "write initializer='glorot_uniform'",
        "initializer",
        (),
        "Flax and Keras",
    )
    say(
        "rope rotary_emb rope_theta",
        "rotary=",
        "write rotary=Rotary(base=10000.0)",
        "rotary",
        (),
        "transformers",
    )
    say(
        "attn_implementation flash_attention",
        "implementation=",
        "write implementation='auto'",
        "implementation",
        (),
        "transformers and Keras",
    )
    say(
        "eps layer_norm_eps layernorm_epsilon rms_norm_eps variance_epsilon",
        "epsilon=",
        "write epsilon={}",
        "epsilon",
        (),
        "torch.nn, Equinox and transformers",
    )
    say(
        "normalized_shape num_features shape axis hidden_size features d_model",
        "dim=",
        "write dim={}",
        "dim epsilon",
        (),
        "torch.nn, Flax and Keras",
    )
    say(
        "elementwise_affine center",
        "use_bias=",
        "write use_bias={}",
        "use_bias epsilon",
        (),
        "torch.nn and Keras",
    )
    say("num_embeddings input_dim vocab_size", "size=", "write size={}", "size dim", (), "torch.nn and Keras")
    say(
        "embedding_dim output_dim features hidden_size embedding_size",
        "dim=",
        "write dim={}",
        "size dim",
        (),
        "torch.nn, Keras and Flax",
    )
    say(
        "in_features in_size input_size",
        "in_dim=",
        "write in_dim={}",
        "in_dim",
        (),
        "torch.nn, Flax and Equinox",
    )
    say(
        "out_features out_size units features output_size",
        "out_dim=",
        "write out_dim={}",
        "out_dim",
        (),
        "torch.nn, Flax, Equinox and Keras",
    )
    say("bias", "use_bias=", "write use_bias={}", "use_bias", (), "torch.nn")
    say(
        "dim_feedforward intermediate_size intermediate_dim mlp_dim d_ff ffn_dim hidden_features width_size",
        "hidden_dim=",
        "write hidden_dim={}",
        "hidden_dim activation",
        (),
        "torch.nn, transformers and Keras",
    )
    say("hidden_act act act_fn", "activation=", "write activation={}", "activation", (), "transformers")
    say(
        "num_layers n_layer num_hidden_layers n_layers layers",
        "depth=",
        "write depth={}",
        "depth",
        (),
        "torch.nn and transformers",
    )
    say("norm ln_f", "final_norm=", "write final_norm={}", "final_norm", (), "torch.nn")
    say(
        "device dtype param_dtype",
        "params in the library, dtype and on the device of an array",
        "write layer.init(seed, like=array), and leave {} out",
        "",
        (),
        "other libraries",
    )
    say(
        "rngs key rng seed",
        "a seed where the params are made",
        "write params = layer.init(seed, like=array), and leave {} out",
        "",
        (),
        "Flax, Equinox and Keras",
    )
    say(
        "decode",
        "a cache where the layer is called",
        "write layer.run(params, x, cache=cache), and leave {} out",
        mha,
        (),
        "Flax",
    )
    say(
        "deterministic inference",
        "a dropout_seed where weights are dropped, and none where not",
        "leave {} out",
        "dropout_rate",
        (),
        "Flax and Equinox",
    )
    say(
        "theta rope_theta max_timescale rope_base",
        "base=",
        "write base={}",
        "base",
        (),
        "transformers, Equinox and MLX",
    )
    say(
        "dim rotary_dim dims rot_dim embedding_size",
        "width=",
        "write width={}",
        "width base",
        (),
        "transformers, Equinox and MLX",
    )
    say(
        "traditional is_neox_style",
        "interleaved=",
        "write interleaved=True for pairs (0, 1), (2, 3), ...",
        "interleaved",
        (),
        "MLX and others",
    )
    say(
        "tile tile_size block block_size block_q block_k",
        "rows= and keys=",
        "write Blockwise(rows=128, keys=128)",
        "rows keys",
        (),
        "other libraries",
    )
    say("name trainable", "layers without a name or a state", "leave {} out", "", (), "Keras")
    return found


#: And of the sizes and choices of which a layer is made.
SETTINGS: Words = {name: tuple(answers) for name, answers in _settings().items()}
