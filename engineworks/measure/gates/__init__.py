"""Figures and limits → verdicts with sentences. Pure."""
