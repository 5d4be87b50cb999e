"""Attention as a map over query tiles of a fold over key tiles: O(L + S) memory, forward and backward."""

from polyattn.implementations.blockwise.plan import Blockwise
from polyattn.implementations.blockwise.rule import BLOCKWISE, few_rows, small, symbols, with_derivative

__all__ = ["BLOCKWISE", "Blockwise", "few_rows", "small", "symbols", "with_derivative"]
