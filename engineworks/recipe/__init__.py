"""Recipes: read from YAML, checked with places, and expanded from shorthand."""
