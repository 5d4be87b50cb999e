"""What a config of Hugging Face's transformers says of rotary positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polyattn.calls import number, shown, size
from polyattn.rotary.lengths import DynamicNTK, LongRoPE
from polyattn.rotary.scalings import Linear, Llama3, Proportional, Scaling, YaRN

_WHO = "polyattn.rotary.Rotary.from_config"
#: Of every kind: what `read` looks at.
_COMMON = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"]


class _Said:
    """A name in the parameters, else in the config around them; None where neither has it."""

    def __init__(self, own: Mapping[str, Any], config: Any) -> None:
        self.own, self._config = own, config

    def __call__(self, name: str, *others: str) -> Any:
        found = self.own.get(name)
        for other in (name, *others):
            found = _get(self._config, other) if found is None else found
        return found

    def needed(self, name: str, *others: str) -> Any:
        found = self(name, *others)
        if found is None:
            raise ValueError(
                f"{_WHO}: expected {' or '.join((name, *others))} in the config, got {', '.join(self.own) or 'nothing'}; "
                "add it, nothing of a model is guessed"
            )
        return found

    @property
    def original(self) -> int:
        """The length of the texts of training: the config's own word for it goes before that of the parameters."""
        found = _get(self._config, "original_max_position_embeddings")
        return (
            self.needed("original_max_position_embeddings", "max_position_embeddings")
            if found is None
            else found
        )

    @property
    def factor(self) -> float:
        """The factor, or how much longer the longest text is than those of training."""
        if (found := self.own.get("factor")) is not None:
            return found
        longest, original = self.needed("max_position_embeddings"), size(_WHO, _LENGTH, self.original, 1)
        return size(_WHO, "max_position_embeddings", longest, 1) / original


def _yarn(said: _Said) -> Scaling:
    given = {name: said.own[name] for name in _YARN if said.own.get(name) is not None}
    # 0 says the same as None there
    given = {name: x for name, x in given.items() if x or not name.startswith(("mscale", "beta"))}
    return YaRN(said.factor, said.original, **given)


def _longrope(said: _Said) -> Scaling:
    short, long = said.needed("short_factor"), said.needed("long_factor")
    return LongRoPE(short, long, said.original, said.factor, said.own.get("attention_factor"))


def _dynamic(said: _Said) -> Scaling:
    return DynamicNTK(
        said.needed("factor"), said.needed("max_position_embeddings", "original_max_position_embeddings")
    )


def _llama3(said: _Said) -> Scaling:
    factor, low, high = map(said.needed, ("factor", "low_freq_factor", "high_freq_factor"))
    return Llama3(factor, low, high, said.original)


def _proportional(said: _Said) -> Scaling:
    share, factor = said("partial_rotary_factor"), said.own.get("factor")
    return Proportional(1.0 if share is None else share, 1.0 if factor is None else factor)


_YARN = ["beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"]
_LENGTH = "original_max_position_embeddings"
_LONGROPE = ["factor", _LENGTH, "short_factor", "long_factor", "attention_factor"]
#: kind -> how it is made, and what it reads besides.
_KINDS: Mapping[str, tuple[Callable[[_Said], Scaling | None], list[str]]] = {
    "default": (lambda said: None, []),
    "mrope": (lambda said: None, []),
    "linear": (lambda said: Linear(said.needed("factor")), ["factor"]),
    "dynamic": (_dynamic, ["factor", _LENGTH, "max_position_embeddings"]),
    "yarn": (_yarn, ["factor", _LENGTH, *_YARN]),
    "longrope": (_longrope, _LONGROPE),
    "su": (_longrope, _LONGROPE),  # its older name
    "llama3": (_llama3, ["factor", _LENGTH, "low_freq_factor", "high_freq_factor"]),
    "proportional": (_proportional, ["factor"]),
}


def read(
    config: Any, layer_type: str | None, head_dim: int | None, interleaved: bool | None
) -> dict[str, Any]:
    """The arguments of `Rotary`."""
    own, around = _parameters(config, layer_type)
    said = _Said(own, around)
    kind = own.get("rope_type", own.get("type")) or "default"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{_WHO}: expected a rope_type among {', '.join(_KINDS)}, got {shown(kind)}; write its frequencies as a "
            "polyattn.rotary.Scaling"
        )
    make, names = _KINDS[kind]
    if unknown := [name for name in own if name not in (*_COMMON, *names)]:
        raise ValueError(
            f"{_WHO}: expected {', '.join((*_COMMON, *names))} for rope_type {kind!r}, got {', '.join(unknown)} too; take "
            "out what is applied elsewhere"
        )
    found: dict[str, Any] = {"base": said.needed("rope_theta"), "scaling": make(said)}
    share = said("partial_rotary_factor")
    if share not in (None, 1.0) and kind != "proportional":
        found["width"] = int(_head_dim(said, head_dim) * number(_WHO, "partial_rotary_factor", share))
    if own.get("mrope_section") is not None:
        found["sections"] = own["mrope_section"]
        found["section_order"] = "interleaved" if own.get("mrope_interleaved") else "chunked"
    found["interleaved"] = (
        bool(_get(around, "rope_interleave") or False) if interleaved is None else interleaved
    )
    return found


def _parameters(config: Any, layer_type: str | None) -> tuple[Mapping[str, Any], Any]:
    """The parameters of rotary positions, and the config that they stand in, if any."""
    own = _get(config, "rope_parameters") or _get(config, "rope_scaling")
    around = config
    if own is None:
        whole = not isinstance(config, Mapping) or any(n in config for n in ("model_type", "hidden_size"))
        own, around = ({}, config) if whole else (config, {})
    if not isinstance(own, Mapping):
        raise TypeError(
            f"{_WHO}: expected a config of transformers, or its rope_parameters as a dict, got {shown(config)}; "
            "pass model.config"
        )
    kinds = [name for name, value in own.items() if isinstance(value, Mapping)]
    if layer_type is None and not kinds:
        return own, around
    if layer_type not in kinds:
        raise ValueError(
            f"{_WHO}: expected layer_type among {', '.join(kinds) or 'none, for one kind of layer'}, got "
            f"{shown(layer_type)}; the config says which layer is of which"
        )
    return own[layer_type], around


def _head_dim(said: _Said, given: int | None) -> int:
    found = said("head_dim") if given is None else given
    if found is not None:
        return size(_WHO, "head_dim", found, 1)
    hidden, heads = (size(_WHO, n, said.needed(n), 1) for n in ("hidden_size", "num_attention_heads"))
    return hidden // heads


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
