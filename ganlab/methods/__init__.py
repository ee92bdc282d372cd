"""Losses and what stabilizes training: penalties, weight and feature norms, constraints."""
