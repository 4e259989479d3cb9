"""`engineworks limits` from a recipe to its change."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engineworks.cli import run_command
from engineworks.commands.recipe_patch import difference, with_change
from engineworks.errors import InputError


def test_limits_are_suggested_and_written_with_the_comments_kept(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = repository / "recipes/tiny.yaml"
    before = recipe.read_text(encoding="utf-8").replace("    int8: {", "    # from the first night\n    int8: {")
    recipe.write_text(before, encoding="utf-8")
    assert run_command(["limits", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {(s["precision"], s["limit"]): s for s in found["limits"]}
    assert by_name["int8", "cosine"]["before"] == 0.98
    assert by_name["int8", "cosine"]["value"] > 0.98
    assert "16 samples" in by_name["int8", "metric_ratio"]["reason"]
    assert (found["written"], recipe.read_text(encoding="utf-8")) == (False, before)
    assert run_command(["limits", str(recipe), "--write", "-q"]) == 0
    after = recipe.read_text(encoding="utf-8")
    assert "    # from the first night\n    int8: {cosine: " in after
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) == 2
    assert run_command(["validate", str(recipe)]) == 0
    capsys.readouterr()
    assert run_command(["limits", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diff"] == ""


def test_engines_of_other_hosts_keep_their_limits(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = repository / "recipes/tiny.yaml"
    text = recipe.read_text(encoding="utf-8").replace("[fp32, int8]", "[fp32]").replace("[cpu]", "[rtx40]")
    recipe.write_text(text, encoding="utf-8")
    assert run_command(["limits", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "tiny/fp32/rtx40: its limits stay: it cannot run here" in said
    assert "no limit changes" in said


BASE = "recipe: a\naccuracy:\n  limits:\n    int8: {cosine: 0.98}   # why\n"


def with_limits(document: Any) -> None:
    given = document.setdefault("accuracy", {}).setdefault("limits", {})
    given.setdefault("int8", {})["cosine"] = 0.99
    given.setdefault("fp32", {})["metric"] = 0.95


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (BASE, "    int8: {cosine: 0.99}   # why\n    fp32:\n      metric: 0.95\n"),
        (BASE.rstrip("\n"), "cosine: 0.99}   # why"),
        (
            BASE.replace("  ", "    ") + "\n# tail\ntargets:\n- cpu\n",
            "        fp32:\n            metric: 0.95\n\n# tail\n",
        ),
        (
            "recipe: a\naccuracy:\n  limits: {fp32: {metric: .9},   # one\n           int8: {cosine: 9.8e-1}}   # two\n",
            "# one",
        ),
        ("recipe: a\nprecisions: [int8]   # one\n", "  limits:\n    int8:\n      cosine: 0.99\n"),
    ],
    ids=["two spaces", "no line end", "four spaces", "over lines", "no limits"],
)
def test_a_change_keeps_the_style_and_git_applies_it(tmp_path: Path, text: str, kept: str) -> None:
    after = with_change(text, with_limits, "a.yaml", "its limits")
    assert kept in after
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    diff = difference(text, after, "a.yaml")
    git = ["git", "-c", "safe.directory=*", "apply", "--unsafe-paths", f"--directory={tmp_path}", "-"]
    done = subprocess.run(git, input=f"int8: cosine 0.99\n{diff}", text=True, cwd="/", capture_output=True, check=False)
    assert (done.returncode, (tmp_path / "a.yaml").read_text(encoding="utf-8")) == (0, after), done.stderr


def test_a_change_that_would_lose_a_comment_is_refused() -> None:
    text = "recipe: a\naccuracy:\n  limits: {int8: {cosine: 0.98,   # one\n                  metric_ratio: 0.9}}\n"
    with pytest.raises(InputError, match="cannot be changed by themselves"):
        with_change(text, with_limits, "a.yaml", "its limits")
