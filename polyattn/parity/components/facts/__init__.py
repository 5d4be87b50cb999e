"""What a component is and holds, read from modules of any framework."""

from polyattn.parity.components.facts.reading import facts_of
from polyattn.parity.components.facts.record import Facts

__all__ = ["Facts", "facts_of"]
