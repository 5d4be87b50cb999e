"""Attention as a map over query tiles of a fold over key tiles: O(L + S) memory, forward and backward."""
