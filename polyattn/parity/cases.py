"""A fixed set of problems that covers every rule of the contract, each written down twice: as arguments
of `attention`, and as a `Spec` that shares nothing with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn import masks, mods, normalizers
from polyattn.parity.case import Case, Draw, Later, Sample
from polyattn.truth.spec import Floats, Spec
from polyattn.truth.threefry import kept

__all__ = ["case", "cases"]

_CASES: dict[str, Case] = {}


def case(*rules: int) -> Callable[[Callable[[Draw], Sample]], Callable[[Draw], Sample]]:
    """Adds a drawing function to the set, named after it, with the rules of the contract that it covers."""

    def add(draw: Callable[[Draw], Sample]) -> Callable[[Draw], Sample]:
        name = draw.__name__.strip("_").replace("_", " ")
        _CASES[name] = Case(name, tuple(f"rule-{rule}" for rule in rules), draw)
        return draw

    return add


def cases() -> tuple[Case, ...]:
    """All fixed cases, in order."""
    return tuple(_CASES.values())


def _at(rows: int, keys: int, offset: Any = 0) -> tuple[Floats, Floats]:
    """Positions of queries (B|1, 1, L, 1) and keys (1, 1, 1, S)."""
    offset = np.reshape(offset, (-1, 1, 1, 1))
    return np.arange(rows)[:, None] + offset, np.arange(keys)[None, None, None]


@case(1)
def golden_six_tokens(d: Draw) -> Sample:
    x = d.number(
        [
            [0.42, 0.15, 0.89],
            [0.78, 0.33, 0.21],
            [0.12, 0.44, 0.67],
            [0.56, 0.91, 0.73],
            [0.34, 0.29, 0.85],
            [0.63, 0.11, 0.49],
        ]
    )
    x4 = x[None, None]
    return Sample(Spec(x4, x4, x4, scale=1.0), {"scale": 1.0}, (x, x, x), (6, 3))


@case(1, 9)
def plain(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv()))


@case(1, 9)
def large_logits(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(amplitude=16)))


@case(1, 9)
def logits_beyond_exp(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(amplitude=400)))


@case(1, 2)
def softcap_bias_mask(d: Draw) -> Sample:
    bias = d.normal(1, 4, 9, 9)
    allowed = d.rng.random((2, 1, 9, 9)) < 0.6
    allowed[..., 0] = True
    options = {"score_mod": mods.softcap(2.0), "bias": bias, "mask": allowed}
    return Sample(Spec(**d.qkv(amplitude=4), softcap=2.0, bias=bias, allowed=allowed), options)


@case(2, 3, 4)
def masks_combine(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    n = np.array([5, 9], np.int32)
    bias = d.normal(1, 1, 9, 9)
    bias[..., 4] = -np.inf
    allowed = (kv <= q) & (kv < n[:, None, None, None])
    options = {"mask": Later(lambda a: masks.key_lengths(a(n))), "is_causal": True, "bias": bias}
    return Sample(Spec(**d.qkv(), allowed=allowed, bias=bias), options)


@case(3)
def mask_polarity(d: Draw) -> Sample:
    allowed = np.zeros((1, 1, 9, 9), bool)
    allowed[..., :5] = True
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": allowed})


@case(4)
def causal(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=kv <= q), {"is_causal": True})


@case(4)
def causal_first_rows(d: Draw) -> Sample:
    q, kv = _at(9, 5)
    return Sample(Spec(**d.qkv(keys=5), allowed=kv <= q), {"is_causal": True, "query_offset": 0})


@case(4, 6)
def causal_last_rows(d: Draw) -> Sample:
    q, kv = _at(9, 5, -4)
    return Sample(Spec(**d.qkv(keys=5), allowed=kv <= q), {"is_causal": True, "query_offset": "end"})


@case(4, 6)
def causal_offset_per_item(d: Draw) -> Sample:
    offset = np.array([3, -2], np.int32)
    q, kv = _at(5, 9, offset)
    return Sample(Spec(**d.qkv(rows=5), allowed=kv <= q), {"is_causal": True, "query_offset": offset})


@case(5)
def window(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=(q - 2 <= kv) & (kv <= q + 1)), {"mask": masks.window(2, 1)})


@case(5)
def sliding_window(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    return Sample(Spec(**d.qkv(), allowed=(q - 3 < kv) & (kv <= q)), {"mask": masks.sliding_window(3)})


@case(2, 4)
def prefix_chunks_dilation(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    allowed = (kv < 2) | ((q // 4 == kv // 4) & ~((q - kv) % 3 == 0))
    mask = masks.prefix(2) | (masks.chunked(4) & ~masks.dilated(3))
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": mask})


@case(2, 4)
def packed_documents(d: Draw) -> Sample:
    ids = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 3]], np.int32)
    q, kv = _at(9, 9)
    allowed = (ids[:, None, :, None] == ids[:, None, None, :]) & (kv <= q)
    return Sample(
        Spec(**d.qkv(), allowed=allowed), {"mask": Later(lambda a: masks.segments(a(ids))), "is_causal": True}
    )


@case(6)
def rows_that_see_nothing(d: Draw) -> Sample:
    allowed = np.ones((2, 1, 9, 9), bool)
    allowed[0, :, 2:5] = False
    allowed[1] = False
    return Sample(Spec(**d.qkv(), allowed=allowed), {"mask": allowed})


@case(6, 10)
def sinks_and_empty_rows(d: Draw) -> Sample:
    allowed = np.ones((1, 1, 9, 9), bool)
    allowed[..., 1, :] = False
    sinks = d.normal(4)
    return Sample(Spec(**d.qkv(), allowed=allowed, sinks=sinks), {"mask": allowed, "sinks": sinks})


@case(3, 7)
def poison_in_hidden_keys(d: Draw) -> Sample:
    n = np.array([4, 9], np.int32)
    arrays = d.qkv()
    k, v = arrays["k"].copy(), arrays["v"].copy()
    k[0, :, 4:], v[0, :, 4:] = np.nan, np.inf
    _, kv = _at(9, 9)
    spec = Spec(**arrays, allowed=kv < n[:, None, None, None])
    return Sample(spec, {"mask": Later(lambda a: masks.key_lengths(a(n)))}, (arrays["q"], k, v))


@case(8)
def one_kv_head(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(kv_heads=1)))


@case(8)
def as_many_kv_heads(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(kv_heads=4)))


@case(8)
def values_of_another_width(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(out_width=3)))


@case(1)
def scale_per_head(d: Draw) -> Sample:
    scale = d.number([0.5, 0.0, -0.25, 1.0])
    return Sample(Spec(**d.qkv(), scale=scale), {"scale": scale})


@case(1, 10)
def sinks(d: Draw) -> Sample:
    values = d.normal(4)
    return Sample(Spec(**d.qkv(), sinks=values), {"sinks": values})


@case(11)
def dropout(d: Draw) -> Sample:
    keep = kept(2, 4, 9, 9, rate=0.25, seed=12345)
    return Sample(Spec(**d.qkv(), keep=keep), {"dropout_rate": 0.25, "dropout_seed": 12345})


def _normalized(d: Draw, name: str, normalizer: Any, parameter: float = 0.0, **more: Any) -> Sample:
    """A causal problem whose first two rows see nothing."""
    q, kv = _at(9, 9, -2)
    spec = Spec(**d.qkv(amplitude=2), allowed=kv <= q, normalizer=name, parameter=parameter, **more)
    return Sample(spec, {"is_causal": True, "query_offset": -2, "normalizer": normalizer, **more})


@case(6, 22)
def sigmoid(d: Draw) -> Sample:
    return _normalized(d, "sigmoid", normalizers.Sigmoid(-1.5), -1.5)


@case(6, 22)
def softpick(d: Draw) -> Sample:
    return _normalized(d, "softpick", "softpick", bias=d.normal(1, 4, 9, 9))


@case(6, 22)
def sparsemax(d: Draw) -> Sample:
    return _normalized(d, "sparsemax", "sparsemax", bias=d.normal(1, 4, 9, 9))


@case(6, 22)
def entmax15(d: Draw) -> Sample:
    return _normalized(d, "entmax15", "entmax15", bias=d.normal(1, 4, 9, 9))


@case(6, 22)
def top_k_and_sinks(d: Draw) -> Sample:
    return _normalized(d, "top_k", normalizers.TopK(3), 3, sinks=d.normal(4))


@case(11, 22)
def sigmoid_and_dropout(d: Draw) -> Sample:
    keep = kept(2, 4, 9, 9, rate=0.25, seed=12345)
    options = {"normalizer": "sigmoid", "dropout_rate": 0.25, "dropout_seed": 12345}
    return Sample(Spec(**d.qkv(), keep=keep, normalizer="sigmoid"), options)


@case(1, 12)
def functions_on_positions(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    options = {
        "mask": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + b) % 3 != 0,
        "score_mod": lambda score, b, h, q_idx, kv_idx: score * 2 + 3 * score,
    }
    b = np.arange(2)[:, None, None, None]
    return Sample(Spec(**d.qkv(), allowed=(q + kv + b) % 3 != 0, scale=5 / 8**0.5), options)


@case(1, 4, 12)
def alibi(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    slopes = 2.0 ** (-2.0 * np.arange(1, 5))
    spec = Spec(**d.qkv(), allowed=kv <= q, shift=-slopes[:, None, None] * abs(q - kv))
    return Sample(spec, {"score_mod": mods.alibi(4), "is_causal": True})


@case(1, 12)
def relative_position_bias(d: Draw) -> Sample:
    table = d.normal(8, 4)
    q, kv = _at(9, 9)
    distance = kv - q
    # 8 buckets, two-sided: 2 exact ones, then distances 2..., 5... with max_distance 12
    size = abs(distance)
    bucket = np.where(size < 2, size, np.where(size < 5, 2, 3)) + 4 * (distance > 0)
    make = Later(lambda a: mods.relative_position_bias(a(table), max_distance=12))
    return Sample(Spec(**d.qkv(), shift=table[bucket[0, 0]].transpose(2, 0, 1)[None]), {"score_mod": make})


@case(13)
def layout_blhd(d: Draw) -> Sample:
    spec = Spec(**d.qkv(out_width=5))
    q, k, v = (x.swapaxes(1, 2).copy() for x in (spec.q, spec.k, spec.v))
    return Sample(spec, {"layout": "BLHD"}, (q, k, v))


@case(14)
def no_keys(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(keys=0)))


@case(14)
def no_queries(d: Draw) -> Sample:
    return Sample(Spec(**d.qkv(rows=0)))


@case(2, 3, 6)
def query_and_key_lengths(d: Draw) -> Sample:
    q, kv = _at(9, 9)
    allowed = (q < np.array([3, 9])[:, None, None, None]) & (kv < np.array([3, 0])[:, None, None, None])
    return Sample(
        Spec(**d.qkv(), allowed=allowed), {"mask": masks.query_lengths([3, 9]) & masks.key_lengths([3, 0])}
    )


@case(1)
def bias_per_item_and_head(d: Draw) -> Sample:
    bias = d.normal(2, 4, 1, 9)
    return Sample(Spec(**d.qkv(), bias=bias), {"bias": bias})


@case(13)
def rank_three(d: Draw) -> Sample:
    arrays = d.qkv(batch=1, heads=3, kv_heads=3)
    q, k, v = (arrays[name][0] for name in "qkv")
    return Sample(Spec(**arrays), {}, (q, k, v), (3, 9, 8))


@case(1, 8, 9)
def many_keys(d: Draw) -> Sample:
    return Sample(
        Spec(**d.qkv(batch=1, heads=2, kv_heads=1, rows=67, keys=131, width=33, out_width=17, amplitude=4))
    )
