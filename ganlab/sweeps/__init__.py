"""Grids of runs: planned, launched, watched, resumed, their cost estimated."""
