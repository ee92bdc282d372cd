"""Scores of a generator: feature passes, statistics of the real samples, metrics."""
