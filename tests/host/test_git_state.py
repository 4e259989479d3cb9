"""What git says of recipes, asked as seldom as possible."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import engineworks.host.git as state
from engineworks.host.git import Checkout, changed_files


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Committed: recipes of all kinds of names, in a folder that git could take for a pattern."""
    root = tmp_path / "repository"
    folder = root / "recipes [a-z]*"
    folder.mkdir(parents=True)
    for name in ("a.yaml", "b.yaml", "c.yml", "data.bin"):
        (folder / name).write_text("x\n", encoding="utf-8")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "recipes")
    return root


def git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *words],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def folder_of(repository: Path) -> Path:
    return next(p for p in repository.iterdir() if p.name != ".git")


@pytest.mark.parametrize("change", ["nothing", "a.yaml", "new.yaml", "c.yml", "data.bin", "gone"])
def test_the_checkout_says_of_every_file_what_git_says(repository: Path, change: str) -> None:
    folder = folder_of(repository)
    if change == "gone":
        (folder / "b.yaml").unlink()
    elif change != "nothing":
        (folder / change).write_text("another\n", encoding="utf-8")
    checkout = Checkout(repository)
    assert checkout.commit == git(repository, "rev-parse", "HEAD")
    for files in (["a.yaml"], ["b.yaml"], ["a.yaml", "new.yaml"], ["c.yml"], ["a.yaml", "c.yml"]):
        paths = [folder / name for name in files]
        assert checkout.changed(paths) == changed_files(repository, paths), files


def test_a_folder_that_git_knows_nothing_of_is_not_clean(repository: Path) -> None:
    new = repository / "new"
    new.mkdir()
    (new / "a.yaml").write_text("x\n", encoding="utf-8")
    assert Checkout(repository).changed([new / "a.yaml"]) == ["new/a.yaml"]


def test_many_clean_recipes_cost_two_questions(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    ask = state._answer

    def watched(root: Path, *arguments: str) -> str:
        asked.append(arguments)
        return ask(root, *arguments)

    monkeypatch.setattr(state, "_answer", watched)
    checkout = Checkout(repository)
    for name in ("a.yaml", "b.yaml") * 50:
        assert checkout.changed([folder_of(repository) / name]) == []
    assert checkout.commit
    assert [arguments[0] for arguments in asked] == ["rev-parse", "status"]


def test_outside_of_a_repository_there_is_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x\n", encoding="utf-8")
    checkout = Checkout(tmp_path)
    assert (checkout.commit, checkout.changed([tmp_path / "a.yaml"])) == ("", [])
