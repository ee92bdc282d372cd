"""Kinds of samples, a file each: model input, stored form, previews, export. ``latents.py``: what G draws."""
