"""A call in a foreign dialect as arguments of `polyattn.attention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add, and_
from typing import Any

from polyattn import masks, mods
from polyattn._attention import AttentionAux, AuxRequest, attend
from polyattn.arrays import Array, is_array, readable
from polyattn.dialects.layout import pack
from polyattn.dialects.operands import Operands
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


class _Translation(Operands):
    """One foreign call, taken apart into what is hidden, what is added, and functions of scores."""

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
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
