"""Pretrained networks: where their weights come from, and how they are held."""
