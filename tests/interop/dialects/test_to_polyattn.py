"""Foreign calls as arguments of attention: the library's result in the library's form, or a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shared.foreign import ELSEWHERE, HERE, Array, Keywords, bound, library

from polyattn import attention, masks
from polyattn.dialects import DIALECTS

Q = np.zeros((2, 4, 3, 8), np.float32)
K = np.zeros((2, 2, 5, 8), np.float32)
SQUARE = np.zeros((1, 2, 3, 8), np.float32)
ONES = np.tril(np.ones((3, 3), np.float32))


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
    elif name == "onnxruntime.gqa":
        q, k, v, heads = x(1, 3, 32), x(1, 3, 16), x(1, 3, 16), {"num_heads": 4, "kv_num_heads": 2}
        counted = {"seqlens_k": np.array([2], np.int32), "total_sequence_length": np.array(3, np.int32)}
        given = {"query": q, "key": k, "value": v} | heads
        yield given | counted
        yield given | counted | {"causal": 0, "attention_bias": hidden[:1, :, :, :3], "scale": 0.2}
        yield given | counted | {"local_window_size": 2, "softcap": 1.5, "head_sink": x(4)}
        yield given | counted | {"smooth_softmax": 1}
        five = {"seqlens_k": np.array([4], np.int32), "total_sequence_length": np.array(5, np.int32)}
        cached = {"past_key": x(1, 2, 2, 8), "past_value": x(1, 2, 2, 8)}
        yield given | five | cached
        yield given | five | cached | {"local_window_size": 3}
    elif name == "mlx":
        q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 6)
        yield {"q": q, "k": k, "v": v, "scale": 0.2, "mask": "causal"}
        yield {"q": q, "k": k, "v": v, "scale": 0.2, "mask": visible(3, 5), "sinks": x(4)}
        yield {"q": q, "k": k, "v": v, "scale": 0.2, "mask": hidden}
    elif name == "tokamax":
        q, k, v = x(2, 3, 4, 8), x(2, 3, 2, 8), x(2, 3, 2, 6)
        yield {"query": q, "key": k, "value": v, "mask": array(visible(2, 1, 3, 3)), "bias": x(1, 4, 3, 3)}
        yield {"query": q, "key": k, "value": v, "logits_soft_cap": 1.5, "local_window_size": (1, 0)}
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


@pytest.mark.parametrize(
    "name",
    [
        "torch.sdpa",
        "torch.flex",
        "torch.mha",
        "transformers",
        "jax.nn",
        "flax.nnx",
        "equinox",
        "keras",
        "onnx.25",
        "onnxruntime.gqa",
        *(name for name in ELSEWHERE if name in HERE),
    ],
)
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


def test_what_a_word_beside_the_mask_says_is_meant() -> None:
    q, k, v = (normal(n, 2, 4, 8, seed=i) for i, n in enumerate((3, 5, 5)))
    hides = np.random.default_rng(3).random((3, 5)) < 0.4
    hides[:, 0] = False
    x, y, z = (a.transpose(1, 2, 0, 3) for a in (q, k, v))
    te = DIALECTS["te"]

    def meant(**options: Any) -> Array:
        return attention(x, y, z, **options).transpose(2, 0, 1, 3).reshape(3, 2, 32)

    for given, options in (
        ({}, {"is_causal": True, "query_offset": 0}),  # 'causal' is the default
        (
            {"attention_mask": hides},
            {"is_causal": True, "query_offset": 0},
        ),  # ... and the mask is not looked at
        ({"attn_mask_type": "causal_bottom_right"}, {"is_causal": True, "query_offset": 2}),
        ({"attn_mask_type": "no_mask", "attention_mask": hides}, {}),
        ({"attn_mask_type": "arbitrary", "attention_mask": hides}, {"mask": ~hides}),
        ({"attn_mask_type": "no_mask", "softmax_scale": 0.2}, {"scale": 0.2}),
    ):
        assert np.array_equal(te.attention(q, k, v, **given), meant(**options)), given
    with pytest.raises(
        ValueError, match=r"expected attn_mask_type to be 'no_mask', .*, got 'padding'; say padding"
    ):
        te.to_polyattn(q, k, v, attn_mask_type="padding")
    with pytest.raises(ValueError, match="expected core_attention_bias_type to be 'no_bias' or"):
        te.to_polyattn(q, k, v, core_attention_bias_type="alibi")
    assert te.from_polyattn(x, y, z, mask=masks.from_array(~hides))["attn_mask_type"] == "arbitrary"
    assert (
        te.from_polyattn(x, y, z, is_causal=True, query_offset="end")["attn_mask_type"]
        == "causal_bottom_right"
    )


def test_one_request_has_no_axis_for_others() -> None:
    q, k, v = (normal(n, 4, 8, seed=i) for i, n in enumerate((3, 5, 5)))
    d = DIALECTS["flashinfer"]
    found = d.attention(q, k, v, causal=True, window_left=1)
    x, y, z = (a.swapaxes(0, 1)[None] for a in (q, k, v))
    expected = attention(x, y, z, mask=masks.sliding_window(2), query_offset="end")
    assert np.array_equal(found, expected[0].swapaxes(0, 1))
    said = d.from_polyattn(x, y, z, mask=masks.sliding_window(2), query_offset="end")
    assert (said["causal"], said["window_left"], said["q"].shape) == (True, 1, (3, 4, 8))
    with pytest.raises(ValueError, match="expected one batch item, got 2; call it item by item"):
        d.from_polyattn(*(np.concatenate([a, a]) for a in (x, y, z)))


def test_keys_beyond_the_queries_are_a_cache() -> None:
    q, k, v = (normal(1, 2, n, 8, seed=i) for i, n in enumerate((3, 5, 5)))
    d = DIALECTS["onnxruntime.gqa"]
    said = d.from_polyattn(q, k, v, mask=masks.sliding_window(2), query_offset="end")
    assert (said["past_key"].shape, said["key"].shape, said["local_window_size"]) == (
        (1, 2, 2, 8),
        (1, 3, 16),
        2,
    )
    assert (said["seqlens_k"].tolist(), int(said["total_sequence_length"])) == ([4], 5)
    with pytest.raises(ValueError, match="expected as many keys as queries or more, got 3 and 5; leave out"):
        d.from_polyattn(k, q, q)
    short = {"seqlens_k": np.array([1], np.int32)}  # two keys of three: the prompt is padded on the right
    given = {"query": x3(q), "key": x3(q), "value": x3(q), "num_heads": 2, "kv_num_heads": 2} | short
    expected = attention(q, q, q, is_causal=True, mask=masks.key_lengths(np.array([2])))
    assert np.array_equal(d.attention(**given), x3(expected))
    with pytest.raises(ValueError, match="expected seqlens_k = 5, the last key of all, got"):
        d.to_polyattn(**given, past_key=q, past_value=q)


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def x3(x: Array) -> Array:
    """(B, H, L, D) as (B, L, H D)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


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
    second = DIALECTS["flash_attn.2"].attention(*(np.asarray(q),) * 3, return_attn_probs=True)
    assert np.array_equal(second[1], lse)
    assert second[2:] == (None,)


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
        ("flax.nnx", {"query": Q, "key": Q, "value": Q, "dtype": "bfloat16"}, "expected dtype = None, got 'bfloat16'; polyattn.attention has no such thing, leave it out"),
        ("keras", {"query": Q, "key": Q, "value": Q, "attn_logits_soft_cap": 20.0}, "expected attn_logits_soft_cap = None"),
        ("onnx.25", {"Q": Q, "K": K, "V": K, "past_key": K}, "expected past_key and past_value together"),
        ("xformers", {"query": Q, "key": Q, "value": Q, "attn_bias": ONES > 0}, "expected attn_bias of numbers that are added, got bools"),
        ("x_transformers", {"q": Q, "k": K, "v": K, "attn_bias": ONES, "softclamp_logits": True}, "there the cap comes after the bias"),
        ("flash_attn.2", {"q": SQUARE, "k": SQUARE, "v": SQUARE, "alibi_slopes": ONES}, "expected alibi_slopes of shape (Hq,), got (3, 3)"),
        ("x_transformers", {"q": Q, "k": Q, "v": Q, "mask": ONES > 0}, "expected mask of shape BS, got (3, 3); reshape it, B, H, L, S are 2, 4, 3, 3"),
        ("torch.mha", {"query": ONES, "key": ONES, "value": ONES, "num_heads": 1, "attn_mask": np.zeros((2, 3, 3), bool)}, "expected attn_mask of shape (BH)LS, got (2, 3, 3); reshape it, B, H, L, S are 1, 1, 3, 3"),
        ("flash_attn.3", {"q": SQUARE, "k": SQUARE, "v": SQUARE, "qv": SQUARE}, "expected qv = None, got an array of shape (1, 2, 3, 8)"),
    ],
)  # fmt: skip
def test_what_means_nothing_here_is_said_in_a_sentence(name: str, call: Keywords, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        DIALECTS[name].attention(**call)
    assert sentence in str(error.value)
    assert str(error.value).startswith(f"polyattn.dialects.DIALECTS['{name}'].attention: expected ")


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


@pytest.mark.parametrize("name", ["torch.sdpa", "jax.nn", "flash_attn.2"])
def test_bfloat16_of_numpy_is_translated(name: str) -> None:
    import ml_dtypes

    d = DIALECTS[name]
    x = np.random.default_rng(2).normal(size=(2, 3, 3, 8)).astype(ml_dtypes.bfloat16)
    names = [p.name for p in d.parameters if p.role in ("query", "key", "value")]
    out = d.attention(**dict.fromkeys(names, x))
    assert out.dtype == x.dtype
    layout = "BHLD" if name == "torch.sdpa" else "BLHD"
    assert np.array_equal(out, attention(x, x, x, layout=layout))
    if name == "torch.sdpa":
        added = np.where(np.tril(np.ones((3, 3), bool)), 0.0, -np.inf).astype(ml_dtypes.bfloat16)
        assert np.array_equal(d.attention(x, x, x, attn_mask=added), attention(x, x, x, is_causal=True))


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")
@pytest.mark.parametrize("rows", [3, 5, 6])
@pytest.mark.parametrize("variant", ["causal_upper_left", "causal_lower_right"])
def test_the_biases_of_torch_are_causal_masks(variant: str, rows: int) -> None:
    import torch.nn.attention.bias

    q = torch.randn(2, 4, rows, 8, generator=torch.Generator().manual_seed(0))
    k = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    bias = getattr(torch.nn.attention.bias, variant)(rows, 5)
    offset = 0 if variant == "causal_upper_left" else "end"
    meant = attention(q, k, k, is_causal=True, query_offset=offset)
    assert torch.equal(DIALECTS["torch.sdpa"].attention(q, k, k, attn_mask=bias), meant)
    ours = DIALECTS["torch.sdpa"].attention(q.numpy(), k.numpy(), k.numpy(), attn_mask=bias)
    assert np.abs(ours - meant.numpy()).max() <= bound(q.numpy(), k.numpy(), k.numpy(), 0.36)
    if rows <= 5:  # rows that see nothing are NaN there
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=bias)
        assert (theirs - meant).abs().max() <= bound(q.numpy(), k.numpy(), k.numpy(), 0.36)
    for name in ("mask", "bias"):
        with pytest.raises(TypeError) as error:
            attention(q, k, k, **{name: bias})
        assert str(error.value) == (
            f"polyattn.attention: expected {name} to be an array of numbers, got a CausalBias; write is_causal=True, "
            f"query_offset={offset!r}"
        )
