"""The JSON Schema of recipes, generated from the models; a test keeps recipes/recipe.schema.json in step."""

from __future__ import annotations

from typing import Any

from engineworks.recipe.examples import EXAMPLES
from engineworks.recipe.recipe import Recipe

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) for editors: `# yaml-language-server: $schema=recipe.schema.json`."""
    schema = Recipe.model_json_schema()
    schema["required"] = [k for k in schema.get("required", []) if k not in (*FROM_DEFAULTS, *TENSORS)]
    schema["if"] = {"properties": {"model": {"required": ["decoder"]}}}
    schema["else"] = {"required": list(TENSORS)}
    for name, part in (("Recipe", schema), *schema["$defs"].items()):
        for key, example in EXAMPLES.get(name, {}).items():
            part["properties"][key]["examples"] = [_plain(example)]
    return {"$schema": SCHEMA_DIALECT, **schema, "title": "Engineworks recipe"}


def _plain(example: str) -> Any:
    from engineworks.recipe.yaml_nodes import parse_yaml

    return parse_yaml(f"example: {example}", "example").plain()["example"]


FROM_DEFAULTS = ("accuracy", "targets", "precisions")
"""Keys that `_defaults.yaml` may bring, so that editors accept a recipe without them."""

TENSORS = ("inputs", "outputs")
"""Required but for decoders, whose tensors follow from the model."""
