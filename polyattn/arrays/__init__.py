"""What attention needs and the array API standard lacks, and how an array finds it."""

from polyattn.arrays.backend import (
    Array,
    Backend,
    Namespace,
    Schedule,
    backend_named,
    backend_of,
    eagerly,
    is_array,
    numpy_backend,
)

__all__ = [
    "Array",
    "Backend",
    "Namespace",
    "Schedule",
    "backend_named",
    "backend_of",
    "eagerly",
    "is_array",
    "numpy_backend",
]
