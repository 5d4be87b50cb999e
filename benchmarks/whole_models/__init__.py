"""How often `polyattn.parity.compare_models` names the component of a model that was ported wrongly, and why."""
