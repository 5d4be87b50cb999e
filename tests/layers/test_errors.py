"""Every sentence with which a layer refuses: who speaks, what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import layers, masks
from polyattn.layers import MultiHeadAttention
from polyattn.rotary import Rotary
from polyattn.testing import Bench

MHA = layers.MultiHeadAttention
X = np.zeros((2, 5, 8))
WIDE = np.zeros((2, 7, 6))
ATTEND = MHA(8, 2)
NORM = layers.LayerNorm(8, epsilon=1e-5)
RELU = layers.MLP(8, 16, activation="relu")
BLOCK = layers.EncoderBlock(ATTEND, RELU, NORM, norm_first=True)
STACK = layers.Encoder(BLOCK, 2)
TABLE = layers.Embedding(4, 2)
CAUSAL = layers.CausalSelfAttention(8, 2, context_length=4)
SEQ2SEQ = layers.EncoderDecoderAttention(ATTEND, ATTEND, NORM, norm_first=True)


def init(layer: layers.Layer) -> dict[str, Any]:
    return layer.init(0, like=X)


def call(layer: Any, *inputs: Any, **options: Any) -> Callable[[], Any]:
    return lambda: layer(init(layer), *inputs, **options)


def run(layer: Any, *inputs: Any, **options: Any) -> Callable[[], Any]:
    return lambda: layer.run(init(layer), *inputs, **options)


PARAMS = init(ATTEND)
CACHE = ATTEND.empty_cache(2, 6, like=X)
MEMORY = ATTEND.remember(PARAMS, X)
WRITER = layers.Decoder(SEQ2SEQ, 2)
PLACED = layers.LanguageModel(layers.Embedding(4, 8), STACK, positions=layers.Embedding(6, 8))
TURNED = MHA(8, 2, rotary=Rotary())
ENDS = np.asarray([0, 2, 5])
ALONE = "they say where the documents of x begin, which see themselves alone"

CONFIGURATION: dict[str, tuple[Callable[[], Any], str]] = {
    "heads": (lambda: MHA(8, 3), "MultiHeadAttention: expected num_heads to divide embed_dim, got embed_dim=8 and num_heads=3; change one of them, or give head_dim"),
    "kv heads": (lambda: MHA(8, 4, num_kv_heads=3), "MultiHeadAttention: expected num_kv_heads to divide num_heads, got num_heads=4 and num_kv_heads=3; each kv head serves equally many query heads"),
    "kv heads of GQA": (lambda: layers.GroupedQueryAttention(8, 4, num_kv_heads=8), "GroupedQueryAttention: expected num_kv_heads to divide num_heads, got num_heads=4 and num_kv_heads=8; each kv head serves equally many query heads"),
    "kv heads of MQA": (lambda: layers.MultiQueryAttention(8, 2, num_kv_heads=2), "MultiQueryAttention: expected num_kv_heads=1, got 2; for more take GroupedQueryAttention"),
    "no width": (lambda: MHA(0, 1), "MultiHeadAttention: expected embed_dim to be a positive int, got 0; give a size of at least 1"),
    "a float": (lambda: MHA(8.0, 2), "MultiHeadAttention: expected embed_dim to be a positive int, got 8.0; give a size of at least 1"),  # type: ignore[arg-type]
    "a bool": (lambda: MHA(8, True), "MultiHeadAttention: expected num_heads to be a positive int, got True; give a size of at least 1"),
    "context_length": (lambda: layers.CausalSelfAttention(8, 2, context_length=0), "CausalSelfAttention: expected context_length to be a positive int, got 0; give a size of at least 1"),
    "hidden_dim": (lambda: layers.AdditiveAttention(8, 0), "AdditiveAttention: expected hidden_dim to be a positive int, got 0; give a size of at least 1"),
    "out_dim": (lambda: layers.Linear(8, 0), "Linear: expected out_dim to be a positive int, got 0; give a size of at least 1"),
    "size": (lambda: layers.Embedding(0, 8), "Embedding: expected size to be a positive int, got 0; give a size of at least 1"),
    "LayerNorm": (lambda: layers.LayerNorm(-1, epsilon=1e-5), "LayerNorm: expected dim to be a positive int, got -1; give a size of at least 1"),
    "RMSNorm": (lambda: layers.RMSNorm(2.5, epsilon=1e-5), "RMSNorm: expected dim to be a positive int, got 2.5; give a size of at least 1"),  # type: ignore[arg-type]
    "qk_norm": (lambda: MHA(8, 2, qk_norm=layers.LayerNorm(3, epsilon=1e-5)), "MultiHeadAttention: expected qk_norm of dim 4, the width of a head, or 8, that of all heads of q, got 3; make it for 4"),
    "v_norm": (lambda: MHA(8, 2, v_norm=NORM), "MultiHeadAttention: expected v_norm of dim 4, the width of a head, got 8; make it for 4"),
    "positions": (lambda: MHA(8, 2)(MHA(8, 2).init(0, like=X), X, positions=np.arange(5)), "MultiHeadAttention: expected positions in a layer with rotary and without context, got some without rotary; the mask goes by query_offset"),
    "no norm behind": (lambda: layers.EncoderBlock(MHA(8, 2), layers.MLP(8, 8, activation="relu"), None, norm_first=False), "EncoderBlock: expected a norm with norm_first=False, which normalises the sum, got None; with a branch_norm alone write norm_first=True"),
    "pattern": (lambda: layers.Encoder((), 2), "Encoder: expected a pattern of 1 to depth=2 blocks, got 0; the blocks take turns"),
    "initializer": (lambda: MHA(8, 2, initializer="he"), "MultiHeadAttention: expected an initializer among glorot_uniform, lecun_normal, torch_linear, xavier_packed (attention), or a Distribution, got 'he'; take one of these, for example layers.Normal(0.02)"),
    "initializer of an MLP": (lambda: init(layers.MLP(8, 4, activation="relu", initializer="xavier_packed")), "MLP: expected an initializer among glorot_uniform, lecun_normal, torch_linear, xavier_packed (attention), or a Distribution, got 'xavier_packed'; take one of these, for example layers.Normal(0.02)"),
    "activation": (lambda: layers.MLP(8, 4, activation="tanh"), "MLP: expected activation among relu, gelu, gelu_tanh, silu, swiglu, geglu, geglu_tanh, clipped_swiglu, got 'tanh'; take the one that the model was trained with"),
    "score": (lambda: layers.LuongAttention(8, score="add"), "LuongAttention: expected score 'dot', 'general' or 'concat', got 'add'; take one of these"),
    "dot of two widths": (lambda: layers.LuongAttention(8, score="dot", context_dim=6), "LuongAttention: expected equal widths for score='dot', got embed_dim=8 and context_dim=6; take score='general'"),
    "concat without hidden_dim": (lambda: layers.LuongAttention(8, score="concat"), "LuongAttention: expected hidden_dim with score='concat' and only there, got score='concat' and hidden_dim=None; it is the width of the layer inside 'concat'"),
    "dot with hidden_dim": (lambda: layers.LuongAttention(8, score="dot", hidden_dim=3), "LuongAttention: expected hidden_dim with score='concat' and only there, got score='dot' and hidden_dim=3; it is the width of the layer inside 'concat'"),
    "preset": (lambda: layers.EncoderBlock.preset("mlx", 8, 2, 4), "EncoderBlock.preset: expected a preset among torch, flax, keras, got 'mlx'; take one of these, or compose the block of its parts"),
    "changes": (lambda: layers.EncoderBlock.preset("torch", 8, 2, 4, eps=1), "EncoderBlock.preset: expected changes of epsilon, activation, norm_first, dropout_rate, attention_initializer, mlp_initializer, got eps; compose the block of its parts for anything else"),
    "preset of a decoder": (lambda: layers.DecoderBlock.preset("mlx", 8, 2, 4), "DecoderBlock.preset: expected a preset among torch, flax, keras, got 'mlx'; take one of these, or compose the block of its parts"),
    "depth": (lambda: layers.Encoder(BLOCK, 0), "Encoder: expected depth to be a positive int, got 0; give a size of at least 1"),
    "seed": (lambda: ATTEND.init(-1, like=X), "MultiHeadAttention.init: expected 0 <= seed < 2**64, got -1; reduce it modulo 2**64"),
    "seed of 65 bits": (lambda: ATTEND.init(2**64, like=X), "MultiHeadAttention.init: expected 0 <= seed < 2**64, got 18446744073709551616; reduce it modulo 2**64"),
}  # fmt: skip

DROPPING: dict[str, Callable[[float], Any]] = {
    "MultiHeadAttention": lambda rate: MHA(8, 2, dropout_rate=rate),
    "ScaledDotProductAttention": lambda rate: layers.ScaledDotProductAttention(dropout_rate=rate),
    "AdditiveAttention": lambda rate: layers.AdditiveAttention(8, 4, dropout_rate=rate),
    "LuongAttention": lambda rate: layers.LuongAttention(8, score="dot", dropout_rate=rate),
    "MLP": lambda rate: layers.MLP(8, 4, activation="relu", dropout_rate=rate),
    "EncoderBlock": lambda rate: layers.EncoderBlock(ATTEND, RELU, NORM, norm_first=True, dropout_rate=rate),
    "EncoderDecoderAttention": lambda rate: layers.EncoderDecoderAttention(
        ATTEND, ATTEND, NORM, norm_first=True, dropout_rate=rate
    ),
}

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "x of another width": (call(NORM, WIDE), "LayerNorm: expected x of shape (..., length, 8), got (2, 7, 6); the last axis is the width that the layer was made for"),
    "x of rank 1": (call(ATTEND, X[0, 0]), "MultiHeadAttention: expected x of shape (..., length, 8), got (8,); the last axis is the width that the layer was made for"),
    "context of another width": (call(ATTEND, X, WIDE), "MultiHeadAttention: expected context of shape (..., length, 8), got (2, 7, 6); context_dim declares its width"),
    "additive context": (call(layers.AdditiveAttention(8, 4), X, WIDE), "AdditiveAttention: expected context of shape (..., length, 8), got (2, 7, 6); context_dim declares its width"),
    "context of another batch": (call(ATTEND, X, np.zeros((3, 7, 8))), "MultiHeadAttention: expected leading axes that broadcast against each other, got query (2, 2, 5, 4), key (3, 2, 7, 4), value (3, 2, 7, 4) in layout BHLD; give each axis one size, or 1"),
    "no context": (call(layers.MultiHeadCrossAttention(8, 2), X), "MultiHeadCrossAttention: expected a context, got None; for self-attention take MultiHeadAttention"),
    "no context of one head": (call(layers.CrossAttention(8, head_dim=4), X), "CrossAttention: expected a context, got None; for self-attention take MultiHeadAttention"),
    "no source": (call(SEQ2SEQ, X, None), "EncoderDecoderAttention: expected a context, got None; without one take EncoderBlock"),
    "too many tokens": (call(CAUSAL, X), "CausalSelfAttention: expected at most context_length=4 tokens, got 5; cut the input, or make the layer for more"),
    "too many tokens with a cache": (run(CAUSAL, X, cache=CACHE), "CausalSelfAttention: expected at most context_length=4 tokens, got 5; cut the input, or make the layer for more"),
    "too many tokens, counted by an array": (run(CAUSAL, X, cache=CACHE._replace(length=np.asarray(0))), "CausalSelfAttention: expected at most context_length=4 tokens, got 5; cut the input, or make the layer for more"),
    "causal with context": (call(CAUSAL, X, X), "CausalSelfAttention: expected self-attention that is causal, got a context; take MultiHeadAttention"),
    "causal without": (call(CAUSAL, X, is_causal=False), "CausalSelfAttention: expected self-attention that is causal, got is_causal=False; take MultiHeadAttention"),
    "a mask of another shape": (call(ATTEND, X, mask=np.ones((5, 6), bool)), "MultiHeadAttention: expected a mask that broadcasts to the scores (..., Hq, L, S) = (2, 2, 5, 5), got shape (5, 6); write a key padding mask of shape (B, S) as mask[:, None, None, :], an (L, S) one as mask[None, None]"),
    "an additive mask of another shape": (call(layers.AdditiveAttention(8, 4), X, mask=np.ones((5, 6), bool)), "AdditiveAttention: expected a mask that broadcasts to the scores (..., Hq, L, S) = (2, 1, 5, 5), got shape (5, 6); write a key padding mask of shape (B, S) as mask[:, None, None, :], an (L, S) one as mask[None, None]"),
    "positions in doubt": (call(ATTEND, X, np.zeros((2, 7, 8)), is_causal=True), "MultiHeadAttention: expected query_offset, because the mask or score_mod compares positions and L = 5 differs from S = 7; got None, which is ambiguous: query_offset=0 aligns the first rows (PyTorch, JAX, Keras), query_offset='end' the last (FlashAttention, MLX, decoding with a cache)"),
    "cache and context": (run(ATTEND, X, X, cache=CACHE), "MultiHeadAttention: expected neither context nor query_offset with a cache, got context; a cache holds the earlier tokens of x, and x continues them"),
    "cache and query_offset": (run(ATTEND, X, cache=CACHE, query_offset=1), "MultiHeadAttention: expected neither context nor query_offset with a cache, got query_offset; a cache holds the earlier tokens of x, and x continues them"),
    "packed documents and context": (call(ATTEND, X, X, cu_seqlens=ENDS), f"MultiHeadAttention: expected neither context nor query_offset nor cache with cu_seqlens, got context; {ALONE}"),
    "packed documents and query_offset": (call(ATTEND, X, query_offset=1, cu_seqlens=ENDS), f"MultiHeadAttention: expected neither context nor query_offset nor cache with cu_seqlens, got query_offset; {ALONE}"),
    "packed documents and cache": (run(ATTEND, X, cache=CACHE, cu_seqlens=ENDS), f"MultiHeadAttention: expected neither context nor query_offset nor cache with cu_seqlens, got cache; {ALONE}"),
    "packed documents that end early": (call(ATTEND, X, cu_seqlens=ENDS[:2]), "MultiHeadAttention: expected cu_seqlens_q to go from 0 to L = 5 and never to fall, got [0, 2]; it is 0 and then the sums of the lengths"),
    "positions of a context": (call(TURNED, X, X, positions=np.arange(5)), "MultiHeadAttention: expected positions in a layer with rotary and without context, got some beside a context; the mask goes by query_offset"),
    "caches of a stack": (run(STACK, X, cache=(CACHE,)), "Encoder: expected a cache for each of the 2 blocks, got 1; make them with empty_cache"),
    "memories of a stack": (call(WRITER, X, (MEMORY,)), "Decoder: expected a memory for each of the 2 blocks, got 1; make them with remember"),
    "a memory of another width": (lambda: ATTEND.remember(PARAMS, WIDE), "MultiHeadAttention: expected context of shape (..., length, 8), got (2, 7, 6); the last axis is the width that the layer was made for"),
    "a memory of another batch": (call(ATTEND, np.zeros((3, 5, 8)), MEMORY), "MultiHeadAttention: expected leading axes that broadcast against each other, got query (3, 2, 5, 4), key (2, 2, 5, 4), value (2, 2, 5, 4) in layout BHLD; give each axis one size, or 1"),
    "a memory for causal attention": (call(CAUSAL, X, MEMORY), "CausalSelfAttention: expected self-attention that is causal, got a context; take MultiHeadAttention"),
    "positions of packed documents": (call(PLACED, np.asarray([1, 2, 3]), cu_seqlens=ENDS), "LanguageModel: expected one text with a table of positions, got cu_seqlens; pad the documents instead"),
    "a token beyond the positions": (call(PLACED, np.zeros(7, int)), "Embedding: expected tokens from 0 to 5, got some from 0 to 6; the table has no such rows"),
    "params that miss one": (lambda: NORM({"bias": X}, X), "LayerNorm: expected params with the names ['bias', 'scale'], got dict without ['scale'] and with unexpected []; make them with layer.init(seed, like=x), or read them with polyattn.weights"),
    "params with one more": (lambda: NORM({**init(NORM), "gain": X}, X), "LayerNorm: expected params with the names ['bias', 'scale'], got dict without [] and with unexpected ['gain']; make them with layer.init(seed, like=x), or read them with polyattn.weights"),
    "params as a list": (lambda: NORM([X], X), "LayerNorm: expected params with the names ['bias', 'scale'], got list without ['bias', 'scale'] and with unexpected []; make them with layer.init(seed, like=x), or read them with polyattn.weights"),  # type: ignore[arg-type]
    "params of another layer": (lambda: NORM({"scale": X, "bias": X}, X), "LayerNorm: expected params['scale'] of shape (8,), got (2, 5, 8); were they made for another layer?"),
    "params of a part": (lambda: BLOCK({**init(BLOCK), "norm_2": {}}, X), "LayerNorm: expected params with the names ['bias', 'scale'], got dict without ['bias', 'scale'] and with unexpected []; make them with layer.init(seed, like=x), or read them with polyattn.weights"),
    "params where there are none": (lambda: layers.ScaledDotProductAttention()({"w": X}, X, X, X), "ScaledDotProductAttention: expected params with the names [], got dict without [] and with unexpected ['w']; make them with layer.init(seed, like=x), or read them with polyattn.weights"),
    "a token too large": (call(TABLE, np.array([1, 4])), "Embedding: expected tokens from 0 to 3, got some from 1 to 4; the table has no such rows"),
    "a negative token": (call(TABLE, np.array([-1, 2])), "Embedding: expected tokens from 0 to 3, got some from -1 to 2; the table has no such rows"),
    "parts of two widths": (call(layers.EncoderBlock(ATTEND, layers.MLP(6, 4, activation="relu"), NORM, norm_first=True), X), "MLP: expected x of shape (..., length, 6), got (2, 5, 8); the last axis is the width that the layer was made for"),
}  # fmt: skip

CONVERT = "; convert one of the two, for example with polyattn.weights.convert(params, like=x)"
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "x as a list": (call(ATTEND, [[1.0]]), "MultiHeadAttention: expected x to be an array, got [[1.0]]; convert it first"),
    "x of integers": (call(ATTEND, X.astype(int)), "MultiHeadAttention: expected x of a real floating dtype, got int64; convert it first"),
    "params of another library": (lambda: ATTEND(ATTEND.init(0, like=torch.zeros(())), X), f"MultiHeadAttention: expected params['w_q'] to be an array of numpy like x, got torch{CONVERT}"),
    "None as a parameter": (lambda: ATTEND({**PARAMS, "b_o": None}, X), f"MultiHeadAttention: expected params['b_o'] to be an array of numpy like x, got NoneType{CONVERT}"),
    "params of another dtype": (lambda: ATTEND(PARAMS, X.astype("f4")), "MultiHeadAttention: expected params['w_q'] of the dtype of x, float32, got float64; cast one of the two"),
    "context of another library": (call(ATTEND, X, torch.zeros(2, 7, 8)), f"MultiHeadAttention: expected context to be an array of numpy like x, got torch{CONVERT}"),
    "context of another dtype": (call(ATTEND, X, X.astype("f4")), "MultiHeadAttention: expected context of the dtype of x, float64, got float32; cast one of the two"),
    "a memory of another library": (lambda: ATTEND(PARAMS, X, layers.Memory(*map(torch.as_tensor, MEMORY))), f"MultiHeadAttention: expected context.key to be an array of numpy like x, got torch{CONVERT}"),
    "caches that are one": (run(PLACED, np.zeros(3, int), cache=3), "Encoder: expected a tuple of caches, got 3; write cache=layer.empty_cache(batch, capacity, like=x)"),
    "a float mask": (call(ATTEND, X, mask=np.ones((5, 5))), "MultiHeadAttention: expected a bool mask (True = may attend), got dtype float64; write mask=(mask != 0) if its numbers are 1 and 0, bias=mask if they are 0 and -inf or large negative ones"),
    "tokens that are no integers": (call(TABLE, np.array([1.0])), "Embedding: expected an array of integer tokens, got dtype('float64'); convert them to integers"),
    "tokens as a list": (call(TABLE, [1]), "Embedding: expected an array of integer tokens, got [1]; convert them to integers"),
    "a table of another library": (lambda: TABLE(init(TABLE), torch.tensor([1])), f"Embedding: expected params['table'] to be an array of torch like x, got numpy{CONVERT}"),
    "a context for an encoder": (call(BLOCK, X, context=X), "EncoderBlock: expected x alone, got a context; take EncoderDecoderAttention"),
    "sinks as numbers": (lambda: MHA(8, 2, sinks=0.5), "MultiHeadAttention: expected sinks=True or False, got 0.5; the logits themselves are the parameter 'sinks'"),  # type: ignore[arg-type]
    "a bias that is no array": (call(ATTEND, X, bias=True), "MultiHeadAttention: expected bias to be an array of an array API library (NumPy, JAX, PyTorch, ...), got bool; convert it, for example with numpy.asarray"),
    "return_aux": (run(layers.AdditiveAttention(8, 4), X, return_aux=True), "AdditiveAttention: expected return_aux to be an AuxRequest or None, got True; write return_aux=AuxRequest(lse=True)"),
    "bool as seed": (lambda: ATTEND.init(True, like=X), "MultiHeadAttention.init: expected seed to be an integer, got True; pass a Python int"),
    "output gate": (lambda: MHA(8, 2, output_gate="row"), "MultiHeadAttention: expected output_gate to be 'entry' or 'head' or None, got 'row'; pass one of these"),  # type: ignore[arg-type]
    "like of integers": (lambda: ATTEND.init(0, like=np.zeros((), int)), "MultiHeadAttention.init: expected `like` to be a real floating array, got int64; it gives the library, the dtype and the device of the parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CONFIGURATION, *CALLS])
def test_a_wrong_value_is_refused_with_a_sentence(name: str) -> None:
    f, sentence = (CONFIGURATION | CALLS)[name]
    with pytest.raises(ValueError) as caught:
        f()
    assert str(caught.value) == f"polyattn.layers.{sentence}"


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_kind_is_refused_with_a_sentence(name: str) -> None:
    f, sentence = KINDS[name]
    with pytest.raises(TypeError) as caught:
        f()
    assert str(caught.value) == f"polyattn.layers.{sentence}"


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
@pytest.mark.parametrize("name", DROPPING)
def test_a_dropout_rate_that_is_no_share_is_refused_when_the_layer_is_made(name: str, rate: float) -> None:
    assert DROPPING[name](0.0).has_dropout is False
    with pytest.raises(ValueError) as caught:
        DROPPING[name](rate)
    expected = f"polyattn.layers.{name}: expected 0 <= dropout_rate < 1, got {rate!r}; it is the share of numbers dropped"
    assert str(caught.value) == expected


def test_a_sentence_names_the_subclass_that_was_called(eager: Bench) -> None:
    layer = layers.SelfAttention(8, head_dim=4, mask=masks.causal())
    params = layer.init(0, like=eager.array(np.zeros(()), "float32"))
    with pytest.raises(ValueError, match=r"^polyattn\.layers\.SelfAttention: expected x of shape"):
        layer(params, eager.array(WIDE, "float32"))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^polyattn\.layers\.MultiHeadAttention: .*got casual=; did you mean is_causal=\?$"
    ):
        ATTEND(PARAMS, X, casual=True)
    with pytest.raises(
        TypeError, match=r"^polyattn\.layers\.ScaledDotProductAttention: .*got scale="
    ):  # it is part of the layer
        layers.ScaledDotProductAttention()({}, X, X, X, scale=1.0)
    with pytest.raises(TypeError, match=r"^polyattn\.layers\.ScaledDotProductAttention: .*got attn_mask="):
        layers.ScaledDotProductAttention()({}, X, X, X, attn_mask=None)


def test_rotary_positions_of_a_context_are_not_guessed() -> None:
    layer = MultiHeadAttention(8, 2, rotary=Rotary())
    x = np.ones((3, 8))
    with pytest.raises(ValueError) as refused:
        layer(layer.init(0, like=x), x, np.ones((5, 8)))
    assert str(refused.value) == (
        "polyattn.layers.MultiHeadAttention: expected query_offset with rotary positions, 3 queries and 5 keys, got None; "
        "query_offset=0 aligns the first tokens, query_offset='end' the last"
    )
