"""The generated pages are up to date, whole, and their examples are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engineworks.cli import run_command
from engineworks.commands.manual.recipe_reference import SECTIONS, recipe_reference
from engineworks.commands.manual.schema_tables import flow_yaml, type_text
from engineworks.commands.manual.target_tables import target_tables
from engineworks.commands.manual.write import manual_pages
from engineworks.engines.capabilities import why_not
from engineworks.recipe.schema import recipe_schema
from engineworks.recipe.yaml_nodes import parse_yaml

REPOSITORY = Path(__file__).parents[2]


SCHEMA = recipe_schema()


def parts() -> dict[str, Any]:
    return {"Recipe": SCHEMA, **SCHEMA["$defs"]}


@pytest.fixture(scope="module")
def reference() -> str:
    return recipe_reference()


KEYS = [(name, key) for name, part in parts().items() for key in part["properties"]]


def test_the_generated_pages_are_up_to_date() -> None:
    for path, text in manual_pages(REPOSITORY / "docs").items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run 'engineworks manual'"


def test_the_command_says_so_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert run_command(["manual", "docs"]) == 0
    assert capsys.readouterr().out == "every page is up to date\n"


def test_a_page_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "targets.md").write_text("# Targets\n", encoding="utf-8")
    assert run_command(["manual", str(tmp_path)]) == 2
    assert "targets.md: has not both lines" in capsys.readouterr().err


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_part_of_the_schema_has_a_section() -> None:
    assert set(SECTIONS) == set(parts())


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_every_key_says_what_it_means_and_has_an_example_that_fits(part: str, key: str, reference: str) -> None:
    found = parts()[part]["properties"][key]
    assert found.get("description"), f"{part}.{key}: no description"
    (example,) = found["examples"]
    alone = {"$ref": found["$ref"]} if "$ref" in found else found
    Draft202012Validator({**alone, "$defs": SCHEMA["$defs"]}).validate(example)
    assert f"`{key}`" in reference
    assert parse_yaml(f"x: {flow_yaml(example)}", "x").plain() == {"x": example}


def test_types_are_words() -> None:
    assert type_text({"type": "integer", "minimum": 1}, {}) == "whole number ≥ 1"
    assert type_text({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, {}) == "number > 0"
    assert type_text({"enum": ["a", "b"]}, {}) == "`a` · `b`"
    assert type_text({"type": "array", "items": {"type": "boolean"}}, {}) == "list of: `true` · `false`"


def test_the_tables_say_what_the_plan_says() -> None:
    lines = target_tables().splitlines()
    begin = lines.index("### TensorRT-RTX 1.7")
    head = next(line for line in lines[begin:] if line.startswith("| precision"))
    row = next(line for line in lines[begin:] if line.startswith("| `fp8`"))
    cells = dict(zip(head.split(" | ")[1:], row.split(" | ")[1:], strict=True))
    assert cells["8.6"] == "no"
    assert cells["8.9"] == "yes"
    assert why_not("tensorrt_rtx", "1.7", "fp8", ("8.6",))
    assert "9.0" not in cells
