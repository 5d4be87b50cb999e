"""The one function: check, choose an implementation, run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

from polyattn.arrays import Array, is_array
from polyattn.implementations.blockwise.plan import Blockwise
from polyattn.implementations.blockwise.rule import blockwise_vjp
from polyattn.implementations.choice import Reference, choose
from polyattn.masks.algebra import Mask
from polyattn.mods import ScoreMod
from polyattn.normalizers import softmax
from polyattn.problem.problem import pose

Implementation = Literal["auto", "reference", "blockwise", "native"] | Reference | Blockwise


class AuxRequest(NamedTuple):
    """Which intermediate values `attention` returns beside its result."""

    lse: bool = False
    weights: bool = False
    scores: bool = False
    max_scores: bool = False


@dataclass(frozen=True, eq=False)
class AttentionAux:
    """Intermediate values of one call, in the compute dtype (at least float32); None where not requested."""

    lse: Array | None = None  # (..., Hq, L) natural log of the sum of exp(score) over the keys, sink excluded
    weights: Array | None = None  # (..., Hq, L, S) after softmax, before dropout
    scores: Array | None = None  # (..., Hq, L, S) before softmax, -inf where hidden
    max_scores: Array | None = None  # (..., Hq, L) largest score, -inf where a row sees nothing
    implementation: str = "reference"  # what ran


@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | Callable[[Array, Array, Array, Array], Array] | None = ...,
    bias: Array | None = ...,
    score_mod: ScoreMod | None = ...,
    is_causal: bool = ...,
    query_offset: int | Literal["end"] | Array | None = ...,
    scale: float | Array | None = ...,
    sinks: float | Array | None = ...,
    dropout_rate: float = ...,
    dropout_seed: int | Array | None = ...,
    layout: Literal["BHLD", "BLHD"] = ...,
    return_aux: None = ...,
    implementation: Implementation = ...,
) -> Array: ...
@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | Callable[[Array, Array, Array, Array], Array] | None = ...,
    bias: Array | None = ...,
    score_mod: ScoreMod | None = ...,
    is_causal: bool = ...,
    query_offset: int | Literal["end"] | Array | None = ...,
    scale: float | Array | None = ...,
    sinks: float | Array | None = ...,
    dropout_rate: float = ...,
    dropout_seed: int | Array | None = ...,
    layout: Literal["BHLD", "BLHD"] = ...,
    return_aux: AuxRequest,
    implementation: Implementation = ...,
) -> tuple[Array, AttentionAux]: ...
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | Callable[[Array, Array, Array, Array], Array] | None = None,
    bias: Array | None = None,
    score_mod: ScoreMod | None = None,
    is_causal: bool = False,
    query_offset: int | Literal["end"] | Array | None = None,
    scale: float | Array | None = None,
    sinks: float | Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: int | Array | None = None,
    layout: Literal["BHLD", "BLHD"] = "BHLD",
    return_aux: AuxRequest | None = None,
    implementation: Implementation = "auto",
) -> Array | tuple[Array, AttentionAux]:
    """Scaled dot-product attention, softmax(scale Q K^T) V, on arrays of any array API library.

    Shapes: query (..., Hq, L, D), key (..., Hkv, S, D), value (..., Hkv, S, E) -> (..., Hq, L, E), of
    query's dtype; with layout "BLHD" the two axes before the last change places. Hkv divides Hq: query
    head h reads kv head h // (Hq // Hkv). Leading axes broadcast; rank 2 is one head. Order of work:

        s = scale (q . k);  s = score_mod(s);  s = s + bias;  s = -inf where hidden
        w = softmax([s, sink]);  out = dropout(w) @ v

    mask: bool array broadcasting to (..., Hq, L, S), a mask of `polyattn.masks`, or a function
    mask_mod(b, h, q, kv); True = may attend. is_causal adds `masks.causal()`. bias: real array,
    broadcasting likewise; -inf also hides. score_mod: see `polyattn.mods`. query_offset: position of
    query row 0, an integer, one per batch item, or "end" (= S - L). scale: number or (Hq,) array;
    None = 1/sqrt(D). sinks: scalar or (Hq,) extra logits. dropout_rate, dropout_seed: the same seed
    drops the same weights on every library. return_aux: an `AuxRequest`; an `AttentionAux` comes too.
    implementation: "reference" is the definition; "blockwise" needs memory O(L + S); "native" is the
    library's own kernel where that is exact; "auto" chooses, and aux.implementation tells.

    A row that sees no key gives 0 and gradient 0. Errors: TypeError for wrong dtypes and libraries,
    ValueError for wrong shapes and values. Source: Vaswani 2017, arXiv:1706.03762, equation 1.

    >>> import numpy as np
    >>> from polyattn import attention
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> attention(x, x, x, is_causal=True)
    array([[0.        ],
           [0.73105858],
           [1.85093709]])
    """
    problem = pose(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        sinks=sinks,
        dropout_rate=dropout_rate,
        dropout_seed=dropout_seed,
        layout=layout,
    )
    if return_aux is not None and not isinstance(return_aux, AuxRequest):
        raise TypeError(
            f"polyattn.attention: expected return_aux to be an AuxRequest or None, got {return_aux!r}; "
            "write return_aux=AuxRequest(lse=True)"
        )
    wanted = return_aux or AuxRequest()
    chosen = choose(problem, wanted.weights or wanted.scores or wanted.max_scores, wanted.lse, implementation)
    result = chosen.run(problem)
    out = problem.restore(problem.backend.astype(result.out, query.dtype), 1)
    if return_aux is None:
        return out
    weights = softmax.weights(result.scores, result.seen) if wanted.weights else None
    return out, AttentionAux(
        lse=problem.restore(result.lse, 0) if wanted.lse else None,
        weights=None if weights is None else problem.restore(weights, 0),
        scores=problem.restore(result.scores, 0) if wanted.scores else None,
        max_scores=problem.restore(result.keys.top[..., 0], 0) if wanted.max_scores else None,
        implementation=chosen.name,
    )


def attend(who: str, query: Array, key: Array, value: Array, **options: Any) -> Any:
    """`attention` for a layer, cache or adapter: errors speak in the name of the function that the user called."""
    try:
        return attention(query, key, value, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("polyattn.attention", who, 1)) from None


def attention_vjp(
    query: Array,
    key: Array,
    value: Array,
    *,
    implementation: Literal["blockwise"] | Blockwise = "blockwise",
    **options: Any,
) -> tuple[Array, Callable[..., dict[str, Array]]]:
    """`attention` and its pullback, on any array library: derivatives for NumPy too.

        out, pullback = attention_vjp(query, key, value, ...)
        gradients = pullback(d_out)      # or pullback(d_out, d_lse)

    Takes the arguments of `attention` but for return_aux. The pullback maps the gradient of a loss for out
    (and for lse, if the loss has it) to those for "query", "key", "value", and for "bias", "sinks" and "scale"
    where these are arrays, in the shapes and dtypes of the arguments. It recomputes the scores tile by tile,
    so that memory stays O(L + S). A score_mod must be one of `polyattn.mods`, or the library have autodiff.

    Source: Dao 2022, arXiv:2205.14135, appendix B.4.

    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> out, pullback = attention_vjp(x, x, x, scale=0.0)
    >>> pullback(np.ones((2, 2)))["value"]
    array([[1., 1.],
           [1., 1.]])
    """
    if implementation != "blockwise" and not isinstance(implementation, Blockwise):
        raise ValueError(
            "polyattn.attention_vjp: expected implementation 'blockwise' or a Blockwise, got "
            f"{implementation!r}; the pullback is that of the blockwise engine"
        )
    p = pose(query, key, value, **options)
    xp, astype = p.backend.xp, p.backend.astype
    wish = implementation if isinstance(implementation, Blockwise) else Blockwise()
    given = {"query": query, "key": key, "value": value}
    given |= {name: options[name] for name in ("bias", "sinks", "scale") if is_array(options.get(name))}
    out_shape = tuple(p.restore(xp.zeros((*p.scores_shape[:3], value.shape[-1])), 1).shape)
    out, lse, pull = blockwise_vjp(p, wish)

    def pullback(d_out: Array, d_lse: Array | None = None) -> dict[str, Array]:
        if tuple(d_out.shape) != out_shape:
            raise ValueError(
                f"polyattn.attention_vjp: expected d_out of the shape of out, {out_shape}, got "
                f"{tuple(d_out.shape)}; it is the gradient of a loss for out"
            )
        d_lse = xp.zeros_like(lse) if d_lse is None else p.admit(d_lse, 0)
        gradients = pull(p.admit(d_out, 1), d_lse)
        found = dict(zip(("query", "key", "value", "bias", "sinks", "scale"), gradients, strict=False))
        return {name: astype(p.dismiss(name, found[name], x), x.dtype) for name, x in given.items()}

    return p.restore(astype(out, query.dtype), 1), pullback
