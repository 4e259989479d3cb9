"""One pydantic error → a problem's wording: the given value and the required one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.recipe.examples import EXAMPLES

PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]*$": "small letters, digits, '.', '_' and '-', with a letter or digit first",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, '.', '_' and '-', with a letter or digit first",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a word such as batch: letters, digits and '_'",
    r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$": "a module and a name in it, such as metrics:accuracy",
    r"^\d{1,2}\.\d$": "a compute capability such as 8.9",
}
"""Descriptions of texts that match a pattern of the schema."""

HUGE = 2**64
"""Integers from here on are not shown: Python may refuse to write them."""

_WHY = {
    "string_type": "it should be text",
    "int_type": "it should be a whole number",
    "int_parsing": "it should be a whole number",
    "int_from_float": "it should be a whole number",
    "float_type": "it should be a number",
    "float_parsing": "it should be a number",
    "finite_number": "it should be a finite number, of at most 1.8e308",
    "bool_type": "it should be true or false",
    "bool_parsing": "it should be true or false",
    "tuple_type": "it should be a list, such as [a, b]",
    "dict_type": "it should be a mapping of names to values",
    "model_type": "it should be a mapping of keys to values",
    "model_attributes_type": "it should be a mapping of keys to values",
    "greater_than_equal": "it should be at least {ge:.10g}",
    "greater_than": "it should be more than {gt:.10g}",
    "less_than": "it should be less than {lt:.10g}",
    "less_than_equal": "it should be at most {le:.10g}",
    "too_short": "it needs at least {min_length}",
    "too_long": "it takes at most {max_length}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "it should not be empty",
    "date_from_datetime_parsing": "there is no such day",
    "date_parsing": "there is no such day",
    "unknown_metric": "it should name a metric, e.g. {{top_k: 5}}",
}


def reason(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """The requirement, by the error's type; pydantic's own words if Engineworks has none."""
    if kind == "string_pattern_mismatch":
        return f"it should be {PATTERNS.get(context['pattern'], 'like ' + context['pattern'])}"
    return _WHY[kind].format(**context) if kind in _WHY else message[:1].lower() + message[1:]


def given(value: object) -> str:
    """The value as a message shows it."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < HUGE else ""
    return text or "a whole number of more than 19 digits"


def example_of(part: str, key: str) -> str:
    """'recipe: bert-mini', or '' for a key without an example."""
    example = EXAMPLES.get(part, {}).get(key)
    return f"{key}: {example}" if example else ""
