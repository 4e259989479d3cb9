"""Keys that take one value or a list of them: how they are read, and what editors are told."""

from __future__ import annotations

from typing import Any


def columns_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def columns_schema(schema: dict[str, Any]) -> None:
    """Editors take both: a name and a list."""
    listed = dict(schema)
    schema.clear()
    words = {"description": listed.pop("description")} if "description" in listed else {}
    schema.update(anyOf=[{"type": "string"}, listed], **words)


def npz_schema(schema: dict[str, Any]) -> None:
    """Editors take both: a file and a list of files."""
    listed = next(choice for choice in schema.pop("anyOf") if choice.get("type") == "array")
    schema["anyOf"] = [{"type": "string"}, listed, {"type": "null"}]
