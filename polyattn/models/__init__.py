"""Pretrained models on any array library; their weights come in packages of their own (an extra)."""
