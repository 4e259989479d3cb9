"""Runs a plan, holds its result and records it."""
