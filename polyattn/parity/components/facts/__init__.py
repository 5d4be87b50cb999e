"""What a component is and holds, read from modules of any framework."""

from polyattn.parity.components.facts.record import Facts

__all__ = ["Facts"]
