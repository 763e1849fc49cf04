"""Tile encoders, one kind per file; `mil.create_encoder` chooses."""
