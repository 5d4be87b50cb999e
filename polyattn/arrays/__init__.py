"""What attention needs and the array API standard lacks, and how an array finds it."""

from polyattn.arrays.backend import Backend
from polyattn.arrays.discovery import backend_named, backend_of, eagerly, is_array, numpy_backend, readable
from polyattn.arrays.loops import TileSizes
from polyattn.arrays.numbers import Array, Namespace

__all__ = [
    "Array",
    "Backend",
    "Namespace",
    "TileSizes",
    "backend_named",
    "backend_of",
    "eagerly",
    "is_array",
    "numpy_backend",
    "readable",
]
