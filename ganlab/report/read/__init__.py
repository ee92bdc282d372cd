"""Reading runs and grids from their folders."""
