"""The arguments of `attention`, one by one: checked, and brought to the form in which a Problem keeps them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from polyattn import masks, mods
from polyattn.arrays import Array, backend_of, eagerly, is_array
from polyattn.masks.algebra import Mask
from polyattn.masks.arbitrary import Filled
from polyattn.masks.fitting import fit_array
from polyattn.masks.tiles import FULL, Box
from polyattn.places import Places
from polyattn.problem.call import Call

CAUSAL = masks.causal()
_FILLED = Filled()


def mask(call: Call) -> Mask | None:
    """mask, is_causal, and the empty slots among key_positions, as one mask."""
    is_causal, given = call.options.get("is_causal", False), call.get("mask")
    if not isinstance(is_causal, bool):
        raise TypeError(
            f"{call.who}: expected is_causal to be True or False, got {is_causal!r}; a mask goes to mask="
        )
    parts = [] if given is None else [_as_mask(call, given)]
    if is_causal:
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


def _as_mask(call: Call, given: Any) -> Mask:
    if isinstance(given, Mask):
        call.here("the arrays of mask", given.arrays())
        return given
    if callable(given):
        return masks.mask_mod(given)
    if not is_array(given):
        raise TypeError(
            f"{call.who}: expected mask to be a bool array, a polyattn.masks mask or a function "
            f"(b, h, q_idx, kv_idx) -> bool, got {type(given).__name__}; "
            + (
                "polyattn_torch.flex.from_flex makes a mask of it"
                if type(given).__name__ == "BlockMask"
                else "make it an array of query's library"
            )
        )
    if not backend_of(given).xp.isdtype(given.dtype, "bool"):
        raise TypeError(
            f"{call.who}: expected a bool mask (True = may attend), got dtype {given.dtype}; "
            "compare it (mask != 0), or pass values to be added to the scores as bias="
        )
    call.here("the arrays of mask", [given])
    return masks.from_array(given)


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
    if not callable(given):
        raise TypeError(
            f"{call.who}: expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, "
            f"got {type(given).__name__}; an array of additive values goes to bias="
        )
    if isinstance(given, mods.Mod):
        call.here("the arrays of score_mod", given.arrays())
        whole = call.origin.head == 0 if isinstance(call.origin.head, int) else False
        for mod in given.built_in():
            if mod.heads is not None and mod.heads != call.frame.heads and whole:
                raise ValueError(
                    f"{call.who}: expected score_mod to have parameters for {call.frame.heads} heads, got "
                    f"{mod.heads}; give one slope or column per head"
                )
    return given  # type: ignore[no-any-return]


def bias(call: Call) -> Array | None:
    given = call.get("bias")
    if given is None:
        return None
    if not is_array(given):
        raise TypeError(
            f"{call.who}: expected bias to be an array of an array API library (NumPy, JAX, PyTorch, "
            f"...), got {type(given).__name__}; convert it, for example with numpy.asarray"
        )
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
            f"{value!r}; make it a float, or an array of shape (Hq,)"
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


def dropout_rate(call: Call) -> float:
    rate = call.options.get("dropout_rate", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(
            f"{call.who}: expected dropout_rate to be a Python number, got {rate!r}; it is static"
        )
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
    seed = call.get("dropout_seed")
    if seed is None:
        return 0
    if is_array(seed):
        call.here("dropout_seed", [seed])
        if seed.ndim or not call.backend.xp.isdtype(seed.dtype, "integral"):
            raise TypeError(
                f"{call.who}: expected dropout_seed to be an integer or a 0-d integer array, got "
                f"{seed.dtype} of shape {tuple(seed.shape)}; one seed serves the whole call"
            )
        return seed
    if type(seed) is not int and (isinstance(seed, bool) or not hasattr(seed, "__index__")):
        raise TypeError(
            f"{call.who}: expected dropout_seed to be an integer or a 0-d integer array, got {seed!r}; "
            "pass a Python int"
        )
    seed = seed if type(seed) is int else seed.__index__()
    if not 0 <= seed < 2**64:
        raise ValueError(
            f"{call.who}: expected 0 <= dropout_seed < 2**64, got {seed!r}; reduce it modulo 2**64"
        )
    return int(seed)
