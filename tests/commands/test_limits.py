"""`engineworks limits` from a recipe to its change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engineworks.cli import _run


def test_limits_are_suggested_and_written_with_the_comments_kept(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = repository / "recipes/tiny.yaml"
    before = recipe.read_text(encoding="utf-8").replace("    int8: {", "    # from the first night\n    int8: {")
    recipe.write_text(before, encoding="utf-8")
    assert _run(["limits", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {(s["precision"], s["limit"]): s for s in found["limits"]}
    assert by_name["int8", "cosine"]["before"] == 0.98
    assert by_name["int8", "cosine"]["value"] > 0.98
    assert "16 samples" in by_name["int8", "metric_ratio"]["reason"]
    assert (found["written"], recipe.read_text(encoding="utf-8")) == (False, before)
    assert _run(["limits", str(recipe), "--write", "-q"]) == 0
    after = recipe.read_text(encoding="utf-8")
    assert "    # from the first night\n    int8: {cosine: " in after
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) == 2
    assert _run(["validate", str(recipe)]) == 0
    capsys.readouterr()
    assert _run(["limits", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diff"] == ""


def test_engines_of_other_hosts_keep_their_limits(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = repository / "recipes/tiny.yaml"
    text = recipe.read_text(encoding="utf-8").replace("[fp32, int8]", "[fp32]").replace("[cpu]", "[rtx40]")
    recipe.write_text(text, encoding="utf-8")
    assert _run(["limits", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "tiny/fp32/rtx40: its limits stay: it cannot run here" in said
    assert "no limit changes" in said
