"""A fixed set of problems that covers the contract, each written down twice: as arguments of `attention`, and as a
`Spec` that shares nothing with them. A file for each theme; their order here is that of the tables."""

from polyattn.parity.cases import scores, visible, packed, normalizing, shapes  # noqa: F401, I001 (they add theirs)
from polyattn.parity.cases.fixed import case, cases

__all__ = ["case", "cases"]
