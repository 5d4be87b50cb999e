"""How scores become weights."""

from polyattn.normalizers import softmax

__all__ = ["softmax"]
