"""Generated samples for people: previews, grids, files."""
