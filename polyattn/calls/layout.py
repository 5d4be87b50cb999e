"""The two layouts of query, key and value, and the words of others for them."""

from __future__ import annotations

from typing import Any

from polyattn.calls.kinds import shown

__all__ = ["check_layout"]

#: The words of other libraries, S, T or Q for the length and N for the heads.
_WORDS = {
    "BLHD": ("BSHD", "BTHD", "BTNH", "BSNH", "BSND", "BLNH", "BQHD", "THD", "TND", "SHD"),
    "BHLD": ("BHSD", "BHTD", "BNTH", "BNSH", "BNSD", "BNLH", "BHQD", "HND"),
}


def check_layout(who: str, layout: Any, axes: str) -> None:
    """A ValueError unless a layout is one of the two."""
    if isinstance(layout, str) and layout in _WORDS:
        return
    said = layout.upper() if isinstance(layout, str) else ""
    meant = next((ours for ours, theirs in _WORDS.items() if said in (ours, *theirs)), None)
    line = f"write layout={meant!r}" if meant else f"name the axes of {axes}"
    raise ValueError(f"{who}: expected layout 'BHLD' or 'BLHD', got {shown(layout)}; {line}")
