"""Which chip a kernel is for, and what is known of chips."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polyattn.arrays import Array
from polyattn.implementations.fused import PLATFORMS
from polyattn_jax.eager import device_of

__all__ = ["CHIPS", "Chip", "chip_for"]

MIB, KIB = 2**20, 2**10


@dataclass(frozen=True)
class Chip:
    """A kind of chip."""

    platform: str  # "tpu" or "gpu"
    kind: str  # how the names of its devices begin
    memory: int  # bytes for the tiles of one program: vector memory, shared memory
    cores: int  # programs that run at once

    @property
    def only(self) -> frozenset[str]:
        """Operations that its kernels have beside those of all."""
        return frozenset({"erf", "erf_inv"} if self.platform == "tpu" else ())

    @property
    def lists(self) -> int:
        """Bytes for lists of visits: scalar memory of a TPU; a GPU has them in its main memory."""
        return 768 * KIB if self.platform == "tpu" else 2**40


#: The longest beginning of a name counts; a chip that is not here is taken for the smallest of its platform.
CHIPS = (
    Chip("tpu", "TPU v4", 16 * MIB, 2),
    Chip("tpu", "TPU v5 lite", 128 * MIB, 1),
    Chip("tpu", "TPU v5e", 128 * MIB, 1),
    Chip("tpu", "TPU v5", 64 * MIB, 2),
    Chip("tpu", "TPU v6", 128 * MIB, 1),
    Chip("tpu", "TPU7", 64 * MIB, 2),
    Chip("tpu", "TPU", 16 * MIB, 1),
    Chip("gpu", "NVIDIA A100", 163 * KIB, 108),
    Chip("gpu", "NVIDIA H100", 227 * KIB, 132),
    Chip("gpu", "NVIDIA H200", 227 * KIB, 132),
    Chip("gpu", "NVIDIA GH200", 227 * KIB, 132),
    Chip("gpu", "NVIDIA B200", 227 * KIB, 148),
    Chip("gpu", "", 99 * KIB, 64),
)
#: Asked for without a chip at hand.
TYPICAL = {"tpu": "TPU v5 lite", "gpu": "NVIDIA H100"}


def chip_for(x: Array, platform: str | None) -> Chip | None:
    """The chip on which x is, or will be; of another platform a typical one; None where there are no kernels."""
    here, kind = device_of(x)
    wanted = platform or here
    if wanted not in PLATFORMS:
        return None
    return _named(wanted, kind if wanted == here else TYPICAL[wanted])


def _named(platform: str, kind: str) -> Chip:
    known = [chip for chip in CHIPS if chip.platform == platform and kind.startswith(chip.kind)]
    return replace(max(known or [CHIPS[6]], key=lambda chip: len(chip.kind)), kind=kind)
