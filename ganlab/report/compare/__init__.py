"""Runs beside each other and beside published values: tables, ranks, significance."""
