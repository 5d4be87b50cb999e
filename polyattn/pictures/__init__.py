"""Pictures of attention, for teaching and for finding mistakes: each function gives a figure of matplotlib.

>>> import numpy as np
>>> from polyattn import attention, AuxRequest, pictures
>>> x = np.eye(3)[None]
>>> _, aux = attention(x, x, x, is_causal=True, return_aux=AuxRequest(weights=True))
>>> figure = pictures.heads(aux.weights, ["the", "cat", "sat"])  # figure.savefig("heads.svg")

A notebook shows a figure by itself, as SVG on transparent paper whose ink is in sight on white and on black. Nothing
is said by colour alone. Arrays may be of any library. It needs matplotlib: pip install 'polyattn[plot]'.
"""

from polyattn.pictures.apart import mismatch
from polyattn.pictures.distances import alibi_slopes, rotary_angles
from polyattn.pictures.folding import online_softmax, online_softmax_animation
from polyattn.pictures.growth import over_length
from polyattn.pictures.maps import heads, weights
from polyattn.pictures.moving import online_softmax_svg
from polyattn.pictures.reading import alignment, over_image
from polyattn.pictures.schedule import ring
from polyattn.pictures.visible import mask

__all__ = [
    "alibi_slopes",
    "alignment",
    "heads",
    "mask",
    "mismatch",
    "online_softmax",
    "online_softmax_animation",
    "online_softmax_svg",
    "over_image",
    "over_length",
    "ring",
    "rotary_angles",
    "weights",
]
