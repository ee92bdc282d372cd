"""A report as HTML, Markdown and CSV."""
