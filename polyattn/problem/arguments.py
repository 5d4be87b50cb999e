"""The arguments of `attention`, one by one: checked, and brought to the form in which a Problem keeps them."""

from __future__ import annotations

import math
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from polyattn import masks, mods
from polyattn.arrays import Array, eagerly, is_array
from polyattn.calls import array, check_function, number, seed_like, seed_line, shown
from polyattn.masks.algebra import Mask
from polyattn.masks.arbitrary import Filled
from polyattn.masks.fitting import check_bools, fit_array
from polyattn.masks.tiles import FULL, Box
from polyattn.normalizers import BY_NAME, SOFTMAX, Normalizer, TopK
from polyattn.places import Places
from polyattn.problem.call import Call

CAUSAL = masks.causal()
_FILLED = Filled()


def mask(call: Call) -> Mask | None:
    """mask, is_causal, and the empty slots among key_positions, as one mask."""
    given = call.get("mask")
    parts = [] if given is None else [as_mask(call, given)]
    if call.is_causal:
        parts.append(CAUSAL)
    offset = call.get("key_offset")
    if call.get("key_positions") is not None or (
        offset is not None and not (isinstance(offset, int) and offset >= 0)
    ):
        parts.append(_FILLED)
    if not parts:
        return None
    joined = parts[0]
    for part in parts[1:]:
        joined = joined & part
    if joined is not CAUSAL:
        with eagerly(joined.arrays()):
            joined = joined.fit(call.frame)
    return None if _hides_nothing(call, joined) else joined


def as_mask(call: Call, given: Any) -> Mask:
    """A mask, an array or a function as a mask."""
    if isinstance(given, Mask):
        call.here("the arrays of mask", given.arrays())
        return given
    if isinstance(given, mods.Mod):
        raise TypeError(
            f"{call.who}: expected mask to say who may attend, got a score modification, {shown(given)}; write "
            "score_mod= in place of mask="
        )
    if callable(given):
        if call.backend.may_remember():
            check_function(call.who, "mask_mod", given, "b, h, q_idx, kv_idx", "bool", "mask=")
        return masks.mask_mod(given)
    if not is_array(given):
        raise TypeError(
            f"{call.who}: expected mask to be a bool array, a polyattn.masks mask or a function "
            f"(b, h, q_idx, kv_idx) -> bool, got {shown(given) if isinstance(given, str) else type(given).__name__}; "
            + _instead_of(given)
        )
    _refuse_causal_bias(call, "mask", given)
    check_bools(call.who, given, "mask=(mask{})", "bias=mask")
    call.here("the arrays of mask", [given])
    return masks.from_array(given)


#: Objects of other libraries in the place of a mask -> what is written.
_OBJECTS = {
    "BlockMask": "polyattn_torch.flex.from_flex makes a mask of it",
    "LowerTriangularMask": "write is_causal=True, query_offset=0",
    "LowerTriangularFromBottomRightMask": "write is_causal=True, query_offset='end'",
    "BlockDiagonalMask": "write mask=masks.segments(ids) with one id per token",
    "BlockDiagonalCausalMask": "write mask=masks.segments(ids) with one id per token, is_causal=True",
}


def _instead_of(given: Any) -> str:
    """What to write for a mask of another kind."""
    if given == "causal":  # MLX
        return "write is_causal=True"
    if isinstance(given, bool):
        return f"write is_causal={given}, or leave mask out"
    return _OBJECTS.get(type(given).__name__, "make it an array of query's library")


def _refuse_causal_bias(call: Call, name: str, given: Any) -> None:
    """One of torch.nn.attention.bias is a tensor only in name: its numbers are anything."""
    if type(given).__name__ == "CausalBias":
        where = "'end'" if given.variant.name == "LOWER_RIGHT" else 0
        raise TypeError(
            f"{call.who}: expected {name} to be an array of numbers, got a CausalBias; write is_causal=True, "
            f"query_offset={where}"
        )


def _hides_nothing(call: Call, fitted: Mask) -> bool:
    """Whether a mask is known to be full, as a window wider than the sequence is."""
    options, frame = call.options, call.frame
    query, key = options.get("query_offset"), options.get("key_offset")
    query, key = 0 if query is None else query, 0 if key is None else key
    if isinstance(query, str) and isinstance(key, int):
        query = key + frame.keys - frame.rows
    fixed = call.backend.lengths_are_fixed and call.backend.may_remember()
    if not (fixed and isinstance(query, int) and isinstance(key, int) and isinstance(frame.keys, int)):
        return False
    if call.get("query_positions") is not None or call.get("key_positions") is not None:
        return False
    return _covers(fitted, frame.rows, frame.keys, query, key) if fitted.exact else False


@lru_cache(maxsize=256)
def _covers(fitted: Mask, rows: int, keys: int, query: int, key: int) -> bool:
    if not rows or not keys or any(True for _ in fitted.arrays()):
        return False
    places = Places(query, key)
    return fitted.box(Box(range(rows), range(keys), None, None, places, places.read())) is FULL


def score_mod(call: Call) -> mods.ScoreMod | None:
    given = call.get("score_mod")
    if given is None:
        return None
    if isinstance(given, Mask):
        raise TypeError(
            f"{call.who}: expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, got the mask "
            f"{given}; write mask= in place of score_mod="
        )
    if not callable(given):
        raise TypeError(
            f"{call.who}: expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, "
            f"got {type(given).__name__}; an array of additive values goes to bias="
        )
    if call.backend.may_remember():
        for f in mods.functions(given):
            check_function(call.who, "score_mod", f, "score, b, h, q_idx, kv_idx", "score", "score_mod=")
    if isinstance(given, mods.Mod):
        call.here("the arrays of score_mod", given.arrays())
        frame, origin = call.frame, call.origin
        for mod in given.built_in():
            for noun, own, all_of_them, first in (
                ("heads", mod.heads, frame.heads, origin.head),
                ("batch items", mod.batch, frame.batch, origin.batch),
            ):
                if own not in (None, all_of_them) and isinstance(first, int) and first == 0:
                    raise ValueError(
                        f"{call.who}: expected score_mod to have parameters for {all_of_them} {noun}, got {own}; give "
                        "one slope or column per head, and per batch item only for all of them"
                    )
    return given


def bias(call: Call) -> Array | None:
    given = call.get("bias")
    if given is None:
        return None
    array(call.who, "bias", given)
    _refuse_causal_bias(call, "bias", given)
    call.here("bias", [given])
    if call.backend.compute_dtype(given.dtype) is None:
        raise TypeError(
            f"{call.who}: expected a real floating bias, got {given.dtype}; "
            "a bool mask goes to mask= (True = may attend), integers are cast by the caller"
        )
    return fit_array(given, call.frame, "bias")


def scale(call: Call, width: int) -> float | Array:
    given = call.get("scale")
    if given is None:
        return 1.0 / math.sqrt(width) if width else 1.0
    return _per_head(call, given, "scale")


def sinks(call: Call) -> Array | None:
    given = call.get("sinks")
    if given is None:
        return None
    made, xp = _per_head(call, given, "sinks"), call.backend.xp
    if isinstance(made, float):
        made = xp.reshape(call.backend.asarray(made, call.compute_dtype, call.query), (1, 1, 1, 1))
    # The largest number takes all of a row, as infinity does, and can be subtracted from itself.
    return xp.where(made == xp.inf, xp.finfo(call.compute_dtype).max, made)


def _per_head(call: Call, value: Any, name: str) -> float | Array:
    """A number, or an array of shape (), (1,) or (Hq,) as (1, Hq|1, 1, 1) in the compute dtype."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if not call.backend.may_remember() else _in_range(call, value, name)
    if not is_array(value):
        raise TypeError(
            f"{call.who}: expected {name} to be a number or an array of query's library, got "
            f"{shown(value)}; make it a float, or an array of shape (Hq,)"
        )
    call.here(name, [value])
    if call.backend.compute_dtype(value.dtype) is None:
        raise TypeError(f"{call.who}: expected {name} of a real floating dtype, got {value.dtype}; cast it")
    shape, heads = tuple(value.shape), call.frame.heads
    size = math.prod(shape)  # compared, not looked up: it may be a symbol
    alone = len(shape) < 2 or (
        shape[-2:] == (1, 1) and all(n == 1 for n in shape[:-3])
    )  # on the axis of heads
    if not alone or len(shape) > 4 or not (size == 1 or size == heads):
        raise ValueError(
            f"{call.who}: expected {name} to be a scalar or of shape ({heads},), one per query head, "
            f"got shape {shape}; pass one value per head"
        )
    return call.backend.xp.reshape(call.backend.astype(value, call.compute_dtype), (1, -1, 1, 1))


def _in_range(call: Call, value: float, name: str) -> float:
    """A number that the compute dtype has; sinks beyond are infinite."""
    most = float(call.backend.xp.finfo(call.compute_dtype).max)
    if -most <= value <= most:
        return float(value)
    if name == "sinks" and value == value:
        return math.inf if value > 0 else -math.inf
    got = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else repr(value)
    raise ValueError(
        f"{call.who}: expected {name} to be a number that {call.compute_dtype} has, got {got}; "
        + ("None is 1 / sqrt(D)" if name == "scale" else "None is without sinks")
    )


def normalizer(call: Call) -> Normalizer:
    given = call.get("normalizer")
    made = given if isinstance(given, Normalizer) else _by_name(call.who, given)
    if call.get("sinks") is not None and not made.takes_sinks:
        raise ValueError(
            f"{call.who}: expected sinks beside a softmax, got them with the normaliser {made.name}, in which one more "
            "logit has no meaning; leave them out"
        )
    if "lse" in call.wanted and made != SOFTMAX:
        raise ValueError(
            f"{call.who}: expected no wish for lse beside the normaliser {made.name}, got AuxRequest(lse=True); "
            "averages of a softmax alone are merged by it: leave it out"
        )
    return made


def _by_name(who: str, given: Any) -> Normalizer:
    named = isinstance(given, str)
    if named and given in BY_NAME:
        return BY_NAME[given]
    advice = "leave it out for the softmax"
    if named and given.lower().replace("_", "") == "topk":
        advice = "write normalizers.TopK(k)"
    elif named and (near := get_close_matches(given.lower(), BY_NAME, 1)):
        advice = f"did you mean {near[0]!r}?"
    elif isinstance(given, type) and issubclass(given, Normalizer):
        advice = f"write {given.__name__}({'k' if given is TopK else ''})"
    raise (ValueError if named else TypeError)(
        f"{who}: expected normalizer among {', '.join(map(repr, BY_NAME))}, a Sigmoid or a TopK of "
        f"polyattn.normalizers, got {shown(given)}; {advice}"
    )


def dropout_rate(call: Call) -> float:
    rate = number(call.who, "dropout_rate", call.get("dropout_rate"))
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"{call.who}: expected 0 <= dropout_rate < 1, got {rate!r}; it is the share of weights dropped"
        )
    if rate > 0.0 and call.get("dropout_seed") is None:
        raise ValueError(
            f"{call.who}: expected dropout_seed with dropout_rate = {rate!r}, got None; pass an "
            "integer that changes from step to step, or dropout_rate=0.0 outside training"
        )
    return float(rate)


def dropout_seed(call: Call) -> int | Array:
    given = call.get("dropout_seed")
    if given is None:
        return 0
    if is_array(given) and seed_line(given) is None:
        call.here("dropout_seed", [given])
    return seed_like(call.who, "dropout_seed", given)
