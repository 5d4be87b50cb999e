"""What a normaliser is: the scores of a row go in, its weights come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from polyattn.arrays import Array


@dataclass(frozen=True)
class Normalizer:
    """How the scores of a row become its weights: a value, with a name and a formula.

    A hidden score is -inf. Its weight is 0, as are all weights of a row that sees nothing, and neither takes part
    in a derivative.
    """

    name: ClassVar[str]
    formula: ClassVar[str]  # of the weights w of a row of scores s
    takes_sinks: ClassVar[bool] = False  # whether one more logit beside the scores means something

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        """The weights (..., L, S) of scores, in their dtype; sinks: (..., 1, 1), where the normaliser takes them."""
        raise NotImplementedError


class Pull(NamedTuple):
    """What the derivative of some weights is made of."""

    weights: Array
    slope: Array  # a number for each weight, from which `pull` makes the gradient of its score


class Foldable(Normalizer):
    """A normaliser whose averages over disjoint keys can be merged, so that nobody needs whole rows.

    An average is a NamedTuple of arrays (..., L, n), `acc` the last of them (..., L, E):

        finish(merge(lift(s1, v1), lift(s2, v2))) == weights([s1 s2]) @ [v1; v2]

    The derivative comes tile by tile too: from the scores once more, and from one number a row, `log_sum`.
    """

    def nothing(self, rows: Array, width: int) -> Any:
        """The average over no keys: for rows (..., L, D) in the compute dtype, of values of that width."""
        raise NotImplementedError

    def lift(self, scores: Array, values: Array, keep: Array | None = None, *, consume: bool = False) -> Any:
        """The average over the keys of one tile; keep: factors on the weights; consume: scores may be overwritten."""
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """The average over the keys of both: associative and commutative, with `nothing` as its identity."""
        raise NotImplementedError

    def finish(self, seen: Any) -> Array:
        """The result (..., L, E); 0 for rows that have seen no key, or none that counts."""
        raise NotImplementedError

    def log_sum(self, seen: Any) -> Array:
        """The logarithm of what a row has summed, (..., L); -inf for rows whose `finish` is 0 for want of keys."""
        raise NotImplementedError

    def again(self, scores: Array, log_sum: Array, *, consume: bool = False) -> Pull:
        """The weights of a tile, and their slopes, from the log_sum (..., L, 1) of whole rows."""
        raise NotImplementedError

    def pull(self, slope: Array, d_weights: Array, mean: Array) -> Array:
        """The gradient of a loss for the scores, from that for the weights, which may be overwritten.

        mean: (..., L, 1), the sum of weights * d_weights over the whole row.
        """
        raise NotImplementedError
