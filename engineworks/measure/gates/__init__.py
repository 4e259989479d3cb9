"""Measurements and limits → verdicts with reasons. Pure."""
