"""Reports on what becomes of a score: scale, cap, bias, sinks, softmax, dropout, precision."""

from __future__ import annotations

import numpy as np
import torch
from parity.reports.asked import Asked, Floats, Reports, heads, normal, past, softmax, textbook

from polyattn import masks, mods

REPORTS = Reports()


@REPORTS("mlc-ai/mlc-llm#3426", "the fallback forgets 1/sqrt(d)", r"scale = 1 ")
def no_scale(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, scale=1.0 if wrong else None), (q, k, v), {}


@REPORTS(
    "Graylab/DL4Proteins-notebooks#12", "the width of the model in the place of the head's", "model width"
)
def the_width_of_the_model(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, past(10), (32 if wrong else 8) ** -0.5), (q, k, v), {"is_causal": True}


@REPORTS("esceptico/perceiver-io#9", "scores divided by d**-0.5", r"multiplied, not divided")
def divided_by_the_scale(wrong: bool) -> Asked:
    q, k, v = heads(5, 9)
    return textbook(q, k, v, scale=8 ** (0.5 if wrong else -0.5)), (q, k, v), {}


@REPORTS("huggingface/transformers#38290", "OPT scales its queries, and SDPA scales again", "applied twice")
def scaled_in_two_places(wrong: bool) -> Asked:
    q, k, v = heads(width=16)
    out = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(q * 16**-0.5), *map(torch.from_numpy, (k, v)), scale=None if wrong else 1.0
    )
    return out, (q, k, v), {}


@REPORTS(
    "huggingface/transformers#44397",
    "the scale of a layer is not passed to SDPA",
    "the default, not the scale",
)
def the_scale_is_not_passed(wrong: bool) -> Asked:
    q, k, v = heads()
    meant = 8**-0.5 / 3  # by the index of the layer
    out = textbook(q, k, v, past(10), None if wrong else meant)
    return out, (q, k, v), {"is_causal": True, "scale": meant}


@REPORTS(
    "ollama/ollama#13893", "the width of the latent in the place of the key's", "the default, not the scale"
)
def the_scale_of_the_absorbed_form(wrong: bool) -> Asked:
    q, k, v = heads(width=20, kv=1)
    return textbook(q, k, v, scale=(20 if wrong else 8) ** -0.5), (q, k, v), {"scale": 8**-0.5}


@REPORTS(
    "onnxruntime/mobius#548",
    "the square of YaRN's mscale is missing in the scale",
    "the default, not the scale",
)
def no_mscale(wrong: bool) -> Asked:
    q, k, v = heads()
    mscale = 0.1 * 0.707 * np.log(40.0) + 1.0
    meant = mscale**2 * 8**-0.5
    return textbook(q, k, v, scale=None if wrong else meant), (q, k, v), {"scale": meant}


@REPORTS("NVIDIA/Megatron-LM#1429", "mscale in the place of mscale_all_dim", r"scale\b")
def the_other_mscale(wrong: bool) -> Asked:
    q, k, v = heads()
    meant, other = ((0.1 * m * np.log(40.0) + 1.0) ** 2 * 8**-0.5 for m in (1.0, 0.707))
    return textbook(q, k, v, scale=other if wrong else meant), (q, k, v), {"scale": meant}


@REPORTS(
    "ggml-org/llama.cpp#8444", "Gemma 2 9B divides by width / heads, not by the head's width", r"scale\b"
)
def the_width_that_a_head_would_have(wrong: bool) -> Asked:
    q, k, v = heads(width=16)
    out = textbook(q, k, v, past(10), (14 if wrong else 16) ** -0.5)
    return out, (q, k, v), {"is_causal": True, "embed_dim": 4 * 14}


@REPORTS(
    "tenstorrent/tt-metal#42891",
    "the mask that is added is scaled with the scores",
    "bias added before the scale",
)
def the_mask_is_scaled_too(wrong: bool) -> Asked:
    q, k, v = heads()
    bias = 2.0 * normal(1, 4, 10, 10)
    return textbook(q, k, v, added=bias * (8**-0.5 if wrong else 1.0)), (q, k, v), {"bias": bias}


@REPORTS("vllm-project/vllm-metal#665", "the soft cap of the scores is hard-coded to 0", "soft cap ignored")
def no_cap(wrong: bool) -> Asked:
    q, k, v = heads()
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2)
    scores = scores if wrong else 2.0 * np.tanh(scores / 2.0)
    out = softmax(np.where(past(10), scores, -np.inf)) @ v
    return out, (q, k, v), {"is_causal": True, "score_mod": mods.softcap(2.0)}


@REPORTS("onnx/onnx#7865", "the cap after the mask makes -inf a score of -cap", "after the mask")
def the_cap_after_the_mask(wrong: bool) -> Asked:
    q, k, v = heads()
    scores, hides = 8**-0.5 * q @ k.swapaxes(-1, -2), np.where(past(10), 0.0, -np.inf)
    scores = 2.0 * np.tanh((scores + hides) / 2.0) if wrong else 2.0 * np.tanh(scores / 2.0) + hides
    return softmax(scores) @ v, (q, k, v), {"is_causal": True, "score_mod": mods.softcap(2.0)}


@REPORTS(
    "flashinfer-ai/flashinfer#350", "in decoding the cap comes after the mask of the window", "after the mask"
)
def the_cap_after_the_window(wrong: bool) -> Asked:
    q, k, v = heads(1, 9)
    scores, hides = 8**-0.5 * q @ k.swapaxes(-1, -2), np.where(np.arange(9) >= 5, 0.0, -np.inf)
    scores = 2.0 * np.tanh((scores + hides) / 2.0) if wrong else 2.0 * np.tanh(scores / 2.0) + hides
    meant = {"mask": masks.sliding_window(4), "query_offset": 8, "score_mod": mods.softcap(2.0)}
    return softmax(scores) @ v, (q, k, v), meant


def distances(rows: int, keys: int | None = None, start: int = 0) -> Floats:
    """kv - q."""
    return np.arange(rows if keys is None else keys) - np.arange(rows)[:, None] - start


@REPORTS(
    "meta-pytorch/attention-gym#86", "ALiBi with its sign turned: far keys win", "bias subtracted|sign|slopes"
)
def alibi_the_other_way(wrong: bool) -> Asked:
    q, k, v = heads()
    slopes = 2.0 ** -(8.0 * np.arange(1, 5) / 4)
    bias = slopes[:, None, None] * distances(10)
    return (
        textbook(q, k, v, past(10), added=-bias if wrong else bias),
        (q, k, v),
        {"bias": bias, "is_causal": True},
    )


@REPORTS("ml-explore/mlx#343", "the slopes of 6 heads as if 6 were a power of two", "slopes")
def slopes_of_six_heads(wrong: bool) -> Asked:
    q, k, v = heads(q=6, kv=6)
    slopes = 2.0 ** -(8.0 * np.arange(1, 7) / 6)
    if not wrong:  # four of 4 heads, then every other one of 8
        slopes = np.concatenate([2.0 ** -(2.0 * np.arange(1, 5)), 2.0 ** -np.arange(1.0, 5.0, 2.0)])
    out = textbook(q, k, v, past(10), added=slopes[:, None, None] * distances(10))
    return out, (q, k, v), {"is_causal": True, "score_mod": mods.alibi(6)}


@REPORTS("paiml/aprender#2143", "the exponents of the slopes begin at 0", "slopes")
def slopes_from_nought(wrong: bool) -> Asked:
    q, k, v = heads()
    slopes = 2.0 ** -(2.0 * (np.arange(4) + (0 if wrong else 1)))
    out = textbook(q, k, v, past(10), added=slopes[:, None, None] * distances(10))
    return out, (q, k, v), {"is_causal": True, "score_mod": mods.alibi(4)}


@REPORTS(
    "HabanaAI/vllm-fork#437", "decoding leaves ALiBi out", "bias ignored|slopes ignored|score_mod ignored"
)
def no_alibi_in_decoding(wrong: bool) -> Asked:
    q, k, v = heads(1, 9)
    bias = (2.0 ** -(2.0 * np.arange(1, 5)))[:, None, None] * distances(1, 9, 8)
    return textbook(q, k, v, added=0.0 if wrong else bias), (q, k, v), {"bias": bias}


@REPORTS("vllm-project/vllm#52156", "one backend takes the sinks of a model and drops them", "sinks left out")
def no_sinks(wrong: bool) -> Asked:
    q, k, v = heads()
    sinks = normal(4, seed=5)
    if wrong:
        return textbook(q, k, v, past(10)), (q, k, v), {"is_causal": True, "sinks": sinks}
    scores = np.where(past(10), 8**-0.5 * q @ k.swapaxes(-1, -2), -np.inf)
    column = np.broadcast_to(sinks[:, None, None], (2, 4, 10, 1))
    weights = softmax(np.concatenate([scores, column], -1))[..., :-1]
    return weights @ v, (q, k, v), {"is_causal": True, "sinks": sinks}


@REPORTS("FudanNLP/fastNLP#254", "dim=2 of four axes: every key sums to 1", "over the queries")
def softmax_of_axis_two(wrong: bool) -> Asked:
    q, k, v = heads(6, 9)
    scores = torch.from_numpy(8**-0.5 * q @ k.swapaxes(-1, -2))
    return torch.softmax(scores, dim=2 if wrong else -1) @ torch.from_numpy(v), (q, k, v), {}


@REPORTS(
    "labmlai/annotated_deep_learning_paper_implementations#146",
    "an einsum laid out (B, i, j, H), and a softmax over i",
    "over the queries",
)
def softmax_of_an_einsum(wrong: bool) -> Asked:
    q, k, v = heads()
    scores = np.einsum("bhid,bhjd->bijh", q, k) * 8**-0.5
    return np.einsum("bijh,bhjd->bhid", softmax(scores, 1 if wrong else 2), v), (q, k, v), {}


@REPORTS(
    "facebookresearch/detr#247",
    "one softmax over the keys of all heads",
    "softmax over .*heads (and|together)",
)
def one_softmax_for_all_heads(wrong: bool) -> Asked:
    q, k, v = heads()
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2)
    weights = softmax(scores)
    if wrong:
        flat = scores.swapaxes(1, 2).reshape(2, 10, 40)
        weights = softmax(flat).reshape(2, 10, 4, 10).swapaxes(1, 2)
    return weights @ v, (q, k, v), {}


@REPORTS("PetrochukM/PyTorch-NLP#2", "a softmax over the batch", "softmax over the (batch|items)")
def softmax_of_the_batch(wrong: bool) -> Asked:
    q, k, v = heads(1, 9, batch=3)
    return softmax(8**-0.5 * q @ k.swapaxes(-1, -2), 0 if wrong else -1) @ v, (q, k, v), {}


@REPORTS(
    "meta-pytorch/segment-anything-fast#71",
    "a kernel in base 2 scales the scores by log2(e), and forgets the bias",
    "bias.*(log2|base 2|ln ?2|factor)",
)
def a_bias_in_base_two(wrong: bool) -> Asked:
    q, k, v = heads()
    bias = 2.0 * normal(1, 4, 10, 10)
    scores = 8**-0.5 * np.log2(np.e) * q @ k.swapaxes(-1, -2) + bias * (1.0 if wrong else np.log2(np.e))
    e = np.exp2(scores)
    return e / e.sum(-1, keepdims=True) @ v, (q, k, v), {"bias": bias}


@REPORTS(
    "sgl-project/sglang#33065", "parts merged by exp2 of a natural log-sum-exp", "base 2|merg|lse|log-sum"
)
def parts_merged_in_base_two(wrong: bool) -> Asked:
    q, k, v = heads(5, 12)
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2)
    parts = [(softmax(scores[..., s]) @ v[:, :, s], np.log(np.exp(scores[..., s]).sum(-1))) for s in HALVES]
    lse = np.stack([lse for _, lse in parts])
    weights = np.exp2(lse) if wrong else np.exp(lse)
    weights = (weights / weights.sum(0))[..., None]
    return weights[0] * parts[0][0] + weights[1] * parts[1][0], (q, k, v), {}


HALVES = (slice(0, 6), slice(6, 12))


@REPORTS(
    "flashinfer-ai/flashinfer#4267",
    "a running maximum that begins at -5e4: rows of lower scores become 0",
    "maximum|finite|underflow|sentinel|zero",
)
def a_maximum_that_is_finite(wrong: bool) -> Asked:
    q, k, v = heads()
    added = np.where(np.arange(10)[:, None] == 4, -1e5, 0.0) * np.ones((1, 1, 10, 10))
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2) + added
    e = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -5e4 if wrong else -np.inf))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1.0, total) @ v, (q, k, v), {"bias": added}


@REPORTS(
    "huggingface/pytorch-image-models#1978",
    "SDPA drops weights in evaluation",
    "dropout of the weights left on",
)
def dropout_in_evaluation(wrong: bool) -> Asked:
    q, k, v = heads(24, width=16)
    torch.manual_seed(0)
    out = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), dropout_p=0.2 if wrong else 0.0
    )
    return out, (q, k, v), {}


@REPORTS("pytorch/pytorch#103167", "under autocast all of SDPA runs in half precision", "float16")
def everything_in_half_precision(wrong: bool) -> Asked:
    q, k, v = (x.astype(np.float32) for x in heads(16))
    if not wrong:
        return textbook(q, k, v), (q, k, v), {}
    half = [x.astype(np.float16) for x in (q, k, v)]
    weights = softmax(half[0] @ half[1].swapaxes(-1, -2) * np.float16(8**-0.5))
    return (weights @ half[2]).astype(np.float32), (q, k, v), {}
