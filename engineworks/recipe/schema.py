"""The JSON Schema of recipes, generated from the models; recipes/recipe.schema.json is kept in step by a test."""

from __future__ import annotations

from typing import Any

from engineworks.recipe.recipe import Recipe

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) for editors: `# yaml-language-server: $schema=recipe.schema.json`."""
    schema = Recipe.model_json_schema()
    schema["required"] = [k for k in schema.get("required", []) if k not in _FROM_DEFAULTS]
    return {"$schema": SCHEMA_DIALECT, **schema, "title": "Engineworks recipe"}


_FROM_DEFAULTS = ("accuracy", "targets", "precisions")
"""Keys that `_defaults.yaml` may bring, so that a recipe without them is not marked in an editor."""
