"""What laws of the cards of mistakes need to be asked of a student's answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np


def of_arrays(asked: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same law of what an answer gives as an array of NumPy: nested lists and tensors are answers too."""

    @wraps(asked)
    def judged(mine: Any) -> Any:
        return asked(lambda *given: np.asarray(mine(*given)))

    return judged
