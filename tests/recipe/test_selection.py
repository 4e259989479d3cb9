"""`--only`: repeated globs add up in every command that has it; other options may be given once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from engineworks.cli import app, run_command
from engineworks.errors import InputError, TargetError
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe, plan_recipes
from engineworks.recipe.load import load_recipe
from engineworks.recipe.selection import select
from engineworks.release.promotion import select_engines
from engineworks.store.store import Store

TINY = Path("recipes/tiny.yaml")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert run_command(["plan", *arguments, "--json"]) == 0
    return [e["id"] for r in json.loads(capsys.readouterr().out)["recipes"] for e in r["engines"]]


def test_repeated_globs_add_up(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = planned(capsys, str(TINY), "--only", "*/fp32/*", "--only", "*/int8/cpu")
    assert both == ["tiny/fp32/cpu", "tiny/int8/cpu"]
    assert planned(capsys, str(TINY), "--only", "*/int8/*") == ["tiny/int8/cpu"]
    assert planned(capsys, str(TINY), "--only", "*/int8/*", "--only", "*/int8/cpu") == ["tiny/int8/cpu"]


def test_globs_of_several_recipes_each_select_in_theirs(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = TINY.with_name("other.yaml")
    other.write_text(TINY.read_text().replace("recipe: tiny", "recipe: other"))
    found = planned(capsys, str(TINY), str(other), "--only", "tiny/fp32/*", "--only", "other/int8/*")
    assert found == ["tiny/fp32/cpu", "other/int8/cpu"]


@pytest.mark.parametrize(
    "command", [["plan"], ["build"], ["release"], ["package", "--out", "out", "--champions"], ["rollback"], ["limits"]]
)
def test_every_command_refuses_each_glob_that_selects_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    for globs in (["*/int8/*", "*/int9/*"], ["*/int9/*", "*/int8/*"]):
        options = [word for glob in globs for word in ("--only", glob)]
        assert run_command([command[0], str(TINY), *command[1:], *options]) == 2
        assert "--only '*/int9/*' matches no engine of tiny" in capsys.readouterr().err


def with_only() -> Iterator[str]:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if any("--only" in option.opts for option in command.params):
            yield name


def test_those_are_all_commands_that_have_it() -> None:
    assert sorted(with_only()) == [
        "build", "limits", "package", "plan", "rehearse", "release", "rollback", "serve",
    ]  # fmt: skip


def test_a_plan_of_one_recipe_takes_what_was_meant_for_others_too(repository: Path) -> None:
    loaded, store = load_recipe(TINY), Store(repository / "store")
    plan = plan_recipe(loaded, store, FileDigests(None), only="other/fp32/*,tiny/int8/*")
    assert [engine.id for engine in plan.engines] == ["tiny/int8/cpu"]
    with pytest.raises(TargetError, match="other/fp32"):
        plan_recipes([loaded], store, FileDigests(None), only="other/fp32/*,tiny/int8/*")
    with pytest.raises(InputError, match="other/fp32"):
        select_engines(loaded, "tiny/*,other/fp32/*")
    assert select(None, ["a/b/c"], "a") == ["a/b/c"]


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "recipes/tiny.yaml", "--compare", "pytorch", "--compare", "ort-cpu"],
        ["plan", "recipes/tiny.yaml", "--mode", "full", "--mode", "smoke"],
        ["changed", "--since", "HEAD", "--since", "HEAD~1"],
        ["init", "recipes/tiny.onnx", "--out", "a.yaml", "--out", "b.yaml"],
        ["gc", "--dry-run", "--keep-hours", "1", "--keep-hours", "2"],
    ],
)  # fmt: skip
def test_any_other_option_that_is_given_twice_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run_command(command) == 2
    assert f"{command[-2]} is given 2 times; give it once" in capsys.readouterr().err


def test_a_flag_may_be_given_twice(repository: Path) -> None:
    assert run_command(["validate", "-q", "-q", "recipes/tiny.yaml"]) == 0
