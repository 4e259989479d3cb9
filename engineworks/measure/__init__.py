"""Measurements in, verdicts out. Pure."""
