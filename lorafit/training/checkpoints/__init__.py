"""Checkpoints: what is in one, written whole or not at all, read back, kept or removed."""
