"""Derivatives on any array library, NumPy among them: arrays that write down what is computed from them.

>>> import numpy as np
>>> from polyattn import attention
>>> from polyattn.gradients import vjp
>>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
>>> out, pullback = vjp(lambda x: attention(x, x, x, scale=0.0), x)
>>> pullback(np.ones((2, 2)))
(array([[1., 1.],
       [1., 1.]]),)
"""

from polyattn.gradients.function import stop_gradient, vjp
from polyattn.gradients.recorded import Recorded

__all__ = ["Recorded", "stop_gradient", "vjp"]
