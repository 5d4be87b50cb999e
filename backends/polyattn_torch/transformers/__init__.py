"""polyattn as an attention of Hugging Face's transformers: `attn_implementation="polyattn"`."""

from polyattn_torch.transformers.interface import NAME, allowed, attend, register
from polyattn_torch.transformers.verdict import Checked, check

__all__ = ["NAME", "Checked", "allowed", "attend", "check", "register"]
