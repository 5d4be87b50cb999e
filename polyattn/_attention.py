"""The one function: check, choose an implementation, run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, Unpack, overload

from polyattn import mods
from polyattn.arrays import Array, is_array
from polyattn.calls import answers, real, shown
from polyattn.draw import heat_maps, html_table, range_of
from polyattn.implementations import Blockwise, Fused, Reference, choose
from polyattn.implementations.blockwise import BLOCKWISE, with_derivative
from polyattn.normalizers import SOFTMAX
from polyattn.problem import AuxRequest, Options, Problem, pose, say
from polyattn.problem.call import same_place
from polyattn.problem.options import spelled_out

__all__ = ["AttentionAux", "AuxRequest", "Wish", "attend", "attention", "attention_vjp"]

WHO = "polyattn.attention"
Wish = Literal["auto", "reference", "blockwise", "fused", "native"] | Reference | Blockwise | Fused
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class AttentionAux:
    """Intermediate values of one call, in the compute dtype (at least float32); None where not requested."""

    lse: Array | None = None  # (..., Hq, L) natural log of the sum of exp(score) over the keys, sink excluded
    weights: Array | None = None  # (..., Hq, L, S) after the normaliser, before dropout
    scores: Array | None = None  # (..., Hq, L, S) before the normaliser, -inf where hidden
    max_scores: Array | None = None  # (..., Hq, L) largest score, -inf where a row sees nothing
    implementation: str = "reference"  # what ran

    def _repr_html_(self) -> str:
        """In a notebook: what there is, and the weights of the first item where they are few enough to see."""
        there = [(f.name, value) for f in fields(self) if is_array(value := getattr(self, f.name))]
        rows = [
            (
                name,
                str(tuple(value.shape)),
                str(value.dtype).rpartition(".")[2],
                "-" if (span := range_of(value)) is None else f"{span[0]:.4g} .. {span[1]:.4g}",
            )
            for name, value in there
        ]
        table = html_table(
            ("aux", "shape", "dtype", "range"), [*rows, ("implementation", self.implementation, "", "")]
        )
        return table + ("" if self.weights is None else heat_maps(self.weights))


@overload
def attention(
    query: A,
    key: A,
    value: A,
    *,
    return_aux: None = ...,
    implementation: Wish = ...,
    **options: Unpack[Options],
) -> A: ...
@overload
def attention(
    query: A,
    key: A,
    value: A,
    *,
    return_aux: AuxRequest,
    implementation: Wish = ...,
    **options: Unpack[Options],
) -> tuple[A, AttentionAux]: ...
@answers("polyattn.attention")
@spelled_out
def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    return_aux: AuxRequest | None = None,
    implementation: Wish = "auto",
    **options: Unpack[Options],
) -> Any:
    """Scaled dot-product attention, softmax(scale Q K^T) V, on arrays of any array API library.

    Shapes: query (..., Hq, L, D), key (..., Hkv, S, D), value (..., Hkv, S, E) -> (..., Hq, L, E), of
    query's dtype; with layout "BLHD" the two axes before the last change places. Hkv divides Hq: query
    head h reads kv head h // (Hq // Hkv). Leading axes broadcast; rank 2 is one head. Order of work:

        s = scale (q . k);  s = score_mod(s);  s = s + bias;  s = -inf where hidden
        w = normalizer([s, sink]);  out = dropout(w) @ v

    mask: bool array broadcasting to (..., Hq, L, S), a mask of `polyattn.masks`, or a function
    mask_mod(b, h, q, kv); True = may attend. is_causal adds `masks.causal()`. bias: real array,
    broadcasting likewise; -inf also hides. score_mod: see `polyattn.mods`. scale: number or (Hq,) array;
    None = 1/sqrt(D). sinks: scalar or (Hq,) extra logits. normalizer: "softmax", "sigmoid", "softpick", "sparsemax",
    "entmax15", or a value of `polyattn.normalizers`. dropout_rate, dropout_seed: the same seed
    drops the same weights on every library. query_offset, key_offset: position of row 0 and key 0, an integer,
    one per batch item, or "end" (= S - L) for the queries; query_positions, key_positions: those of every row
    (L,) or (B, L) and key (S,) or (B, S), negative for a key slot that is empty. cu_seqlens_q, cu_seqlens_k: where
    packed documents end, (n + 1,) as FlashAttention's varlen calls have it, (T, H, D) being layout "BLHD"; they do
    not see each other, and in each of them positions begin anew and its last row stands at its last key. return_aux: an `AuxRequest`;
    an `AttentionAux` comes too. implementation: "reference" is the definition; "blockwise" needs memory O(L + S);
    "fused" is that engine compiled to a kernel; "native" is the library's own kernel where that is exact; "auto"
    chooses, and aux.implementation tells.

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
    return attend(WHO, query, key, value, return_aux=return_aux, implementation=implementation, **options)


def attend(
    who: str,
    query: Array,
    key: Array,
    value: Array,
    *,
    return_aux: AuxRequest | None = None,
    implementation: Any = "auto",
    **options: Any,
) -> Any:
    """`attention` for a layer, cache or adapter: errors speak in the name of the function that the user called."""
    if return_aux is not None and not isinstance(return_aux, AuxRequest):
        meant = return_aux if isinstance(return_aux, str) and return_aux in AuxRequest._fields else "lse"
        raise TypeError(
            f"{who}: expected return_aux to be an AuxRequest or None, got {shown(return_aux)}; "
            f"write return_aux=AuxRequest({meant}=True)"
        )
    wanted = () if return_aux is None else return_aux.names(who)
    problem = pose(who, query, key, value, wanted=wanted, **options)
    chosen = choose(problem, implementation)
    found = chosen.run(problem)
    leave = problem.axes.leave
    out = leave(problem.backend.astype(found.out, problem.q.dtype), width=True)
    if return_aux is None:
        return out
    values = {name: leave(getattr(found, name), width=False) for name in wanted}
    return out, AttentionAux(**values, implementation=chosen.implementation.name)


@answers("polyattn.attention_vjp")
@spelled_out
def attention_vjp(
    query: A,
    key: A,
    value: A,
    *,
    implementation: Literal["blockwise"] | Blockwise = "blockwise",
    **options: Unpack[Options],
) -> tuple[A, Callable[..., dict[str, Any]]]:
    """`attention` and its pullback, on any array library: derivatives for NumPy too.

        out, pullback = attention_vjp(query, key, value, ...)
        gradients = pullback(d_out)      # or pullback(d_out, d_lse)

    Takes the arguments of `attention` but for return_aux. The pullback maps the gradient of a loss for out
    (and for lse, if the loss has it) to those for "query", "key", "value", and for "bias", "sinks" and "scale"
    where these are arrays, in the shapes and dtypes of the arguments; for "score_mod" a tuple, one for each of
    the arrays that the modification holds, in the order of `score_mod.arrays()`. It recomputes the scores tile by
    tile, so that memory stays O(L + S). A score_mod must be one of `polyattn.mods`, or the library have autodiff.

    Source: Dao 2022, arXiv:2205.14135, appendix B.4.

    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> out, pullback = attention_vjp(x, x, x, scale=0.0)
    >>> pullback(np.ones((2, 2)))["value"]
    array([[1., 1.],
           [1., 1.]])
    """
    who = f"{WHO}_vjp"
    if not (
        isinstance(implementation, Blockwise)
        or (isinstance(implementation, str) and implementation == "blockwise")
    ):
        raise ValueError(
            f"{who}: expected implementation 'blockwise' or a Blockwise, got "
            f"{shown(implementation)}; the pullback is that of the blockwise engine"
        )
    p = pose(who, query, key, value, **options)
    if unlisted := p.features - BLOCKWISE.accepts:
        raise NotImplementedError(
            f"{who}: expected a problem that the blockwise engine computes, got one with {say(unlisted)}; differentiate "
            "attention itself, on NumPy with polyattn.gradients.vjp"
        )
    xp, astype, axes = p.backend.xp, p.backend.astype, p.axes
    given: dict[str, Any] = {"query": query, "key": key, "value": value}
    given |= {name: options[name] for name in ("scale", "bias", "sinks") if is_array(options.get(name))}
    (out, lse), derivative = with_derivative(
        p, implementation if isinstance(implementation, Blockwise) else Blockwise()
    )
    held = mods.parameters(options.get("score_mod"))

    def cotangent(name: str, x: Array, width: int | None) -> Array:
        _check_cotangent(p, name, x, axes.shape_of(p.frame, width))
        return axes.enter_cotangent(x, p.frame, width=width is not None)

    @answers(f"{who}: pullback")
    def pullback(d_out: A, d_lse: A | None = None) -> dict[str, Any]:
        if d_lse is not None and p.normalizer != SOFTMAX:
            raise ValueError(
                f"{who}: pullback: expected no d_lse beside the normaliser {p.normalizer.name}, got one; "
                "lse is that of the softmax: leave it out"
            )
        of_lse = xp.zeros_like(lse) if d_lse is None else cotangent("d_lse", d_lse, None)
        found = derivative(cotangent("d_out", d_out, p.v.shape[-1]), of_lse)
        gradients = dict(zip(("query", "key", "value", "scale", "bias", "sinks"), found[:-1], strict=True))
        named: dict[str, Any] = {
            name: astype(
                axes.leave_gradient(gradients[name], x, qkv=name in ("query", "key", "value")), x.dtype
            )
            for name, x in given.items()
            if gradients[name] is not None  # a NumPy scalar is a number
        }
        if held:
            named["score_mod"] = tuple(astype(d, x.dtype) for d, x in zip(found.mod, held, strict=True))
        return named

    return axes.leave(astype(out, p.q.dtype), width=True), pullback


def _check_cotangent(p: Problem, name: str, given: Any, shape: tuple[int, ...]) -> None:
    """The gradient of a loss for a result must be an array like that result."""
    if is_array(given):
        same_place(p.who, p.backend, p.q, name, [given])
    real(p.who, name, given)
    if tuple(given.shape) != shape:
        result = name.removeprefix("d_")
        raise ValueError(
            f"{p.who}: expected {name} of the shape of {result}, {shape}, got {tuple(given.shape)}; it is the "
            f"gradient of a loss for {result}"
        )
