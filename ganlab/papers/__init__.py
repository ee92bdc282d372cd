"""Published values, the papers' recipes, and how a run differs from a recipe."""
