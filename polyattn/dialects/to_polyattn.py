"""A call in a foreign dialect as arguments of `polyattn.attention`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polyattn
from polyattn import masks, mods
from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.dialects.layout import pack, unpack
from polyattn.dialects.record import Dialect


@dataclass
class Heard:
    """What a foreign call means, and how its result is given back."""

    arguments: dict[str, Any]
    give: Callable[[Array, polyattn.AttentionAux], Any]
    request: polyattn.AuxRequest = field(default_factory=polyattn.AuxRequest)

    def run(self) -> Any:
        out, aux = polyattn.attention(**self.arguments, return_aux=self.request)
        return self.give(out, aux)


def bind(d: Dialect, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a foreign call by role; a sentence where they do not fit the signature."""
    kinds = inspect.Parameter
    signature = inspect.Signature(
        [
            kinds(p.name, kinds.KEYWORD_ONLY if p.keyword else kinds.POSITIONAL_OR_KEYWORD, default=p.default)
            for p in d.parameters
        ]
    )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{who(d)}: expected the arguments of {d.what}, {signature}, got others ({error}); "
            "write the call as that library has it"
        ) from None
    bound.apply_defaults()
    for p in d.parameters:
        value = bound.arguments[p.name]
        if p.role == "fixed" and (is_array(value) or value != p.default):
            raise ValueError(
                f"{who(d)}: expected {p.name} = {p.default!r}, got another value; polyattn.attention has no such thing, "
                "leave it out"
            )
    return {p.role: bound.arguments[p.name] for p in d.parameters if p.role not in ("fixed", "free")}


def who(d: Dialect) -> str:
    return f"polyattn.dialects[{d.name!r}]"


def hear(d: Dialect, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Heard:
    """The meaning of a call."""
    return _Hearing(d, bind(d, args, kwargs)).heard()


class _Hearing:
    """One foreign call."""

    def __init__(self, d: Dialect, given: dict[str, Any]) -> None:
        self.d, self.given = d, given
        for role in ("query", "key", "value"):
            if not is_array(given[role]):
                raise TypeError(
                    f"{who(d)}: expected {self.name(role)} to be an array, got {type(given[role]).__name__}; convert it"
                )
        self.backend: Backend = backend_of(given["query"])
        self.hides: list[Any] = []  # masks of polyattn
        self.adds: list[Array] = []  # rank 4
        self.mods: list[Any] = []

    def name(self, role: str) -> str:
        parameter = self.d.of(role)
        return parameter.name if parameter is not None else role

    def wrong(self, role: str, expected: str, got: Any, advice: str) -> ValueError:
        return ValueError(f"{who(self.d)}: expected {self.name(role)} {expected}, got {got}; {advice}")

    def flag(self, role: str) -> bool:
        value = self.given.get(role, False)
        if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
            return bool(value)
        raise TypeError(f"{who(self.d)}: expected {self.name(role)} to be True or False, got {value!r}")

    def heard(self) -> Heard:
        self.operands()
        if (rate := self.given.get("dropout") or 0.0) != 0.0:
            raise self.wrong(
                "dropout",
                "= 0.0",
                rate,
                "no two libraries drop the same weights: call polyattn.attention with dropout_rate and dropout_seed",
            )
        arguments: dict[str, Any] = {"query": self.q, "key": self.k, "value": self.v}
        causal, offset = self.causality()
        windowed = self.window()
        self.mask("mask")
        self.mask("padding")
        for role in ("bias", "more_bias"):
            if self.given.get(role) is not None:
                self.add(role, self.given[role])
        self.lengths()
        self.functions()
        if self.given.get("scale") is not None:
            arguments["scale"] = self.given["scale"]
        arguments |= self.sinks()
        whole = None
        for hide in self.hides:
            whole = hide if whole is None else whole & hide
        if whole is not None:
            arguments["mask"] = whole
        if self.adds:
            total = self.adds[0]
            for more in self.adds[1:]:
                total = total + more
            arguments["bias"] = total
        if self.mods:
            arguments["score_mod"] = self.mods[0] if len(self.mods) == 1 else mods.compose(*self.mods)
        if causal:
            arguments["is_causal"] = True
        positional = causal or windowed or self.mods or self.given.get("block_mask") is not None
        if positional and (is_array(offset) or offset != 0 or self.q.shape[2] != self.k.shape[2]):
            arguments["query_offset"] = offset
        return Heard(arguments, *self.giving())

    # arrays

    def operands(self) -> None:
        layout = self.d.answers["layout"].choice
        q, k, v = (self.given[role] for role in ("query", "key", "value"))
        self.rank = q.ndim
        self.heads = self.given.get("heads")
        packed = layout in ("LB(HD)", "B(L HD)") or (self.heads is not None and q.ndim == 3)
        if layout == "LB(HD)" and self.flag("batch_first") and q.ndim == 3:
            layout = "B(L HD)"
        if packed and layout == "BHLD":  # ONNX with heads side by side
            layout = "BL(HD)"
        self.layout = layout
        ranks = (2, 3) if packed else (3, 4) if layout == "BLHD" else (2, 3, 4)
        if any(x.ndim != q.ndim or x.ndim not in ranks for x in (q, k, v)):
            raise self.wrong(
                "query",
                f"and keys and values of one rank, {' or '.join(map(str, ranks))}",
                f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
                f"the axes are {self.d.choice('layout').says}",
            )
        kv_heads = self.given.get("kv_heads") or self.heads
        if packed and (not self.heads or q.shape[-1] % self.heads or k.shape[-1] % kv_heads):
            raise self.wrong(
                "heads",
                "to divide the width",
                f"{self.heads!r} and width {q.shape[-1]}",
                "pass the number of heads",
            )
        self.q = unpack(layout, q, self.heads or 0)
        self.k, self.v = (unpack(layout, x, kv_heads or 0) for x in (k, v))
        xp = self.backend.xp
        self.past = 0
        if (self.given.get("past_key") is None) != (self.given.get("past_value") is None):
            raise self.wrong("past_key", "and past_value together", "one of them", "pass both or none")
        if self.given.get("past_key") is not None:
            self.past = self.given["past_key"].shape[2]
            self.k = xp.concat([self.given["past_key"], self.k], axis=2)
            self.v = xp.concat([self.given["past_value"], self.v], axis=2)
        heads, kv_heads = self.q.shape[1], self.k.shape[1]
        if heads == kv_heads or not kv_heads or heads % kv_heads:
            return
        groups = f"{heads} query heads and {kv_heads} kv heads"
        if self.d.chose("grouped heads", "none"):
            raise self.wrong(
                "key", "with as many heads as query", groups, f"{self.d.name} has no grouped heads"
            )
        if self.d.chose("grouped heads", "h // G, flag") and not self.flag("gqa") and kv_heads > 1:
            raise self.wrong("gqa", "= True", f"False with {groups}", "grouped heads are by request there")
        if self.d.chose("grouped heads", "h % Hkv"):
            self.k, self.v = (xp.concat([x] * (heads // kv_heads), axis=1) for x in (self.k, self.v))

    # what is hidden

    def causality(self) -> tuple[bool, Any]:
        """Whether the call is causal, and the position of query row 0."""
        length = self.q.shape[2]
        last = self.d.chose("causal", "last rows") or self.d.chose("window", "neighbours, last rows")
        offset: Any = "end" if last else self.past
        if (nonpad := self.given.get("nonpad")) is not None:
            if self.past:
                raise self.wrong(
                    "nonpad", "without past_key", "both", "a cache is inside or outside, not both"
                )
            offset = self.backend.astype(nonpad, self.backend.xp.int32) - length
        role = self.given.get("causal", False)
        if role is None:  # Hugging Face: the module decides
            role = getattr(self.given["module"], "is_causal", True)
        self.given["causal"] = role
        causal = self.flag("causal")
        has_mask = self.given.get("mask") is not None
        if causal and self.d.chose("mask and causal", "kernel") and has_mask:
            raise self.wrong(
                "causal",
                "or a mask",
                "both",
                "the library documents that as an error and its kernels differ; put causality into the mask",
            )
        if self.d.chose("causal", "hint") and causal:
            if not has_mask:
                raise self.wrong(
                    "causal",
                    "with a mask that says it",
                    "no mask",
                    "the flag is a hint there; pass attn_mask",
                )
            causal = False
        if self.d.chose("mask and causal", "mask") and has_mask:
            causal = False
        if self.d.chose("causal", "first rows unless alone") and length == 1:
            causal = False
        if last and length == 1 and causal:
            return False, offset  # it sees every key
        return causal, offset

    def window(self) -> bool:
        given = self.given
        window = given.get("window")
        if "left" in given:
            window = (given["left"], given["right"])
        if window is None:
            return False
        if self.d.chose("window", "ignored"):  # made into the mask, if there is one
            if given.get("mask") is not None:
                return False
            window = (window - 1, window - 1)
        if isinstance(window, int):
            window = (window, window)
        sides = tuple(None if side in (None, -1) else side for side in window)
        if sides == (None, None):
            return False
        self.hides.append(masks.window(*sides))
        return True

    def mask(self, role: str) -> None:
        """A mask that may be bool, or numbers that are added."""
        mask, xp = self.given.get(role), self.backend.xp
        if mask is None:
            return
        scores = (self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2])
        if hasattr(mask, "materialize"):
            mask = mask.materialize(scores, dtype=self.q.dtype, device=self.backend.device(self.q))
        if not is_array(mask):
            raise TypeError(
                f"{who(self.d)}: expected {self.name(role)} to be an array, got {type(mask).__name__}; convert it"
            )
        mask = self.to_rank_4(role, mask, scores)
        if self.backend.xp.isdtype(mask.dtype, "bool"):
            if self.d.chose("bool mask", "refused"):
                raise self.wrong(role, "of numbers that are added", "bools", "write 0 and -inf")
            self.hides.append(masks.from_array(~mask if self.d.chose("bool mask", "ignore") else mask))
        elif self.d.chose("float mask", "as bool"):
            self.hides.append(masks.from_array(mask != 0))
        elif self.d.chose("float mask", "refused") or self.backend.compute_dtype(mask.dtype) is None:
            raise self.wrong(
                role, "of bools", mask.dtype, f"{self.d.name} takes no other; compare it (mask != 0)"
            )
        else:
            if self.backend.is_concrete(mask) and bool(
                xp.all((mask == 0) | (mask == 1)) & xp.any(mask == 0) & xp.any(mask == 1)
            ):
                raise self.wrong(
                    role,
                    "of bools, or of numbers to be added",
                    "nothing but 0.0 and 1.0",
                    f"{self.d.name} would add them to the scores and hide nothing; make it bool (mask != 0)",
                )
            self.adds.append(self.backend.astype(mask, self.q.dtype))

    def to_rank_4(self, role: str, mask: Array, scores: tuple[int, ...]) -> Array:
        """A mask as this library shapes it, in the axes of the scores."""
        xp, shape = self.backend.xp, tuple(mask.shape)
        batch, heads, _, keys = scores
        if role == "padding" or (self.d.name == "x_transformers" and mask.ndim == 2):
            return xp.reshape(mask, (-1, 1, 1, shape[-1]))
        if self.layout in ("LB(HD)", "B(L HD)") and mask.ndim == 3:
            if shape[0] == batch * heads:  # torch.nn.MultiheadAttention; one item of equinox
                return xp.reshape(mask, (batch, heads, *shape[1:]))
            return mask[:, None, :, :]
        if (
            shape[-1] < keys and shape[-1] != 1 and "past_key" in self.given
        ):  # ONNX: what is missing is hidden
            nothing = False if xp.isdtype(mask.dtype, "bool") else -xp.inf
            missing = xp.full(
                (*shape[:-1], keys - shape[-1]), nothing, dtype=mask.dtype, device=self.backend.device(mask)
            )
            mask = xp.concat([mask, missing], axis=-1)
        if mask.ndim > 4:
            raise self.wrong(role, "of rank 4 at most", f"shape {shape}", "drop leading axes")
        return xp.reshape(mask, (*(1,) * (4 - mask.ndim), *mask.shape))

    def add(self, role: str, bias: Any) -> None:
        if not is_array(bias) or self.backend.compute_dtype(bias.dtype) is None:
            raise TypeError(
                f"{who(self.d)}: expected {self.name(role)} to be a real floating array, got "
                f"{getattr(bias, 'dtype', type(bias).__name__)}; a bool mask is another argument"
            )
        scores = (self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2])
        self.adds.append(self.backend.astype(self.to_rank_4(role, bias, scores), self.q.dtype))

    def lengths(self) -> None:
        for role, make in (
            ("key_lengths", masks.key_lengths),
            ("query_lengths", masks.query_lengths),
            ("nonpad", masks.key_lengths),
        ):
            if self.given.get(role) is not None:
                self.hides.append(make(self.given[role]))

    def functions(self) -> None:
        """What is written as functions of positions, and soft caps."""
        given = self.given
        cap = given.get("softcap")
        if "clamps" in given and not self.flag("clamps"):
            cap = None
        if cap is not None and cap != 0.0:
            if self.d.chose("softcap", "after the bias") and given.get("bias") is not None:
                raise self.wrong(
                    "softcap", "without a bias", "both", "there the cap comes after the bias, here before it"
                )
            self.mods.append(mods.softcap(cap))
        if given.get("score_mod") is not None:
            self.mods.append(given["score_mod"])
        if given.get("slopes") is not None:
            slopes = given["slopes"]
            if slopes.ndim != 1:
                raise self.wrong("slopes", "of shape (Hq,)", tuple(slopes.shape), "call it item by item")
            self.mods.append(mods.alibi(slopes))
        if (block_mask := given.get("block_mask")) is not None:
            mask_mod = getattr(block_mask, "mask_mod", block_mask)
            if not callable(mask_mod):
                raise self.wrong(
                    "block_mask", "to be a BlockMask", type(block_mask).__name__, "see create_block_mask"
                )
            self.hides.append(masks.mask_mod(mask_mod))

    def sinks(self) -> dict[str, Any]:
        if self.given.get("sinks") is not None:
            return {"sinks": self.given["sinks"]}
        return {"sinks": 0.0} if "zero_sink" in self.given and self.flag("zero_sink") else {}

    # the result

    def giving(self) -> tuple[Callable[[Array, polyattn.AttentionAux], Any], polyattn.AuxRequest]:
        xp, d, given = self.backend.xp, self.d, self.given
        layout = d.result or self.layout
        rank = self.rank

        def lay(out: Array) -> Array:
            out = pack(layout, out)
            while out.ndim > rank:  # axes that were added
                axis = 1 if layout == "LB(HD)" else 0
                out = xp.squeeze(out, axis=axis)
            return out

        wants_weights = "weights" in given and self.flag("weights")
        aux_wanted = given.get("aux")
        wants_lse = ("lse" in given and self.flag("lse")) or bool(getattr(aux_wanted, "lse", False))

        def give(out: Array, aux: polyattn.AttentionAux) -> Any:
            out = lay(out)
            if d.returns == "(out, None)":
                return out, None
            if d.returns == "(out, weights)":
                weights = aux.weights
                if weights is not None:
                    weights = self.backend.astype(weights, out.dtype)
                    weights = xp.mean(weights, axis=1) if self.flag("average") else weights
                    weights = weights[0, ...] if rank == 2 else weights
                return out, weights
            if aux_wanted is not None:
                return out, polyattn.AttentionAux(lse=aux.lse)
            if wants_lse:
                lse = aux.lse
                if d.chose("lse", "natural, low"):
                    lse = self.backend.astype(xp.permute_dims(lse, (0, 2, 1)), out.dtype)
                    lse = xp.reshape(lse, out.shape[:-1])
                return (out, lse, None) if d.name == "flash_attn.2" else (out, lse)
            return out

        return give, polyattn.AuxRequest(lse=wants_lse, weights=wants_weights)
