"""Short causal convolution: every channel is mixed with its own last few tokens, and the last ones are the state."""

from __future__ import annotations

from polyattn.arrays import Array, Backend
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, array, real

__all__ = ["causal_convolution"]


@answers("polyattn.convolution.causal_convolution")
def causal_convolution(
    x: SameArray, weight: Array, bias: Array | None = None, *, tail: Array | None = None
) -> tuple[SameArray, SameArray]:
    """Each channel c by itself, over the token t and the k - 1 before it: the outputs, and the next tail.

        out_tc = bias_c + sum_(i < k) weight_ic x_(t-k+1+i)c

    x (..., T, C); weight (k, C), whose last row meets the token itself; bias (C,). tail (..., k - 1, C): the tokens
    before x, zeros where left out. The tail that is returned goes into the call for the tokens that follow, so that a
    sequence may come in pieces of any length: (out, tail) of the whole are those of its pieces, one after the other.

    torch.nn.Conv1d(C, C, k, groups=C, padding=k - 1) has the weight (C, 1, k), and k - 1 tokens too many at the end.
    Recurrent layers apply it to queries, keys and values, with a SiLU behind it (`polyattn.layers.GatedDeltaNet`):
    Gu and Dao 2023, arXiv:2312.00752; Yang 2024, arXiv:2412.06464.

    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> out, tail = causal_convolution(x, np.array([[10.0], [1.0]]))
    >>> out[:, 0].tolist(), tail.tolist()  # 10 * the token before + the token
    ([1.0, 12.0, 23.0], [[3.0]])
    """
    return convolve("polyattn.convolution.causal_convolution", x, weight, bias, tail)


def convolve(
    who: str, x: Array, weight: Array, bias: Array | None, tail: Array | None
) -> tuple[Array, Array]:
    """`causal_convolution` for a layer: errors speak in the name of what the user called."""
    backend = _check(who, x, weight, bias, tail)
    xp, compute = backend.xp, backend.compute_dtype(x.dtype)
    *lead, tokens, channels = x.shape
    before = weight.shape[0] - 1
    if tail is None:
        tail = xp.zeros((*lead, before, channels), dtype=x.dtype, device=backend.device(x))
    every = xp.concat((tail, x), axis=-2)
    wide, weight = backend.astype(every, compute), backend.astype(weight, compute)
    out = weight[0, :] * wide[..., :tokens, :]
    for i in range(1, before + 1):
        out = out + weight[i, :] * wide[..., i : i + tokens, :]
    if bias is not None:
        out = out + backend.astype(bias, compute)
    return backend.astype(out, x.dtype), every[..., tokens:, :]


def _check(who: str, x: Array, weight: Array, bias: Array | None, tail: Array | None) -> Backend:
    backend = real(who, "x", x)
    if x.ndim < 2:
        raise ValueError(
            f"{who}: expected x of shape (..., tokens, channels), got {tuple(x.shape)}; add the axes that are missing"
        )
    optional = {name: given for name, given in (("bias", bias), ("tail", tail)) if given is not None}
    for name, given in {"weight": weight, **optional}.items():
        if array(who, name, given) is not backend:
            raise TypeError(
                f"{who}: expected {name} to be an array of the library of x, {backend.name}, got one of "
                f"{array(who, name, given).name}; convert it"
            )
        if given.dtype != x.dtype:
            raise TypeError(
                f"{who}: expected {name} of the dtype of x, {x.dtype}, got {given.dtype}; cast one of the two"
            )
    *lead, _, channels = x.shape
    if weight.ndim != 2 or weight.shape[1] != channels or not weight.shape[0]:
        raise ValueError(
            f"{who}: expected weight of shape (k, {channels}), a row for each of k >= 1 tokens, got "
            f"{tuple(weight.shape)}; the weight of torch.nn.Conv1d is weight[:, 0, :].T"
        )
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(
            f"{who}: expected bias of shape ({channels},), a number for each channel, got {tuple(bias.shape)}; reshape it"
        )
    before = (*lead, weight.shape[0] - 1, channels)
    if tail is not None and tuple(tail.shape) != before:
        raise ValueError(
            f"{who}: expected tail of shape {before} beside x of shape {tuple(x.shape)} and weight of shape "
            f"{tuple(weight.shape)}, got {tuple(tail.shape)}; a tail is what the call before returned"
        )
    return backend
