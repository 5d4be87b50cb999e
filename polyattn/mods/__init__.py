"""Score modifications: functions (score, b, h, q_idx, kv_idx) -> score, as FlexAttention has them.

They act on scale * (q . k), before the bias and the mask. Those built in carry their parameters as
arrays, so autodiff sees them.
"""

from polyattn.mods.biases import Alibi, alibi, alibi_slopes
from polyattn.mods.cap import Softcap, softcap
from polyattn.mods.forget import Forgetting, forgetting
from polyattn.mods.mod import (
    Compose,
    Mod,
    ScoreMod,
    compares_positions,
    compose,
    derivative,
    functions,
    parameters,
    parts,
)
from polyattn.mods.relative import RelativePositionBias, relative_bucket, relative_position_bias
from polyattn.mods.sharpen import Temperature, temperature

__all__ = [
    "Alibi",
    "Compose",
    "Forgetting",
    "Mod",
    "RelativePositionBias",
    "ScoreMod",
    "Softcap",
    "Temperature",
    "alibi",
    "alibi_slopes",
    "compares_positions",
    "compose",
    "derivative",
    "forgetting",
    "functions",
    "parameters",
    "parts",
    "relative_bucket",
    "relative_position_bias",
    "softcap",
    "temperature",
]
