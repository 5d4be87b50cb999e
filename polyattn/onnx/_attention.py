"""The operator Attention."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict, Unpack

from polyattn import mods
from polyattn._attention import AuxRequest, attend
from polyattn.arrays import Array, Backend
from polyattn.onnx.heads import join_heads, split_heads
from polyattn.onnx.masking import masked
from polyattn.onnx.signatures import NEWEST, arguments

__all__ = ["AttentionAttributes", "AttentionOutputs", "attention"]

_WHO = "polyattn.onnx.attention"
_DOUBLE = 11  # the numbers of dtypes in ONNX
_PRECISIONS = {1: "float32", 10: "float16", _DOUBLE: "float64", 16: "bfloat16"}
_RAW, _CAPPED, _WITH_MASK, _WEIGHTS = range(4)  # the modes of qk_matmul_output


class AttentionAttributes(TypedDict, total=False):
    """The attributes of Attention; the windows from opset 25 on."""

    is_causal: int  # 1: query i sees key j where j <= i + offset
    kv_num_heads: int  # for inputs of rank 3, and only for them
    left_window_size: int  # neighbours on the left that are seen, -1 = all
    q_num_heads: int
    qk_matmul_output_mode: int  # 0 scale q . k, 1 after softcap, 2 after mask, 3 after softmax
    right_window_size: int
    scale: float  # None = 1/sqrt(head_size)
    softcap: float  # 0 = none
    softmax_precision: int  # 1 float32, 10 float16, 11 float64, 16 bfloat16


class AttentionOutputs(NamedTuple):
    """The outputs of Attention in their order."""

    Y: Array  # as Q: (B, Hq, L, E), or (B, L, Hq * E) for inputs of rank 3
    present_key: Array | None  # (B, Hkv, P + S, D); None where the caller keeps the cache
    present_value: Array | None  # (B, Hkv, P + S, E)
    qk_matmul_output: Array | None  # (B, Hq, L, P + S), None unless four outputs are asked for


def attention(
    Q: Array,
    K: Array,
    V: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    opset: int = NEWEST,
    outputs: int = 3,
    **attributes: Unpack[AttentionAttributes],
) -> AttentionOutputs:
    """Attention of ONNX, opsets 23, 24 and 25: softmax(cap(scale Q K^T) + mask) V, with the cache of a decoder.

    Q (B, Hq, L, D), K (B, Hkv, S, D), V (B, Hkv, S, E), or all of rank 3 with the heads side by side in the
    last axis. past_key (B, Hkv, P, D) and past_value (B, Hkv, P, E) go in front of K and V. nonpad_kv_seqlen
    (B,): how many keys of a cache kept by the caller are there. attn_mask broadcasts to (B, Hq, L, P + S);
    bool: True = may attend; numbers, integers too, are added. In opset 23 its last axis fits, or has size 1;
    from 24 on a shorter one, of size 1 too, hides the keys beyond it, but must reach every key that is there.

    Query i stands at i + offset: offset is P; with nonpad_kv_seqlen its number less L; 0 without either. A row
    that sees nothing gives 0. Sums are at least float32; softmax_precision = 11 makes them float64, and a
    narrower one than they have asks for nothing. outputs: the fourth costs memory O(L S), so 4 asks for it.

    Source: the definition of the operator, onnx 1.23, errata included.

    >>> import numpy as np
    >>> x = np.array([[[[0.0], [1.0]]]], np.float32)
    >>> attention(x, x, x, is_causal=1, outputs=4, qk_matmul_output_mode=3).qk_matmul_output[0, 0].round(3)
    array([[1.   , 0.   ],
           [0.269, 0.731]], dtype=float32)
    """
    given = {
        "Q": Q,
        "K": K,
        "V": V,
        "attn_mask": attn_mask,
        "past_key": past_key,
        "past_value": past_value,
        "nonpad_kv_seqlen": nonpad_kv_seqlen,
    }
    backend, a = arguments(_WHO, "Attention", opset, given, attributes)
    if not isinstance(outputs, int) or not 1 <= outputs <= 4:
        raise ValueError(
            f"{_WHO}: expected 1 to 4 outputs, got {outputs!r}; 4 asks for qk_matmul_output, 3 is without"
        )
    if a["qk_matmul_output_mode"] not in (_RAW, _CAPPED, _WITH_MASK, _WEIGHTS):
        raise ValueError(
            f"{_WHO}: expected qk_matmul_output_mode 0, 1, 2 or 3, got {a['qk_matmul_output_mode']}; it numbers the "
            "steps of the formula"
        )
    q, k, v = _with_heads(backend, Q, K, V, a, opset)
    _dtypes(backend, given)
    _one_cache(given)
    if past_key is not None and past_value is not None:
        k, v = _append(backend, "past_key", past_key, k), _append(backend, "past_value", past_value, v)
    present_key, present_value = (k, v) if nonpad_kv_seqlen is None else (None, None)

    seen = masked(backend, a, opset, q, k, given)
    wide = _sums(backend, q, v, a["softmax_precision"])
    q, k, v = (backend.astype(x, wide) for x in (q, k, v))
    cap = mods.softcap(a["softcap"]) if a["softcap"] else None
    mode = a["qk_matmul_output_mode"] if outputs == 4 else None
    wanted = AuxRequest(scores=mode == _WITH_MASK, weights=mode == _WEIGHTS)
    out, aux = attend(_WHO, q, k, v, **seen, score_mod=cap, scale=a["scale"], return_aux=wanted)
    qk = aux.scores if mode == _WITH_MASK else aux.weights
    if mode in (_RAW, _CAPPED):
        # What hidden keys would score, which the masked call does not look at; without values, that is all of it.
        mod, everything = cap if mode == _CAPPED else None, AuxRequest(scores=True)
        qk = attend(_WHO, q, k, v[..., :0], score_mod=mod, scale=a["scale"], return_aux=everything)[1].scores
    out = backend.astype(out, Q.dtype)
    return AttentionOutputs(
        out if Q.ndim == 4 else join_heads(backend, out),
        present_key,
        present_value,
        None if qk is None else backend.astype(qk, Q.dtype),
    )


def _with_heads(
    backend: Backend, Q: Array, K: Array, V: Array, a: dict[str, Any], opset: int
) -> tuple[Array, Array, Array]:
    """Q, K and V of rank 4."""
    shapes = ", ".join(str(tuple(x.shape)) for x in (Q, K, V))
    if {Q.ndim, K.ndim, V.ndim} not in ({3}, {4}):
        raise ValueError(
            f"{_WHO}: expected Q, K and V all of rank 4 (B, H, L, D), or all of rank 3 (B, L, H * D), got {shapes}; "
            "add the axes that are missing"
        )
    if Q.ndim == 3:
        heads = {"Q": a["q_num_heads"], "K": a["kv_num_heads"], "V": a["kv_num_heads"]}
        q, k, v = (
            split_heads(_WHO, name, backend, x, heads[name]) for name, x in (("Q", Q), ("K", K), ("V", V))
        )
        return q, k, v
    for name, heads_there in (("q_num_heads", Q.shape[1]), ("kv_num_heads", K.shape[1])):
        if a[name] is not None and (opset >= 25 or a[name] != heads_there):
            raise ValueError(
                f"{_WHO}: expected no {name} with inputs of rank 4, which have {heads_there} heads there, got "
                f"{a[name]}; it says how to split inputs of rank 3"
            )
    return Q, K, V


def _dtypes(backend: Backend, given: dict[str, Array | None]) -> None:
    """Q, K and past_key of one real floating dtype, V and past_value of one."""
    for name, like in (("Q", "Q"), ("K", "Q"), ("V", "V"), ("past_key", "Q"), ("past_value", "V")):
        x, first = given[name], given[like]
        if x is not None and first is not None:
            if x.dtype != first.dtype:
                raise TypeError(
                    f"{_WHO}: expected {name} of the dtype of {like}, {first.dtype}, got {x.dtype}; cast it"
                )
            if backend.compute_dtype(x.dtype) is None:
                raise TypeError(f"{_WHO}: expected {name} of a real floating dtype, got {x.dtype}; cast it")


def _one_cache(given: dict[str, Array | None]) -> None:
    caches = [name for name in ("past_key", "past_value", "nonpad_kv_seqlen") if given[name] is not None]
    if caches not in ([], ["past_key", "past_value"], ["nonpad_kv_seqlen"]):
        raise ValueError(
            f"{_WHO}: expected past_key and past_value together and without nonpad_kv_seqlen, got "
            f"{', '.join(caches)}; the cache is kept either by the operator or by its caller"
        )


def _append(backend: Backend, name: str, past: Array, new: Array) -> Array:
    expected = (*new.shape[:2], "P", new.shape[3])
    if past.ndim != 4 or (*past.shape[:2], past.shape[3]) != (*new.shape[:2], new.shape[3]):
        raise ValueError(
            f"{_WHO}: expected {name} of shape ({', '.join(map(str, expected))}), got {tuple(past.shape)}; the "
            "past has the batch, the kv heads and the width of what comes after it, and rank 4 always"
        )
    return backend.xp.concat((past, new), axis=2)


def _sums(backend: Backend, q: Array, v: Array, precision: int | None) -> Any:
    """The dtype to compute in: that of q, or a wider one if v or softmax_precision asks for it."""
    if precision is not None and precision not in _PRECISIONS:
        raise ValueError(
            f"{_WHO}: expected softmax_precision of "
            f"{', '.join(f'{number} ({name})' for number, name in _PRECISIONS.items())}, got {precision}; "
            "these are the numbers of dtypes in ONNX"
        )
    xp = backend.xp
    compute = backend.compute_dtype(q.dtype)
    wide = xp.result_type(compute, backend.compute_dtype(v.dtype))
    if precision == _DOUBLE:
        there = xp.__array_namespace_info__().dtypes(device=backend.device(q), kind="real floating")
        if "float64" not in there:
            raise ValueError(
                f"{_WHO}: expected a library with float64 for softmax_precision = {_DOUBLE} (float64), got "
                f"{backend.name} without it; enable it (jax_enable_x64), or leave the attribute out"
            )
        wide = xp.float64
    return q.dtype if wide == compute and q.dtype == v.dtype else wide
