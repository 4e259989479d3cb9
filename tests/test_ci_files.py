"""The files for CI: they parse, they say what the documents say, and their shell does what it is meant to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from engineworks.cli import app, run_command

ROOT = Path(__file__).parents[1]
STUB = """#!/bin/sh
echo "$@" >> calls.txt
case "$*" in
  "changed "*--quiet) printf 'recipes/a.yaml\\nrecipes/b.yaml\\nrecipes/c.yaml\\n' ;;
  "changed "*) echo "recipes/a.yaml: changed" ;;
  "plan recipes/b.yaml --only "*) exit 2 ;;
  "plan "*) echo "# Plan" ;;
  "build recipes/a.yaml "*) mkdir -p artifacts/runs/x; echo "# a: fail" > artifacts/runs/x/report.md; exit 1 ;;
esac
"""
"""Three changed recipes: a fails its gate, b has nothing for this runner, c passes."""


def read(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run as GitHub does: bash -e, with the stub in place of engineworks."""
    stub = folder / "bin" / "engineworks"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    environ = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "ENGINES": "*/*/cpu", **env}
    return subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environ, capture_output=True, text=True)


def github_steps() -> dict[str, Any]:
    steps = read("docs/ci/github-actions.yml")["jobs"]["plan"]["steps"]
    return {s["name"]: s for s in steps if "name" in s}


def test_github_plans_builds_and_hands_on_the_most_severe_code_with_a_comment(tmp_path: Path) -> None:
    steps, output = github_steps(), tmp_path / "output"
    done = shell(steps["Plan what changed"]["run"], tmp_path, GITHUB_OUTPUT=str(output), BASE="abc")
    assert done.returncode == 0, done.stderr
    done = shell(steps["Build and evaluate what runs here"]["run"], tmp_path, GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_text().split() == ["build=yes", "code=1"]
    comment = (tmp_path / "comment.md").read_text()
    assert [line for line in comment.splitlines() if line.startswith("#")] == [
        "## Changed",
        "# Plan",
        "# Verdicts",
        "# a: fail",
    ]
    calls = (tmp_path / "calls.txt").read_text()
    assert "plan --markdown recipes/a.yaml recipes/b.yaml recipes/c.yaml" in calls
    assert re.findall(r"build recipes/(\w)", calls) == ["a", "c"]
    assert shell(steps["The build's own verdict"]["run"], tmp_path, CODE="1").returncode == 1


def test_gitlab_comments_first_and_then_ends_with_the_most_severe_code(tmp_path: Path) -> None:
    script = "\n".join(read("docs/ci/gitlab-ci.yml")["plan recipes"]["script"])
    done = shell(script, tmp_path, CI_MERGE_REQUEST_DIFF_BASE_SHA="abc")
    assert done.returncode == 1, done.stderr
    assert "# a: fail" in (tmp_path / "comment.md").read_text()


def test_what_an_author_may_name_reaches_no_shell_as_text() -> None:
    text = (ROOT / "docs/ci/github-actions.yml").read_text()
    for step in (s for job in read("docs/ci/github-actions.yml")["jobs"].values() for s in job["steps"]):
        assert "${{" not in step.get("run", "")
    assert "pull_request_target" not in text


def test_commands_and_options_of_the_files_exist() -> None:
    import typer.main

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    texts = [(ROOT / f"docs/ci/{name}").read_text() for name in ("github-actions.yml", "gitlab-ci.yml")]
    used = re.findall(r"^\s*(?:- |.*xargs )?engineworks (\w+)([^|>\n]*)", "\n".join(texts), re.MULTILINE)
    assert {name for name, _ in used} == {"validate", "changed", "plan", "build"}
    for name, rest in used:
        known = {o for p in commands[name].params for o in p.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


def test_the_hook_validates_every_recipe_whatever_file_was_touched(repository: Path) -> None:
    (hook,) = read(".pre-commit-hooks.yaml")
    assert not hook["pass_filenames"]
    assert re.search(hook["files"], "recipes/_defaults.yaml")
    assert not re.search(hook["files"], "docs/recipes.md")
    command = hook["entry"].split()
    assert command[0] == "engineworks"
    assert run_command(command[1:]) == 0
    (repository / "recipes" / "tiny.yaml").write_text("recipe: tiny\n")
    assert run_command(command[1:]) == 2


def test_a_plan_as_markdown_names_what_is_to_do_and_why(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text().replace("[fp32, int8]", "[fp32, bf16]").replace("int8: {cosine", "bf16: {cosine")
    path.write_text(text)
    assert run_command(["plan", "recipes/tiny.yaml", "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| tiny/fp32/cpu/build | never built |" in shown
    assert "- **refused** tiny/bf16/cpu: " in shown


def test_the_documented_deployment_is_one_that_prefect_takes() -> None:
    from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

    from flows.on_commit import on_commit

    text = (ROOT / "docs" / "recipes-as-code.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "deployments:" in b)
    (deployment,) = YAML(typ="safe").load(block)["deployments"]
    module, _, function = deployment["entrypoint"].rpartition(".")
    assert module == on_commit.fn.__module__
    assert function == on_commit.fn.__name__
    assert set(deployment["parameters"]) <= set(on_commit.parameters.properties)
    trigger = DeploymentEventTrigger.model_validate(deployment["triggers"][0])
    assert trigger.expect == {"recipe.committed"}
    assert set(trigger.parameters or {}) <= set(on_commit.parameters.properties)
