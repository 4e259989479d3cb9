"""Recipes in, engines out."""
