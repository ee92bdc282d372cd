"""Faults injected into ganlab, and counted: one module for each figure, or few, of RELIABILITY.md."""
