"""The arrays of a call in a foreign dialect, brought to the axes that are used here."""

from __future__ import annotations

import math
import re
from typing import Any

from polyattn import masks
from polyattn.arrays import Array, is_array, readable
from polyattn.dialects.foreign_call import ForeignCall
from polyattn.dialects.layout import unpack

__all__ = ["Operands"]


class Operands(ForeignCall):
    """Queries, keys and values of a call, and what its masks hide and its biases add."""

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
        self.hides: list[masks.Mask] = []
        self.adds: list[Array] = []  # rank 4

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
