"""A recipe's `keep` list: changed alone, comments and lines kept, whatever style it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.commands.recipe_patch import difference, replace_file, with_keep
from engineworks.errors import InputError
from engineworks.recipe.yaml_nodes import parse_yaml

RECIPES = sorted(p for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if not p.name.startswith("_"))


def changed_lines(before: str, after: str) -> list[str]:
    lines = difference(before, after, "r.yaml").splitlines()[2:]
    return [line for line in lines if line.startswith(("+", "-"))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_nothing_but_the_list_changes_in_the_recipes_that_ship(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    after = with_keep(text, ["a/b", "c[*]d"], recipe.name)
    assert parse_yaml(after, "x").plain()["calibration"]["keep"] == ["a/b", "c[*]d"]
    removed = [line for line in changed_lines(text, after) if line.startswith("-")]
    assert all("keep" in line or line.strip().startswith("-calibration: {") for line in removed), removed
    assert text.count("#") == after.count("#")


BLOCK = """\
recipe: x   # its name
calibration:
    # why min-max
    method: minmax     # stays
    keep:
    # the head
    - head/*     # never quantize it
    - body/1
    # the tail
    - tail/*     # noisy
    # about targets
targets: [cpu]
# the end
"""


def test_comments_of_entries_that_stay_and_lines_of_comment_stay() -> None:
    after = with_keep(BLOCK, ["new/1", "head/*"], "x.yaml")
    for comment in (
        "its name",
        "why min-max",
        "stays",
        "the head",
        "never quantize it",
        "the tail",
        "about targets",
        "the end",
    ):
        assert f"# {comment}" in after, comment
    assert "head/*     # never quantize it" in after
    assert "# noisy" not in after
    assert parse_yaml(after, "x").plain()["calibration"] == {"method": "minmax", "keep": ["new/1", "head/*"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe: x  # n\n", "recipe: x  # n\ncalibration:\n  keep: [a]\n"),
        ("calibration: {method: mse}  # y\nrecipe: x\n", "calibration: {method: mse, keep: [a]} # y\nrecipe: x\n"),
        ("calibration:\n  keep: [b, c]   # y\nrecipe: 'x'\n", "calibration:\n  keep: [a]      # y\nrecipe: 'x'\n"),
    ],
)
def test_the_list_finds_its_place(text: str, expected: str) -> None:
    assert with_keep(text, ["a"], "x.yaml") == expected


def test_a_long_list_gets_a_line_for_each_entry() -> None:
    after = with_keep(
        "calibration:\n  keep: [b]\nrecipe: x\n", [f"encoder/layer/{i}/output/dense" for i in range(9)], "x"
    )
    assert "\n    - encoder/layer/8/output/dense\nrecipe: x\n" in after


def test_an_empty_list_takes_the_key_out() -> None:
    assert (
        with_keep("recipe: x\ncalibration: {method: mse, keep: [a]}\n", [], "x")
        == "recipe: x\ncalibration: {method: mse}\n"
    )
    assert with_keep("recipe: x\ncalibration: {keep: [a]}\n", [], "x") == "recipe: x\n"


def test_the_same_list_is_no_change() -> None:
    assert with_keep(BLOCK, ["head/*", "body/1", "tail/*"], "x") == BLOCK


def test_windows_line_ends_stay() -> None:
    after = with_keep("recipe: x\r\ncalibration: {keep: [a]}\r\n", ["b"], "x")
    assert after == "recipe: x\r\ncalibration: {keep: [b]}\r\n"


def test_a_list_that_others_share_is_not_changed_behind_their_back() -> None:
    text = "calibration:\n  keep: &k [a]\nmixtures: {m: {int8: *k}}\n"
    with pytest.raises(InputError, match=r"x\.yaml: its 'keep' cannot be changed by itself"):
        with_keep(text, ["b"], "x.yaml")


def test_a_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o640)
    replace_file(file, "new")
    assert (file.read_text(encoding="utf-8"), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]
