"""How a fused kernel is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.calls import answers, shown

PLATFORMS = ("tpu", "gpu")
FEW = 64  # query rows of all heads that read one kv head: decoding, which has tiles of its own


def unfit(platform: str, name: str, size: int) -> str | None:
    """Why a platform has no tile with a side of that size; None if it has."""
    if platform == "tpu" and size % 128:
        return f"{name}={size}, and a TPU has tiles of a multiple of 128"
    if platform == "gpu" and (size < 16 or size & (size - 1)):
        return f"{name}={size}, and a GPU has tiles of a power of two from 16 on"
    return None


@answers("polyattn.Fused", "settings")
@dataclass(frozen=True)
class Fused:
    """The engine as one kernel, with tiles of a given size; None leaves a choice to the adapter.

    rows, keys: the sides of a tile of scores; they win over a file of `polyattn.implementations.tuned`. platform: "tpu" or "gpu", the chip that the kernel is for; that of the
    arrays, or of what a compiler is asked for. interpret: the kernel run step by step as ordinary operations, on any
    machine, slowly: to test and to look.

    >>> from polyattn import Fused
    >>> Fused(rows=256, keys=512)
    Fused(rows=256, keys=512, platform=None, interpret=False)
    """

    rows: int | None = None
    keys: int | None = None
    platform: str | None = None
    interpret: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "keys"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(
                    f"polyattn.Fused: expected {name} to be a positive integer, got {shown(size)}; it is the number of "
                    "score matrix entries along one side of a tile"
                )
        if self.platform not in (None, *PLATFORMS):
            raise ValueError(
                f"polyattn.Fused: expected platform 'tpu' or 'gpu', got {shown(self.platform)}; leave it out for that of "
                "the arrays"
            )
        if not isinstance(self.interpret, bool):
            raise TypeError(
                f"polyattn.Fused: expected interpret to be True or False, got {shown(self.interpret)}; pass a bool"
            )
