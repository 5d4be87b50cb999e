"""The dialects of packed sequences, against a loop over sequences, heads and rows that is written from their documentation."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from shared.foreign import bound
from shared.libraries import jax, jnp, torch

from polyattn import attention, masks, mods
from polyattn.dialects import DIALECTS

Array = Any
FLASH, TORCH = DIALECTS["flash_attn.varlen"], DIALECTS["torch.varlen"]
ENDS, KEY_ENDS = np.array([0, 3, 3, 4, 9], np.int32), np.array([0, 2, 4, 9, 13], np.int32)
LONGEST, LONGEST_KEYS = 5, 5
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(n, h, 8)).astype(np.float32) for n, h in ((9, 4), (13, 2), (13, 2)))
SLOPES = np.array([0.5, 0.25, 0.125, 1.0], np.float32)
POSITIONAL = (Q, K, V, ENDS, KEY_ENDS, LONGEST, LONGEST_KEYS)
NAMES = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")


def varlen() -> Any:
    """The module of PyTorch, of the version that the record is of."""
    if not torch.__version__.startswith(TORCH.version):
        pytest.skip(f"the record is that of PyTorch {TORCH.version}, not {torch.__version__}")
    return import_module("torch.nn.attention.varlen")


def loop(
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Array = None,
) -> tuple[Array, Array]:
    """(T, H, D) and lse (H, T), in float64: the words of flash_attn_varlen_func, one score after the other."""
    out, lse = np.zeros(Q.shape), np.full(Q.shape[1::-1], -np.inf)
    for q0, q1, k0, k1 in zip(ENDS[:-1], ENDS[1:], KEY_ENDS[:-1], KEY_ENDS[1:], strict=True):
        for h in range(Q.shape[1]):
            for i in range(q1 - q0):
                scores, values = [], []
                end = i + (k1 - k0) - (q1 - q0)
                for j in range(k1 - k0):
                    left, right = window_size
                    if (
                        (causal and j > end)
                        or (left >= 0 and j < end - left)
                        or (right >= 0 and j > end + right)
                    ):
                        continue
                    score = float(np.dot(Q[q0 + i, h].astype(float), K[k0 + j, h // 2].astype(float)))
                    score *= 8**-0.5 if softmax_scale is None else softmax_scale
                    if softcap > 0:
                        score = softcap * np.tanh(score / softcap)
                    if alibi_slopes is not None:
                        score -= float(alibi_slopes[h]) * abs(end - j)
                    scores.append(score)
                    values.append(V[k0 + j, h // 2].astype(float))
                if scores:
                    w = np.exp(np.asarray(scores))
                    out[q0 + i, h], lse[h, q0 + i] = w @ np.asarray(values) / w.sum(), np.log(w.sum())
    return out, lse


SAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # there, and here
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"is_causal": True}),
    "scale": ({"causal": True, "softmax_scale": 0.2}, {"is_causal": True, "scale": 0.2}),
    "window": ({"window_size": (2, 1)}, {"mask": masks.window(2, 1)}),
    "one side": ({"window_size": (-1, 0)}, {"mask": masks.window(None, 0)}),
    "causal window": ({"causal": True, "window_size": (1, -1)}, {"is_causal": True, "mask": masks.window(1, None)}),
    "soft cap": ({"softcap": 0.5, "causal": True}, {"score_mod": mods.softcap(0.5), "is_causal": True}),
    "slopes": ({"alibi_slopes": SLOPES}, {"score_mod": mods.alibi(SLOPES)}),
    "soft cap and slopes": ({"softcap": 0.5, "alibi_slopes": SLOPES}, {"score_mod": mods.compose(mods.softcap(0.5), mods.alibi(SLOPES))}),
}  # fmt: skip
HERE = {"cu_seqlens_q": ENDS, "cu_seqlens_k": KEY_ENDS, "layout": "BLHD"}


def near(out: Array, other: Array, scale: float = 0.36) -> bool:
    return bool(np.abs(np.asarray(out) - other).max() <= bound(Q, K, V, scale))


@pytest.mark.parametrize("said", SAID)
def test_a_call_is_that_of_the_loop(said: str) -> None:
    there, here = SAID[said]
    expected, expected_lse = loop(**there)
    out, lse, nothing = FLASH.attention(*POSITIONAL, **there, return_attn_probs=True)
    assert (out.shape, lse.shape, nothing) == ((9, 4, 8), (4, 9), None)
    assert near(out, expected)
    seen = np.isfinite(expected_lse)
    assert (np.isfinite(lse) == seen).all()
    assert near(lse[seen], expected_lse[seen])
    assert near(attention(Q, K, V, **HERE, **here), expected)


@pytest.mark.parametrize("said", [name for name in SAID if "slopes" not in name])
def test_what_is_said_here_is_said_there_and_means_the_same_when_it_comes_back(said: str) -> None:
    there, here = SAID[said]
    call = FLASH.from_polyattn(Q, K, V, **HERE, **here)
    options = there | ({"causal": True} if said == "one side" else {})  # which is the same
    if said == "one side":
        options.pop("window_size")
    assert {name: x for name, x in call.items() if name not in NAMES} == options
    for name, x in zip(NAMES, POSITIONAL, strict=True):
        assert np.array_equal(call[name], x), name
    assert call["cu_seqlens_q"].dtype == np.int32
    meant = FLASH.to_polyattn(**call)
    assert "query_offset" not in meant
    assert np.array_equal(attention(**meant)[0].swapaxes(0, 1), attention(Q, K, V, **HERE, **here))


@pytest.mark.parametrize("said", ["plain", "causal", "scale", "window", "causal window"])
def test_causality_is_a_window_in_torch(said: str) -> None:
    there, here = SAID[said]
    call = TORCH.from_polyattn(*map(torch.tensor, (Q, K, V)), **HERE | {"cu_seqlens_q": torch.tensor(ENDS), "cu_seqlens_k": torch.tensor(KEY_ENDS)}, **here)  # fmt: skip
    windows = {"causal": (-1, 0), "scale": (-1, 0), "window": (2, 1), "causal window": (1, 0)}
    assert call.get("window_size") == windows.get(said)
    assert call["enable_gqa"]
    assert (call["max_q"], call["max_k"]) == (LONGEST, LONGEST_KEYS)
    inspect.signature(varlen().varlen_attn).bind(**call)
    out, lse = TORCH.attention(**call, return_aux=varlen().AuxRequest(lse=True))
    expected, expected_lse = loop(**there)
    assert near(out, expected)
    assert lse.shape == expected_lse.shape
    plain = TORCH.attention(**call, return_aux=varlen().AuxRequest())
    assert near(plain, expected)  # no tuple


def test_the_signature_is_that_of_the_library() -> None:
    theirs = inspect.signature(varlen().varlen_attn).parameters
    assert [(p.name, p.default, p.keyword) for p in TORCH.parameters] == [
        (p.name, p.default, p.kind is p.KEYWORD_ONLY) for p in theirs.values()
    ]


def test_the_items_of_a_batch_are_sequences_and_may_hold_several() -> None:
    q, k, v = RNG.normal(size=(3, 2, 4, 6, 8)).astype(np.float32)
    said = FLASH.from_polyattn(q, k[:, :2], v[:, :2], is_causal=True)
    assert (said["cu_seqlens_q"].tolist(), said["max_seqlen_k"], said["causal"]) == ([0, 6, 12], 6, True)
    meant = attention(q, k[:, :2], v[:, :2], is_causal=True)
    assert near(FLASH.attention(**said).reshape(2, 6, 4, 8).swapaxes(1, 2), meant)
    ends = np.array([0, 1, 6])
    said = FLASH.from_polyattn(q, k, v, cu_seqlens_q=ends, is_causal=True)
    assert said["cu_seqlens_k"].tolist() == [0, 1, 6, 7, 12]
    assert said["max_seqlen_q"] == 5
    meant = attention(q, k, v, cu_seqlens_q=ends, is_causal=True)
    assert near(FLASH.attention(**said).reshape(2, 6, 4, 8).swapaxes(1, 2), meant)


def test_keys_that_no_sequence_shows_are_emptied_if_they_hold_nan() -> None:
    k = K.copy()
    k[2:4] = np.nan  # the keys of the sequence that has no rows
    call = FLASH.from_polyattn(Q, k, V, **HERE, is_causal=True)
    assert (call["k"][2:4] == 0).all()
    assert np.array_equal(call["k"][4:], K[4:])
    assert np.isnan(FLASH.from_polyattn(Q, k, V, **HERE, is_causal=True, repair=False)["k"][2:4]).all()


def test_others_have_a_mask_for_it_or_refuse() -> None:
    said = DIALECTS["jax.nn"].from_polyattn(Q, K, V, **HERE, is_causal=True)
    assert near(DIALECTS["jax.nn"].attention(**said)[0], loop(causal=True)[0])
    with pytest.raises(ValueError, match="only causality and windows can be said there"):
        DIALECTS["flash_attn.2"].from_polyattn(Q, K, V, **HERE)
    with pytest.raises(ValueError, match="only causality and windows can be said there"):
        FLASH.from_polyattn(Q, K, V, **HERE, mask=masks.prefix(2))


def test_traced_ends_are_passed_on() -> None:
    def f(ends: Array, key_ends: Array) -> Array:
        given = HERE | {"cu_seqlens_q": ends, "cu_seqlens_k": key_ends}
        call = FLASH.from_polyattn(*map(jnp.asarray, (Q, K, V)), **given, is_causal=True)
        assert (call["max_seqlen_q"], call["max_seqlen_k"]) == (9, 13)  # not known, but not more
        return FLASH.attention(**call)

    assert near(jax.jit(f)(ENDS, KEY_ENDS), loop(causal=True)[0])
    with pytest.raises(ValueError, match="got 2 items and traced ones; call it item by item"):
        jax.jit(lambda ends: FLASH.from_polyattn(*jnp.ones((3, 2, 1, 4, 8)), cu_seqlens_q=ends))(
            np.array([0, 4])
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_seqlen_q": 4}, "expected max_seqlen_q of at least 5, the length of the longest sequence, got 4; there it says"),
        ({"max_seqlen_k": None}, "expected max_seqlen_k of at least 5, the length of the longest sequence, got None"),
        ({"cu_seqlens_k": None}, "expected cu_seqlens_k to be an array, got NoneType; convert it"),
        ({"cu_seqlens_q": ENDS[:-1]}, "expected cu_seqlens_q to go from 0 to L = 9 and never to fall, got [0, 3, 3, 4]"),
        ({"block_table": ENDS}, "expected block_table = None, got an array of shape (5,)"),
        ({"q": Q[None]}, "and keys and values of one rank, 3, got shapes (1, 9, 4, 8), (13, 2, 8), (13, 2, 8)"),
        ({"dropout_p": 0.1}, "expected dropout_p = 0.0, got 0.1; no two libraries drop the same weights"),
    ],
)  # fmt: skip
def test_what_it_would_not_take_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        FLASH.attention(**dict(zip(NAMES, POSITIONAL, strict=True)) | change)
    assert sentence in str(error.value)
