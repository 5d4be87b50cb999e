"""Lower precisions inside: what is rounded in passing, and caches that keep keys and values in fewer bits."""

from __future__ import annotations

from polyattn.conventions.causes.cause import Cause, always, say

__all__ = ["CACHES", "LOW", "NAMES", "ROUNDINGS"]

NAMES = {"bfloat16": "bfloat16", "tf32": "TF32", "float16": "float16"}  # the usual ones first
#: The rounding of each lower precision.
LOW = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}

_STAGES = {
    "operands": "both matrix products in {}: query, key, value and weights rounded",
    "inputs": "query, key and value rounded to {}",
    "product": "products of query and key rounded to {}",
    "scores": "scores rounded to {}",
    "weights": "weights rounded to {}",
}
_CACHE = "key and value rounded, query not: a cache in {}"
#: These round what nobody gives to a matrix product in TF32.
_NARROW = {
    "exponentials": "exp(s - max s) rounded to {}, their sum not, as a fused kernel does",
    "turned": "query and key rounded to {} after rotary",
    "query": "query rounded to {}",
    "cache": _CACHE,
    "second product": "product of weights and values in {}: both rounded",
    "throughout": "computed in {} throughout: inputs, products, scores and weights rounded",
}


def _rounding(low: str, stage: str, text: str) -> Cause:
    return Cause("precision", f"{low} {stage}", say(text.format(NAMES[low])), always)


ROUNDINGS = tuple(
    _rounding(low, stage, text)
    for low in NAMES
    for stage, text in (_STAGES if low == "tf32" else _STAGES | _NARROW).items()
)


def _cache(choice: str, what: str) -> Cause:
    return Cause("cache", choice, say(_CACHE.format(what)), always, rare=True)


CACHES = (
    _cache("float8_e4m3", "float8 (E4M3)"),
    _cache("float8_e5m2", "float8 (E5M2)"),
    _cache("int8 per token", "int8, a scale for each token of a head"),
    _cache(
        "int8 keys per channel", "int8, a scale for each channel of the keys and each token of the values"
    ),
    _cache("int8 per channel", "int8, a scale for each channel of a head"),
    _cache("int8 per tensor", "int8, one scale for all keys and one for all values")._replace(
        whole_batch=True
    ),
)
