"""A call in a foreign dialect as arguments of `polyattn.attention`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add, and_
from typing import Any

from polyattn import masks, mods
from polyattn._attention import AttentionAux, AuxRequest, attend
from polyattn.arrays import Array, is_array, readable
from polyattn.dialects.foreign_call import ForeignCall
from polyattn.dialects.layout import pack, unpack
from polyattn.dialects.record import Record

__all__ = ["Meaning", "to_polyattn"]


@dataclass(frozen=True)
class Meaning:
    """What a foreign call means, and how its result is given back."""

    who: str
    arguments: dict[str, Any]
    give: Callable[[Array, AttentionAux], Any]
    request: AuxRequest

    def run(self) -> Any:
        return self.give(*attend(self.who, **self.arguments, return_aux=self.request))


def to_polyattn(
    d: Record, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str = "to_polyattn"
) -> Meaning:
    """The meaning of a call; method: the one that the user called."""
    return _Translation(d, d.who(method), args, kwargs).meaning()


class _Translation(ForeignCall):
    """One foreign call, taken apart into what is hidden, what is added, and functions of scores."""

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
        self.hides: list[masks.Mask] = []
        self.adds: list[Array] = []  # rank 4
        self.mods: list[mods.ScoreMod] = []

    def meaning(self) -> Meaning:
        self.operands()
        if (rate := self.given.get("dropout") or 0.0) != 0.0:
            instead = "call polyattn.attention with dropout_rate and dropout_seed"
            raise self.wrong("dropout", "= 0.0", rate, f"no two libraries drop the same weights: {instead}")
        sequences = self.sequences()
        arguments: dict[str, Any] = {"query": self.q, "key": self.k, "value": self.v, **sequences}
        causal, offset = self.causality()
        windowed = self.window()
        for role in ("mask", "padding"):
            self.mask(role)
        for role in ("bias", "more_bias"):
            self.bias(role)
        for role, make in (
            ("key_lengths", masks.key_lengths),
            ("query_lengths", masks.query_lengths),
            ("nonpad", masks.key_lengths),
        ):
            if self.has(role):
                self.hides.append(make(self.given[role]))
        self.last_keys()
        self.functions()
        for role in ("scale", "sinks"):
            if self.has(role):
                arguments[role] = self.given[role]
        if self.flag("zero_sink"):
            arguments["sinks"] = 0.0
        if self.hides:
            arguments["mask"] = reduce(and_, self.hides)
        if self.adds:
            arguments["bias"] = reduce(add, self.adds)
        if self.mods:
            arguments["score_mod"] = self.mods[0] if len(self.mods) == 1 else mods.compose(*self.mods)
        if causal:
            arguments["is_causal"] = True
        positional = not sequences and (causal or windowed or self.mods or self.has("block_mask"))
        if positional and (is_array(offset) or offset != 0 or self.q.shape[2] != self.k.shape[2]):
            arguments["query_offset"] = offset
        return Meaning(self.who, arguments, *self.giving())

    # arrays

    def operands(self) -> None:
        layout, xp = self.d.answers["layout"].choice, self.backend.xp
        q, k, v = (self.given[role] for role in ("query", "key", "value"))
        self.rank, heads = q.ndim, self.given.get("heads")
        packed = layout in ("LB(HD)", "B(L HD)", "BL(HD)") or (heads is not None and q.ndim == 3)
        if layout == "LB(HD)" and self.flag("batch_first") and q.ndim == 3:
            layout = "B(L HD)"
        if packed and layout == "BHLD":  # ONNX with heads side by side
            layout = "BL(HD)"
        self.layout = layout
        of_rank = {"BLHD": (3, 4), "THD": (3,), "LHD": (3,), "BL(HD)": (3,), "LBHD": (4,)}
        ranks = of_rank.get(layout, (2, 3) if packed else (2, 3, 4))
        if any(x.ndim != q.ndim or x.ndim not in ranks for x in (q, k, v)):
            raise self.wrong(
                "query",
                f"and keys and values of one rank, {' or '.join(map(str, ranks))}",
                f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
                f"give them the axes {self.d.choice('layout').says}",
            )
        kv_heads = self.given.get("kv_heads") or heads
        if packed and (not heads or q.shape[-1] % heads or k.shape[-1] % kv_heads):
            got = f"{heads!r} and width {q.shape[-1]}"
            raise self.wrong("heads", "to divide the width", got, "pass the number of heads")
        self.q = unpack(layout, q, heads or 0)
        self.k, self.v = (unpack(layout, x, kv_heads or 0) for x in (k, v))
        self.past = 0
        if self.has("past_key") != self.has("past_value"):
            raise self.wrong("past_key", "and past_value together", "one of them", "pass both or none")
        if self.has("past_key"):
            self.past = self.given["past_key"].shape[2]
            self.k = xp.concat([self.given["past_key"], self.k], axis=2)
            self.v = xp.concat([self.given["past_value"], self.v], axis=2)
        self.scores = (*self.q.shape[:3], self.k.shape[2])
        heads, kv_heads = self.q.shape[1], self.k.shape[1]
        if heads == kv_heads or not kv_heads or heads % kv_heads:
            return
        groups = f"{heads} query heads and {kv_heads} kv heads"
        if self.d.chose("grouped heads", "none"):
            advice = f"{self.d.name} has no grouped heads: repeat the kv heads"
            raise self.wrong("key", "with as many heads as query", groups, advice)
        if self.d.chose("grouped heads", "h // G, flag") and not self.flag("gqa") and kv_heads > 1:
            raise self.wrong(
                "gqa", "= True", f"False with {groups}", "pass True, grouped heads are by request there"
            )
        if self.d.chose("grouped heads", "h % Hkv"):
            self.k, self.v = (xp.concat([x] * (heads // kv_heads), axis=1) for x in (self.k, self.v))

    def sequences(self) -> dict[str, Array]:
        """Where packed sequences end, whose last query stands at their last key there as here."""
        found = {}
        for side in "qk":
            ends, longest = (self.given.get(f"{role}_{side}") for role in ("ends", "longest"))
            if self.d.of(f"ends_{side}") is None:
                continue
            if not is_array(ends):
                raise self.no_array(f"ends_{side}", ends)
            if readable(ends) and ends.ndim == 1:
                lengths = self.backend.to_list(ends[1:] - ends[:-1])
                if longest is None or int(longest) < max(lengths, default=0):
                    least = f"of at least {max(lengths, default=0)}, the length of the longest sequence"
                    raise self.wrong(f"longest_{side}", least, longest, "there it says how far is computed")
            found[f"cu_seqlens_{side}"] = ends
        return found

    # what is hidden

    def causality(self) -> tuple[bool, Any]:
        """Whether the call is causal, and the position of query row 0."""
        d, length, masked = self.d, self.q.shape[2], self.has("mask")
        offset: Any = "end" if d.aligns_last else self.past
        if self.has("nonpad"):
            if self.past:
                raise self.wrong(
                    "nonpad", "without past_key", "both", "a cache is inside or outside: leave one out"
                )
            offset = self.backend.astype(self.given["nonpad"], self.backend.xp.int32) - length
        if "mask_word" in self.given:
            return self.worded(length)
        if "causal" in self.given and self.given["causal"] is None:  # Hugging Face: the module decides
            self.given["causal"] = getattr(self.given["module"], "is_causal", True)
        causal = self.flag("causal")
        if causal and masked and d.chose("mask and causal", "kernel"):
            advice = (
                "the library documents that as an error and its kernels differ; put causality into the mask"
            )
            raise self.wrong("causal", "or a mask", "both", advice)
        if causal and not masked and d.chose("causal", "hint"):
            advice = f"the flag is a hint there; pass {self.name('mask')}"
            raise self.wrong("causal", "with a mask that says it", "no mask", advice)
        if (masked and d.chose("mask and causal", "mask")) or d.chose("causal", "hint"):
            causal = False
        if length == 1 and (d.aligns_last or d.chose("causal", "first rows unless alone")):
            causal = False  # it sees every key
        return causal, offset

    def worded(self, length: int) -> tuple[bool, Any]:
        """The same, said by a word beside the mask; what the word does not ask for is not looked at."""
        word, kind = self.given["mask_word"], self.given.get("bias_word")
        if word not in ("no_mask", "arbitrary", "causal", "causal_bottom_right"):
            known = "to be 'no_mask', 'arbitrary', 'causal' or 'causal_bottom_right'"
            raise self.wrong("mask_word", known, repr(word), "say padding by an arbitrary mask")
        if kind not in (None, "no_bias", "post_scale_bias"):
            advice = "add the bias after the scale"
            raise self.wrong("bias_word", "to be 'no_bias' or 'post_scale_bias'", repr(kind), advice)
        if kind == "no_bias":
            self.given["bias"] = None
        if word != "arbitrary":
            self.given["mask"] = None
        causal = word.startswith("causal") and (length > 1 or word == "causal")
        return causal, 0 if word == "causal" else "end"

    def window(self) -> bool:
        window: Any = self.given.get("window")
        if "left" in self.given:
            window = (self.given["left"], self.given.get("right"))
        if window is None or (self.d.chose("window", "with itself") and window == -1):
            return False
        if self.d.chose("window", "with itself"):
            window = (window - 1, None)
        if self.d.chose("window", "ignored"):  # made into the mask, if there is one
            if self.has("mask"):
                return False
            window = (window - 1, window - 1)
        sides = (window, window) if isinstance(window, int) else window
        left, right = (None if side in (None, -1) else side for side in sides)
        if left is not None or right is not None:
            self.hides.append(masks.window(left, right))
        return not (left is None and right is None)

    def last_keys(self) -> None:
        """How many keys each item has, said by the last of them."""
        if not self.has("last_key"):
            return
        last, total = self.given["last_key"], self.scores[3]
        if readable(last) and all(int(n) == total - 1 for n in self.backend.to_list(last)):
            return
        if self.past:
            advice = "a cache of which items fill parts is not understood here: call it item by item"
            raise self.wrong("last_key", f"= {total - 1}, the last key of all", last, advice)
        self.hides.append(masks.key_lengths(last + 1))

    def mask(self, role: str) -> None:
        """A mask that may be bool, or numbers that are added."""
        mask, xp = self.given.get(role), self.backend.xp
        if mask is None:
            return
        if type(mask).__name__ == "CausalBias":  # of torch.nn.attention.bias: a tensor only in name
            start = self.scores[3] - self.scores[2] if mask.variant.name == "LOWER_RIGHT" else 0
            mask = masks.causal().dense(*self.scores[2:], query_offset=start, like=self.q)
        if hasattr(mask, "materialize"):
            mask = mask.materialize(self.scores, dtype=self.q.dtype, device=self.backend.device(self.q))
        if not is_array(mask):
            raise self.no_array(role, mask)
        mask = self.to_rank_4(role, mask)
        if self.backend.isdtype(mask.dtype, "bool"):
            if self.d.chose("bool mask", "refused"):
                raise self.wrong(role, "of numbers that are added", "bools", "write 0 and -inf")
            self.hides.append(masks.from_array(~mask if self.d.chose("bool mask", "ignore") else mask))
        elif self.d.chose("float mask", "as bool"):
            self.hides.append(masks.from_array(mask != 0))
        elif self.d.chose("float mask", "refused") or self.backend.compute_dtype(mask.dtype) is None:
            advice = f"{self.d.name} takes no other; compare it (mask != 0)"
            raise self.wrong(role, "of bools", mask.dtype, advice)
        else:
            zero_one = xp.all((mask == 0) | (mask == 1)) & xp.any(mask == 0) & xp.any(mask == 1)
            if self.backend.is_concrete(mask) and bool(zero_one):
                raise self.wrong(
                    role,
                    "of bools, or of numbers to be added",
                    "nothing but 0.0 and 1.0",
                    f"{self.d.name} would add them to the scores and hide nothing; make it bool (mask != 0)",
                )
            self.adds.append(self.backend.astype(mask, self.q.dtype))

    def to_rank_4(self, role: str, mask: Array) -> Array:
        """A mask as this library shapes it, in the axes of the scores."""
        xp, shape = self.backend.xp, tuple(mask.shape)
        given = ("BS", "S") if role == "padding" else self.d.mask_axes if role == "mask" else ()
        ways = {axes: ["".join(pair) for pair in re.findall(r"\((\w+)\)|(\w)", axes)] for axes in given}
        if any(len(groups) == mask.ndim for groups in ways.values()):
            sizes = dict(zip("BHLS", self.scores, strict=True))
            for axes, groups in ways.items():
                if shape == tuple(math.prod(sizes[axis] for axis in group) for group in groups):
                    return xp.reshape(mask, tuple(n if axis in axes else 1 for axis, n in sizes.items()))
            advice = f"reshape it, B, H, L, S are {', '.join(map(str, self.scores))}"
            raise self.wrong(role, f"of shape {' or '.join(ways)}", shape, advice)
        short = shape and shape[-1] < self.scores[3] and shape[-1] != 1
        if short and "past_key" in self.given:  # ONNX: what is missing is hidden
            nothing = False if self.backend.isdtype(mask.dtype, "bool") else -xp.inf
            rest = (*shape[:-1], self.scores[3] - shape[-1])
            device = self.backend.device(mask)
            mask = xp.concat([mask, xp.full(rest, nothing, dtype=mask.dtype, device=device)], axis=-1)
        if mask.ndim > 4:
            raise self.wrong(role, "of rank 4 at most", f"shape {shape}", "drop leading axes")
        return xp.reshape(mask, (*(1,) * (4 - mask.ndim), *mask.shape))

    def bias(self, role: str) -> None:
        bias = self.given.get(role)
        if bias is None:
            return
        if not is_array(bias) or self.backend.compute_dtype(bias.dtype) is None:
            raise TypeError(
                f"{self.who}: expected {self.name(role)} to be a real floating array, got "
                f"{getattr(bias, 'dtype', type(bias).__name__)}; pass a bool mask in its own argument"
            )
        self.adds.append(self.backend.astype(self.to_rank_4(role, bias), self.q.dtype))

    def functions(self) -> None:
        """What is written as functions of positions, and soft caps."""
        given, cap = self.given, self.given.get("softcap")
        if cap and ("clamps" not in given or self.flag("clamps")):
            if self.d.chose("softcap", "after the bias") and self.has("bias"):
                advice = "there the cap comes after the bias, here before it: leave one out"
                raise self.wrong("softcap", "without a bias", "both", advice)
            self.mods.append(mods.softcap(cap))
        if self.has("score_mod"):
            self.mods.append(given["score_mod"])
        if self.has("slopes"):
            slopes = given["slopes"]
            if slopes.ndim != 1:
                raise self.wrong("slopes", "of shape (Hq,)", tuple(slopes.shape), "call it item by item")
            self.mods.append(mods.alibi(slopes))
        if self.has("block_mask"):
            mask_mod = getattr(given["block_mask"], "mask_mod", given["block_mask"])
            if not callable(mask_mod):
                got = type(mask_mod).__name__
                raise self.wrong("block_mask", "to be a BlockMask", got, "make it with create_block_mask")
            self.hides.append(masks.mask_mod(mask_mod))

    # the result

    def giving(self) -> tuple[Callable[[Array, AttentionAux], Any], AuxRequest]:
        xp, d, rank, astype = self.backend.xp, self.d, self.rank, self.backend.astype
        layout, asked = d.result or self.layout, self.given.get("aux")
        wants_lse = self.flag("lse") or bool(getattr(asked, "lse", False))
        names = d.with_lse if wants_lse else d.returns
        if asked is not None and d.with_aux:
            names = d.with_aux

        def give(out: Array, aux: AttentionAux) -> Any:
            out = pack(layout, out)
            while out.ndim > rank:  # axes that were added
                out = xp.squeeze(out, axis=1 if layout == "LB(HD)" else 0)
            weights, lse = aux.weights, aux.lse
            if weights is not None:
                weights = astype(weights, out.dtype)
                weights = xp.mean(weights, axis=1) if self.flag("average") else weights
                weights = weights[0, ...] if rank == 2 else weights
            if lse is not None and d.chose("lse", "natural, low"):
                lse = astype(xp.permute_dims(lse, (0, 2, 1)), out.dtype)
                lse = xp.reshape(lse, out.shape[:-1])
            if lse is not None and layout == "THD":
                lse = lse[0, ...]
            parts = {"out": out, "weights": weights, "lse": lse, "aux": AttentionAux(lse=lse), "None": None}
            found = tuple(parts[name] for name in names.split(", "))
            return found if len(found) > 1 else out

        return give, AuxRequest(lse=wants_lse, weights=self.flag("weights"))
