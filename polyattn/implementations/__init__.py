"""The ways to run a problem: the definition, the blockwise engine, kernels of the libraries."""

from polyattn.implementations.blockwise import BLOCKWISE, Blockwise
from polyattn.implementations.choice import Choice, choose, implementations_of
from polyattn.implementations.fused.measured import tuned
from polyattn.implementations.fused.settings import Fused
from polyattn.implementations.implementation import TRANSFORMS, Implementation, Output
from polyattn.implementations.reference import REFERENCE, Reference

__all__ = [
    "BLOCKWISE",
    "REFERENCE",
    "TRANSFORMS",
    "Blockwise",
    "Choice",
    "Fused",
    "Implementation",
    "Output",
    "Reference",
    "choose",
    "implementations_of",
    "tuned",
]
