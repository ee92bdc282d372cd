"""Decode, resize and pack a dataset once, in worker processes; check and verify it."""
