"""How scores become weights: the softmax, and what else there is.

`attention(..., normalizer=)` takes a name of `BY_NAME` or one of the values below.
"""

from collections.abc import Mapping

from polyattn.normalizers import softmax
from polyattn.normalizers.normalizer import Foldable, Normalizer
from polyattn.normalizers.sigmoid import Sigmoid
from polyattn.normalizers.softmax import SOFTMAX, Softmax
from polyattn.normalizers.softpick import Softpick
from polyattn.normalizers.sparse import Entmax15, Sparsemax
from polyattn.normalizers.top_k import TopK

#: Those that need no parameter, or have one for who says none. A plain dict, which compilers can look through.
BY_NAME: Mapping[str, Normalizer] = {
    made.name: made for made in (SOFTMAX, Sigmoid(), Softpick(), Sparsemax(), Entmax15())
}

__all__ = [
    "BY_NAME",
    "SOFTMAX",
    "Entmax15",
    "Foldable",
    "Normalizer",
    "Sigmoid",
    "Softmax",
    "Softpick",
    "Sparsemax",
    "TopK",
    "softmax",
]
