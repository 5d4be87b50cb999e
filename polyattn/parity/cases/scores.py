"""Cases of the formula itself: what scores are made of and what is added to them."""

from __future__ import annotations

import numpy as np

from polyattn import mods
from polyattn.parity.case import Draw, Later, Sample
from polyattn.parity.cases.fixed import at, case
from polyattn.truth.spec import Spec
from polyattn.truth.threefry import kept

#: Six tokens of three numbers, small enough to be computed by hand.
SIX_TOKENS = (
    (0.42, 0.15, 0.89),
    (0.78, 0.33, 0.21),
    (0.12, 0.44, 0.67),
    (0.56, 0.91, 0.73),
    (0.34, 0.29, 0.85),
    (0.63, 0.11, 0.49),
)


@case(1)
def golden_six_tokens(d: Draw) -> Sample:
    x = d.number(SIX_TOKENS)
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


@case(1)
def scale_per_head(d: Draw) -> Sample:
    scale = d.number([0.5, 0.0, -0.25, 1.0])
    return Sample(Spec(**d.qkv(), scale=scale), {"scale": scale})


@case(1, 10)
def sinks(d: Draw) -> Sample:
    values = d.normal(4)
    return Sample(Spec(**d.qkv(), sinks=values), {"sinks": values})


@case(1)
def bias_per_item_and_head(d: Draw) -> Sample:
    bias = d.normal(2, 4, 1, 9)
    return Sample(Spec(**d.qkv(), bias=bias), {"bias": bias})


@case(11)
def dropout(d: Draw) -> Sample:
    keep = kept(2, 4, 9, 9, rate=0.25, seed=12345)
    return Sample(Spec(**d.qkv(), keep=keep), {"dropout_rate": 0.25, "dropout_seed": 12345})


@case(1, 12)
def functions_on_positions(d: Draw) -> Sample:
    q, kv = at(9, 9)
    options = {
        "mask": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + b) % 3 != 0,
        "score_mod": lambda score, b, h, q_idx, kv_idx: score * 2 + 3 * score,
    }
    b = np.arange(2)[:, None, None, None]
    return Sample(Spec(**d.qkv(), allowed=(q + kv + b) % 3 != 0, scale=5 / 8**0.5), options)


@case(1, 4, 12)
def alibi(d: Draw) -> Sample:
    q, kv = at(9, 9)
    slopes = 2.0 ** (-2.0 * np.arange(1, 5))
    spec = Spec(**d.qkv(), allowed=kv <= q, shift=-slopes[:, None, None] * abs(q - kv))
    return Sample(spec, {"score_mod": mods.alibi(4), "is_causal": True})


@case(1, 12)
def relative_position_bias(d: Draw) -> Sample:
    table = d.normal(8, 4)
    q, kv = at(9, 9)
    distance = kv - q
    # 8 buckets, two-sided: 2 exact ones, then distances 2..., 5... with max_distance 12
    size = abs(distance)
    bucket = np.where(size < 2, size, np.where(size < 5, 2, 3)) + 4 * (distance > 0)
    make = Later(lambda a: mods.relative_position_bias(a(table), max_distance=12))
    return Sample(Spec(**d.qkv(), shift=table[bucket[0, 0]].transpose(2, 0, 1)[None]), {"score_mod": make})
