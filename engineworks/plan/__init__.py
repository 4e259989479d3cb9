"""Recipes and targets → steps with keys: what a build will run."""
