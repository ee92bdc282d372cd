"""Comparisons of runs with each other and with published values."""
