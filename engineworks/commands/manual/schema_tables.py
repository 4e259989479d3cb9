"""A JSON Schema → Markdown: one table per part, one row per key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.recipe.schema import FROM_DEFAULTS

Schema = Mapping[str, Any]

PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]*$": "name",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "name",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "dimension",
    r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$": "module:name",
    r"^\d+(\.\d*)?\s*%$": "percentage",
    r"^\d{1,2}\.\d$": "capability",
}
"""Names for the patterns of the schema."""


def key_rows(part: Schema, links: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield (key, type, default, meaning, example) of every key, as Markdown. links: headings by name of part."""
    required = part.get("required", ())
    for key, schema in part["properties"].items():
        examples = schema.get("examples")
        yield (
            f"`{key}`",
            type_text(schema, links),
            "required" if key in required else default_text(key, schema),
            schema.get("description", ""),
            f"`{flow_yaml(examples[0])}`" if examples else "",
        )


def markdown_table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def default_text(key: str, schema: Schema) -> str:
    """Return the value that applies without the key; a dash if there is none."""
    if key in FROM_DEFAULTS:
        return "required, here or in `_defaults.yaml`"
    value = schema.get("default")
    if value is None or value in ("", [], {}) or isinstance(value, dict):
        return "–"
    return f"`{flow_yaml(value)}`"


def type_text(schema: Schema, links: Mapping[str, str]) -> str:
    """Return the type as Markdown text; parts with their own section are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{links[name]}](#{anchor(links[name])})" if name in links else name
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " · ".join(f"`{value}`" for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            types = [type_text(choice, links) for choice in schema[several] if choice.get("type") != "null"]
            return " or ".join(dict.fromkeys(types))
    return _plain_description(schema, links)


def _plain_description(schema: Schema, links: Mapping[str, str]) -> str:
    kind = schema.get("type")
    if kind == "array":
        return _list_type(schema, links)
    if kind == "object":
        inner = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
        return f"by name: {type_text(inner, links)}" if isinstance(inner, dict) else "mapping"
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(schema)
    if kind == "boolean":
        return "`true` · `false`"
    if schema.get("format") == "date":
        return "date"
    return PATTERNS.get(schema.get("pattern", ""), "text")


def _list_type(schema: Schema, links: Mapping[str, str]) -> str:
    if "prefixItems" in schema:
        return "[" + ", ".join(type_text(entry, links) for entry in schema["prefixItems"]) + "]"
    item = type_text(schema.get("items", {}), links)
    exact = schema.get("minItems") == schema.get("maxItems") and "minItems" in schema
    return f"{schema['minItems']} of: {item}" if exact else f"list of: {item}"


def _bounds(schema: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def anchor(heading: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def flow_yaml(value: Any) -> str:
    """Return a value as YAML on one line, as a person would write it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_plain_or_quoted(str(k))}: {flow_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow_yaml(v) for v in value) + "]"
    return _plain_or_quoted(value) if isinstance(value, str) else json.dumps(value)


def _plain_or_quoted(text: str) -> str:
    """Quote text that flow YAML would read as something else."""
    plain = text and not set(text) & set("[]{},#'\"") and text[0] not in "*&!|>%@`?-" and ": " not in text
    return text if plain and not text.startswith("op:") else f"'{text}'"
