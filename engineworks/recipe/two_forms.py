"""Values that recipes may write in two forms, a short one and a long one: validators, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import PydanticCustomError

from engineworks.recipe.datasets.preparation import PYTHON_SLICES


def as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def as_numbers(value: object) -> object:
    return [value] if isinstance(value, int | float | str) else value


def numbers_schema(schema: dict[str, Any]) -> None:
    """Editors take both: a number and a list."""
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [listed["items"], listed]


def beside(short: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    """Editors take both: the short form, by its schema, and a list."""

    def add(schema: dict[str, Any]) -> None:
        listed = dict(schema)
        schema.clear()
        description = {"description": listed.pop("description")} if "description" in listed else {}
        schema.update(anyOf=[short, listed], **description)

    return add


def npz_schema(schema: dict[str, Any]) -> None:
    """Editors take both: a file and a list of files."""
    listed = next(choice for choice in schema.pop("anyOf") if choice.get("type") == "array")
    schema["anyOf"] = [{"type": "string"}, listed, {"type": "null"}]


def as_name(value: object) -> object:
    """{python: module:function} → 'python:module:function'; names stay."""
    if isinstance(value, dict) and value.keys() == {"python"} and isinstance(value["python"], str):
        return f"{PYTHON_SLICES}{value['python']}"
    if value is not None and not isinstance(value, str):
        raise PydanticCustomError("slices", "it should be a name, or {python: module:function}")
    return value


def slices_schema(schema: dict[str, Any]) -> None:
    """Editors take both: a name and a function."""
    python = {"type": "object", "additionalProperties": False, "required": ["python"]}
    schema["anyOf"] = [{"type": "string"}, {**python, "properties": {"python": {"type": "string"}}}, {"type": "null"}]
