"""How often `polyattn.parity.diagnose` names the right cause: defects are planted and diagnosed."""
