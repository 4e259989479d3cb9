"""Recipes and targets → steps with keys: what a build will do, before it does anything."""
