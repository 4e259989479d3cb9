"""The table of step kinds: complete, and the only place that knows these facts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from engineworks.errors import StepError
from engineworks.plan.kinds import STEP_KINDS, StepKind, StepName
from engineworks.recipe.examples import EXAMPLES
from engineworks.recipe.recipe import TimeLimits
from tasks.run_steps import STEP_TASKS

ROOT = Path(__file__).parents[2]
TABLES = ("engineworks/plan/kinds.py", "engineworks/recipe/recipe.py", "engineworks/recipe/examples.py")


@pytest.mark.parametrize(("name", "kind"), STEP_KINDS.items())
def test_every_kind_has_all_its_facts(name: StepName, kind: StepKind) -> None:
    assert kind.version >= 1
    assert issubclass(kind.error, StepError)
    assert kind.error is not StepError
    before = list(STEP_KINDS)[: list(STEP_KINDS).index(name)]
    assert set(kind.reads) <= set(before)
    assert all(STEP_KINDS[read].column < kind.column for read in kind.reads)
    assert kind.reads or name in ("export", "prepare")
    assert bool(kind.report) or kind.owner == "recipe"


def test_the_names_and_the_rows_are_the_same() -> None:
    assert get_args(StepName) == tuple(STEP_KINDS) == tuple(STEP_TASKS)


def test_what_runs_alone_or_in_a_new_process_takes_times() -> None:
    assert {name for name, kind in STEP_KINDS.items() if kind.alone} == {"measure", "compare_champion", "serve", "peer"}
    assert {name for name, kind in STEP_KINDS.items() if kind.fresh} == {"measure", "serve", "peer"}


def test_every_step_of_a_build_can_have_a_time_limit() -> None:
    of_builds = {name for name, kind in STEP_KINDS.items() if kind.owner != "command"}
    assert TimeLimits.model_fields.keys() == of_builds == EXAMPLES["TimeLimits"].keys()


def test_no_other_module_lists_kinds_of_steps() -> None:
    """More than two kinds in one literal would be another table that a new kind has to be added to."""
    listed = [f"{file}:{line}" for file in _sources() for line in _lists_of_kinds(file)]
    assert listed == []


def _sources() -> Iterator[Path]:
    for folder in ("engineworks", "flows", "tasks"):
        yield from (f for f in (ROOT / folder).rglob("*.py") if f.relative_to(ROOT).as_posix() not in TABLES)


def _lists_of_kinds(file: Path) -> Iterator[int]:
    text = file.read_text(encoding="utf-8")
    if sum(f'"{kind}"' in text for kind in STEP_KINDS) <= 3:
        return  # most files, unparsed
    for node in ast.walk(ast.parse(text)):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        words = {item.value for item in items if isinstance(item, ast.Constant)}
        if len(words & STEP_KINDS.keys()) > 3:
            yield node.lineno  # type: ignore[attr-defined]


def test_a_row_has_no_fact_that_nothing_reads() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in _sources())
    unread = {field.name for field in fields(StepKind) if f".{field.name}" not in text}
    assert unread == {"reads"}  # what the drawing's columns are checked with, above
