from polyattn.parity.rounding import Rounded, noise

__all__ = ["Rounded", "noise"]
