"""What pydantic finds wrong, as problems at their places in the file and in Engineworks' wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engineworks.errors import Keys, Problem, did_you_mean
from engineworks.recipe.cascading_errors import RENAMED, meant_key, without_cascading
from engineworks.recipe.examples import EXAMPLES
from engineworks.recipe.metric import METRIC_WORDS, UNKNOWN_METRIC, metric_fields
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.yaml_nodes import Node

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], node: Node, problems: list[Problem]) -> M | None:
    """The model of a file's values; None, with `problems` added, where they do not fit."""
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        problems.extend(_problem(model, node, e) for e in without_cascading(error.errors(include_url=False)))
        return None


def validate_rest(node: Node) -> tuple[Recipe | None, frozenset[Keys]]:
    """The recipe without its wrong values, and the places of those values.

    The checks of fields against each other then run on the rest and report in the same pass.
    """
    wrong: set[Keys] = set()
    try:
        return Recipe.model_validate(node.plain()), frozenset()
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    for error in errors:
        path = _path_in_file(node, error["loc"])
        if not path or error["type"] == "missing":
            continue
        above = node.at(path[:-1])
        meant = meant_key(error, errors) if error["type"] == "extra_forbidden" else ""
        if meant and above.get(meant) is None:
            above.rename(str(path[-1]), meant)
            continue
        wrong.add(path)
        if path[0] == "inputs" and path[-1] == "dtype":  # it cannot be left out
            node.at(path).value = "float32"
        else:
            above.remove(path[-1])
    try:
        return Recipe.model_validate(node.plain()), frozenset(wrong)
    except ValidationError:
        return None, frozenset(wrong)


def _problem(model: type[BaseModel], node: Node, error: Any) -> Problem:
    """One pydantic error as a problem in Engineworks' wording, at its place."""
    loc = _path_in_file(node, error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        if new := RENAMED.get(loc):
            return Problem(node.key_place(loc), f"unknown key '{loc[-1]}': it is called '{new}' now")
        known = metric_fields(error["loc"]) or _fields_at(model, loc[:-1])
        return Problem(node.key_place(loc), f"unknown key '{loc[-1]}'", did_you_mean(str(loc[-1]), known))
    where = ".".join(str(s) for s in loc if not isinstance(s, int)) or "the file"
    if kind == "missing":
        above = node.at(loc[:-1])
        return Problem(above.place, f"'{where}' is missing", _what_is_missing(model, loc))
    value = error["input"]
    shown = given(value)
    if kind == UNKNOWN_METRIC and value:
        name = next(iter(value))
        return Problem(node.key_place((*loc, name)), f"unknown metric '{name}'", did_you_mean(name, METRIC_WORDS))
    if kind == "literal_error":
        choices = [c.strip(" '") for c in str(context["expected"]).replace(" or ", ",").split(",")]
        return Problem(node.at(loc).place, f"{where}: {shown} is not a choice", did_you_mean(str(value), choices))
    place = node.key_place(tuple(s for s in loc if s != "[key]")) if "[key]" in loc else node.at(loc).place
    too_large = kind == "float_type" and isinstance(value, int) and not isinstance(value, bool)
    hint = reason("finite_number" if too_large else kind, str(error["msg"]), context)
    if kind in ("model_type", "dict_type", "model_attributes_type", "tuple_type") and (example := _example(model, loc)):
        hint += f", e.g. {example}"
    return Problem(place, f"{where}: {shown} is not allowed", hint)


def _path_in_file(node: Node, loc: Sequence[str | int]) -> Keys:
    """The location of an error without the branches of unions ('int', 'constrained-str').

    pydantic adds those, but they are not keys of the file.
    """
    path: Keys = ()
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if node.at(path).get(step) is not None or step == "[key]" or (last and _plain_name(step)):
            path = (*path, step)
    return path


_BRANCHES = frozenset({"int", "str", "constrained-int", "constrained-str", "PythonMetric"})
"""Pydantic's names for the branches of unions."""


def _plain_name(step: str | int) -> bool:
    return isinstance(step, str) and "[" not in step and step not in _BRANCHES


def _fields_at(model: type[BaseModel], loc: Keys) -> list[str]:
    """The keys that are allowed at `loc`: its model's fields."""
    at = _model_at(model, loc)
    return list(at.model_fields) if at else []


def _what_is_missing(model: type[BaseModel], loc: Keys) -> str:
    """'name of the recipe: …, e.g. recipe: bert-mini'."""
    above, example = _model_at(model, loc[:-1]), _example(model, loc)
    field = above.model_fields.get(str(loc[-1])) if above else None
    description = (field.description or "") if field else ""
    return f"{description}, e.g. {example}" if description and example else description or example


def _example(model: type[BaseModel], loc: Keys) -> str:
    above = _model_at(model, loc[:-1])
    return example_of(above.__name__, str(loc[-1])) if above else ""


def _model_at(model: type[BaseModel], loc: Keys) -> type[BaseModel] | None:
    kind: Any = model
    for step in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(step))
            kind = field.annotation if field else None
        else:
            kind = _inner(kind)
        kind = _first_model(kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _inner(kind: Any) -> Any:
    """dict[K, V] → V, tuple[T, ...] → T."""
    arguments = [a for a in getattr(kind, "__args__", ()) if a is not Ellipsis]
    return arguments[-1] if arguments else None


def _first_model(kind: Any) -> Any:
    """The model of `Model | None` and `Annotated[Model, …]`; other types are unchanged."""
    for choice in getattr(kind, "__args__", ()):
        if isinstance(choice, type) and issubclass(choice, BaseModel) and not hasattr(kind, "__origin__"):
            return choice
    return kind


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
