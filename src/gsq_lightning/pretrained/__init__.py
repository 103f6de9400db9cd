"""Pretrained networks and their weights; tokenizers on disk and on the Hub."""
