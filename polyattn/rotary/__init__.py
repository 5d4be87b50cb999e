"""Where a token stands, said in its vector: sinusoidal and rotary position embeddings.

    (a, b) -> m (a cos t - b sin t, a sin t + b cos t),   t = position * frequency of the pair

A `Rotary` turns vectors. Its frequencies are base^(-2i / width), or what a `Scaling` makes of them for longer texts, which
also says m, its amplitude; its positions are one number for each token, or with sections one for each axis of a picture.
"""

from polyattn.rotary.angle import angles
from polyattn.rotary.embedding import Rotary
from polyattn.rotary.lengths import DynamicNTK, LongRoPE
from polyattn.rotary.scalings import Linear, Llama3, Proportional, Scaling, YaRN
from polyattn.rotary.turning import rotate
from polyattn.rotary.waves import sinusoidal

__all__ = [
    "DynamicNTK",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Proportional",
    "Rotary",
    "Scaling",
    "YaRN",
    "angles",
    "rotate",
    "sinusoidal",
]
