"""Reports on who sees whom: causality, padding, windows, documents."""

from __future__ import annotations

import numpy as np
import torch
from parity.reports.asked import Asked, Floats, Reports, heads, past, softmax, textbook

from polyattn import masks

REPORTS = Reports()
PADDING = np.arange(10) < np.array([7, 10])[:, None, None, None]  # True = a token


def sdpa(q: Floats, k: Floats, v: Floats, **options: object) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), **options)


@REPORTS("pytorch/pytorch#103082", "one query against a cache sees the first key alone", "top-left")
def the_flag_in_decoding(wrong: bool) -> Asked:
    q, k, v = heads(1, 9)
    return sdpa(q, k, v, is_causal=wrong), (q, k, v), {"is_causal": True, "query_offset": "end"}


@REPORTS("ml-explore/mlx#2835", "causal differs from PyTorch's where S_Q != S_KV", "bottom-right")
def the_other_corner(wrong: bool) -> Asked:
    q, k, v = heads(5, 9)
    return textbook(q, k, v, past(5, 9, 4 if wrong else 0)), (q, k, v), {"is_causal": True}


@REPORTS("hyprstream/hyprstream#1521", "the mask of a cached prefill forgets the cached prompt", "top-left")
def tril_on_a_cache(wrong: bool) -> Asked:
    q, k, v = heads(4, 11)
    seen = np.tril(np.ones((4, 11), bool), 0 if wrong else 7)
    return textbook(q, k, v, seen), (q, k, v), {"is_causal": True, "query_offset": 7}


@REPORTS(
    "flashinfer-ai/flashinfer#348", "a mask with >= for >, proposed and withdrawn", "does not see itself"
)
def hidden_from_itself(wrong: bool) -> Asked:
    q, k, v = heads(4, 9)
    hidden = np.arange(9) >= np.arange(4)[:, None] + 9 - 4 + (not wrong)
    return textbook(q, k, v, ~hidden), (q, k, v), {"is_causal": True, "query_offset": "end"}


@REPORTS(
    "rasbt/LLMs-from-scratch#1061", "triu, where True hides, given to SDPA as it is", "polarity.*inverted"
)
def what_hides_given_as_what_shows(wrong: bool) -> Asked:
    q, k, v = heads()
    hides = torch.triu(torch.ones(10, 10), diagonal=1).bool()
    return sdpa(q, k, v, attn_mask=hides if wrong else ~hides), (q, k, v), {"is_causal": True}


@REPORTS(
    "InseeFrLab/torchTextClassifiers#92", "padding mask inverted on its way into SDPA", "polarity inverted"
)
def padding_turned_round(wrong: bool) -> Asked:
    q, k, v = heads()
    is_token = torch.from_numpy(PADDING)
    return (
        sdpa(q, k, v, attn_mask=~is_token if wrong else is_token)[:1],
        (q[:1], k[:1], v[:1]),
        {"mask": PADDING[:1]},
    )


@REPORTS(
    "pytorch/pytorch#21518",
    "tril of ones given as attn_mask: the ones are added",
    "added to the scores as 0 and 1",
)
def ones_are_added(wrong: bool) -> Asked:
    q, k, v = heads()
    ones = torch.tril(torch.ones(10, 10, dtype=torch.float64))
    return sdpa(q, k, v, attn_mask=ones if wrong else ones.bool()), (q, k, v), {"is_causal": True}


@REPORTS("keras-team/keras#23038", "the causal mask is dropped off the fused path", "causal mask ignored")
def lost_off_the_fused_path(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, True if wrong else past(10)), (q, k, v), {"is_causal": True}


@REPORTS(
    "facebookresearch/xformers#1185",
    "a causal mask of blocks loses causality when moved",
    "causal mask ignored",
)
def moved_to_a_device(wrong: bool) -> Asked:
    q, k, v = heads()
    block = np.arange(10) // 4
    same = block[:, None] == block
    meant = {"mask": masks.segments(block), "is_causal": True}
    return textbook(q, k, v, same if wrong else same & past(10)), (q, k, v), meant


@REPORTS("huggingface/transformers#41966", "a padding mask switches causality off", "causal mask ignored")
def padding_switches_causality_off(wrong: bool) -> Asked:
    q, k, v = heads()
    is_token = np.arange(10) >= np.array([3, 0])[:, None, None, None]  # on the left
    out = np.nan_to_num(masked(q, k, v, is_token if wrong else is_token & past(10)))
    return out, (q, k, v), {"mask": is_token, "is_causal": True}


def masked(q: Floats, k: Floats, v: Floats, allowed: Floats, nothing: float = 0.0) -> Floats:
    """With rows that see nothing."""
    some = allowed.any(-1, keepdims=True)
    return np.where(some, textbook(q, k, v, allowed | ~some), nothing)


@REPORTS("huggingface/transformers#42820", "an encoder becomes causal where its mask is skipped", "causal")
def an_encoder_becomes_causal(wrong: bool) -> Asked:
    q, k, v = heads()
    return sdpa(q, k, v, is_causal=wrong), (q, k, v), {}


@REPORTS("vllm-project/vllm-gaudi#1797", "the tokens of an image do not see one another", "causal")
def an_image_in_a_text(wrong: bool) -> Asked:
    q, k, v = heads()
    image = np.array([0, 0, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    seen = past(10) | (image & image[:, None])
    return textbook(q, k, v, past(10) if wrong else seen), (q, k, v), {"mask": seen}


@REPORTS("huggingface/transformers#30918", "a prefix LM without any mask", "mask ignored")
def a_prefix_and_no_mask(wrong: bool) -> Asked:
    q, k, v = heads()
    seen = past(10) | (np.arange(10) < 4)
    return textbook(q, k, v, wrong or seen), (q, k, v), {"mask": masks.causal() | masks.prefix(4)}


@REPORTS("huggingface/nanoVLM#204", "packed samples attend across documents", "mask ignored")
def across_documents(wrong: bool) -> Asked:
    q, k, v = heads()
    document = np.array([0] * 4 + [1] * 6)
    same = document[:, None] == document
    meant = {"mask": masks.segments(document), "is_causal": True}
    return textbook(q, k, v, past(10) & (wrong | same)), (q, k, v), meant


@REPORTS("AI-Hypercomputer/maxtext#878", "a kernel of type causal ignores the mask beside it", "mask ignored")
def the_flag_without_the_mask(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, past(10) & (wrong | PADDING)), (q, k, v), {"mask": PADDING, "is_causal": True}


@REPORTS("hyunwoongko/transformer#40", "a padding mask unsqueezed along the queries", "query axis")
def padding_on_the_rows(wrong: bool) -> Asked:
    q, k, v = heads()
    out = masked(q, k, v, np.broadcast_to(PADDING.swapaxes(-1, -2) if wrong else PADDING, (2, 1, 10, 10)))
    return out, (q, k, v), {"mask": PADDING}


@REPORTS(
    "lsdefine/attention-is-all-you-need-keras#36",
    "masks repeated item by item beside heads laid out head by head",
    r"mask of (another|the wrong) (batch )?item|mask.*\b(items|batch)",
)
def the_mask_of_another_item(wrong: bool) -> Asked:
    q, k, v = heads(batch=2, q=2, kv=2)
    flat = np.repeat(PADDING[:, 0], 2, axis=0) if wrong else np.tile(PADDING[:, 0], (2, 1, 1))
    rows = [x.swapaxes(0, 1).reshape(4, 10, 8) for x in (q, k, v)]
    return textbook(*rows, flat).reshape(2, 2, 10, 8).swapaxes(0, 1), (q, k, v), {"mask": PADDING}


@REPORTS("pytorch/pytorch#103963", "rows of a bool mask that hold no True become NaN", "see nothing are NaN")
def nothing_is_nan(wrong: bool) -> Asked:
    q, k, v = heads()
    seen = np.broadcast_to(PADDING & PADDING.swapaxes(-1, -2), (2, 1, 10, 10))
    return masked(q, k, v, seen, np.nan if wrong else 0.0), (q, k, v), {"mask": seen}


@REPORTS(
    "YutaroOgawa/pytorch_advanced#175", "with -1e9 a row of padding becomes the mean", "mean of all values"
)
def nothing_is_the_mean(wrong: bool) -> Asked:
    q, k, v = heads()
    seen = np.broadcast_to(PADDING & PADDING.swapaxes(-1, -2), (2, 1, 10, 10))
    if not wrong:
        return masked(q, k, v, seen), (q, k, v), {"mask": seen}
    scores = np.where(seen, 8**-0.5 * q @ k.swapaxes(-1, -2), -1e9)
    return softmax(scores) @ v, (q, k, v), {"mask": seen}


@REPORTS("awslabs/gluonts#1401", "hidden scores filled with 1e-9, not -1e9", "filled with about 0")
def the_sign_of_an_exponent(wrong: bool) -> Asked:
    q, k, v = (x.astype(np.float32) for x in heads())
    scores = np.where(
        PADDING, np.float32(8**-0.5) * q @ k.swapaxes(-1, -2), np.float32(1e-9 if wrong else -1e9)
    )
    return softmax(scores) @ v, (q, k, v), {"mask": PADDING}


@REPORTS(
    "TransformerLensOrg/TransformerLens#318",
    "scores below -1e5, the constant that hides: what is hidden is seen",
    "hidden scores filled",
)
def scores_below_the_constant(wrong: bool) -> Asked:
    q, k, v = heads()
    added = np.full((1, 1, 10, 10), -2e5)  # what makes the scores of this model so low
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2) + added
    hidden = np.where(past(10), scores, -1e5 if wrong else -np.inf)
    return softmax(hidden) @ v, (q, k, v), {"is_causal": True, "bias": added}


@REPORTS(
    "huggingface/pytorch-image-models#2236", "the mask is applied after the softmax", "after the softmax"
)
def after_the_softmax(wrong: bool) -> Asked:
    q, k, v = heads()
    if not wrong:
        return textbook(q, k, v, PADDING), (q, k, v), {"mask": PADDING}
    weights = softmax(8**-0.5 * q @ k.swapaxes(-1, -2))
    return np.where(PADDING, weights, 0.0) @ v, (q, k, v), {"mask": PADDING}


@REPORTS(
    "pytorch/pytorch#101967", "NaN in keys that are masked out comes through", r"NaN|leak|not finite|poison"
)
def nan_behind_the_mask(wrong: bool) -> Asked:
    q, k, v = heads()
    k, v = k.copy(), v.copy()
    k[0, :, 7:], v[0, :, 7:] = np.nan, np.nan
    seen = np.broadcast_to(PADDING, (2, 1, 10, 10))
    if not wrong:
        return textbook(q, np.nan_to_num(k), np.nan_to_num(v), seen), (q, k, v), {"mask": seen}
    scores = 8**-0.5 * q @ k.swapaxes(-1, -2) + np.where(seen, 0.0, -np.inf)
    return softmax(scores) @ v, (q, k, v), {"mask": seen}


def band(rows: int, left: int) -> Floats:
    """The past, down to `left` tokens before."""
    return past(rows) & (np.arange(rows) >= np.arange(rows)[:, None] - left)


@REPORTS("NVIDIA-NeMo/Megatron-Bridge#2656", "a size of W given as (W, 0): W + 1 keys", "one neighbour more")
def the_window_of_flash(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, band(10, 4 if wrong else 3)), (q, k, v), {"mask": masks.sliding_window(4)}


@REPORTS(
    "vllm-project/vllm#3385",
    "the window of one backend has a key less than the model's",
    "one neighbour less",
)
def the_window_of_xformers(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, band(10, 3 if wrong else 4)), (q, k, v), {"mask": masks.sliding_window(5)}


@REPORTS("NVIDIA/TensorRT-LLM#12597", "sliding_window never reaches the kernel", "window ignored")
def the_window_never_arrives(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, band(10, 10 if wrong else 3)), (q, k, v), {"mask": masks.sliding_window(4)}


@REPORTS("trymirai/lalamo#200", "the window of a cached call is counted from its first row", "first row")
def the_window_in_decoding(wrong: bool) -> Asked:
    q, k, v = heads(4, 10)
    start = np.arange(4)[:, None] + (0 if wrong else 6)
    seen = past(4, 10, 6) & (np.arange(10) >= start - 1)
    return textbook(q, k, v, seen), (q, k, v), {"mask": masks.sliding_window(2), "query_offset": 6}


@REPORTS("NVIDIA-NeMo/Megatron-Bridge#4875", "layers with and without a window change places", "window")
def a_window_on_the_wrong_layer(wrong: bool) -> Asked:
    q, k, v = heads()
    return textbook(q, k, v, band(10, 3 if wrong else 10)), (q, k, v), {"is_causal": True}


@REPORTS("huggingface/transformers#31673", "a mask times a triangle is no mask at all", "causal mask ignored")
def a_mask_times_a_triangle(wrong: bool) -> Asked:
    q, k, v = heads()
    low = np.finfo(np.float64).min / 4
    added = np.where(past(10), 0.0, low)
    far = np.tril(np.ones((10, 10)), -12)  # the window is longer than the text
    added = added * far if wrong else np.where(far > 0, low, added)
    return textbook(q, k, v, added=added), (q, k, v), {"mask": masks.sliding_window(12)}
