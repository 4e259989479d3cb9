"""Recipes and targets → steps with keys: what a build will do, before it does anything."""

from engineworks.plan.plan import Plan, PlannedEngine, Refused, Step, changes, plan_recipe, plan_recipes, verify_stored

__all__ = ["Plan", "PlannedEngine", "Refused", "Step", "changes", "plan_recipe", "plan_recipes", "verify_stored"]
