"""Cases of other normalisers than the softmax."""

from __future__ import annotations

from typing import Any

from polyattn import normalizers
from polyattn.parity.case import Draw, Sample
from polyattn.parity.cases.fixed import at, case
from polyattn.truth.spec import Spec
from polyattn.truth.threefry import kept


def _normalized(d: Draw, name: str, normalizer: Any, parameter: float = 0.0, **more: Any) -> Sample:
    """A causal problem whose first two rows see nothing."""
    q, kv = at(9, 9, -2)
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
