"""The trainer, the update step and what they are built from."""
