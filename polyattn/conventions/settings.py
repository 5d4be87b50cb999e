"""A choice in every question that implementations of attention answer differently."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["CONTRACT", "Settings"]


@dataclass(frozen=True)
class Settings:
    """The defaults are the contract; other choices some library makes, or some program made by mistake."""

    scale: str = "as stated"
    polarity: str = "attend"
    mask: str = "hides"
    hidden: str = "-inf"
    empty_rows: str = "zero"
    bias_rows: str = "as empty rows"  # those that -inf in the bias alone leaves with nothing
    poison: str = "cannot leak"  # what is not finite in keys and values that no query sees
    causal: str = "as stated"
    window: str = "as stated"
    softcap: str = "as stated"
    shift: str = "as stated"  # what score modifications add
    bias: str = "as stated"
    sinks: str = "as stated"
    heads: str = "grouped"
    layout: str = "as stated"
    merge: str = "as stated"
    softmax: str = "keys"
    norms: str = "as stated"  # of query, key and value, before they are turned
    rotary: str = "as stated"
    keys: str = "all"
    operands: str = "as stated"
    cache: str = "as stated"  # how keys, turned, and values are kept in eight bits
    output: str = "as stated"  # what happens to it at last
    precision: str = "as stated"

    def changes(self) -> dict[str, str]:
        """The fields that differ from the contract."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


CONTRACT = Settings()
