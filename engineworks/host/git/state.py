"""The git commit of a file; empty answers where there is no git or no repository."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

GIT_S = 5.0
"""Time limit for git in seconds."""


class Checkout:
    """A repository at first use: its commit and its differing files. If no YAML file of a folder differs, one query
    covers all its recipes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clean: dict[Path, bool] = {}

    @cached_property
    def commit(self) -> str:
        """Return the commit, '' outside of a repository."""
        return commit_of(self._root)

    def changed(self, files: Sequence[Path]) -> list[str]:
        """Return the files that differ, as `changed_files` names them; none outside of a repository."""
        if not self.commit or all(file.suffix == ".yaml" and self._is_clean(file.parent) for file in files):
            return []
        return changed_files(self._root, files)

    def _is_clean(self, folder: Path) -> bool:
        if folder not in self._clean:  # run within the folder: its name may look like a pattern to git
            self._clean[folder] = not _git(folder, "status", "--porcelain", "--", ":(glob)*.yaml")
        return self._clean[folder]


def commit_of(root: Path) -> str:
    """Return the checked-out commit, '' outside of a repository."""
    return _git(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path, files: Sequence[Path]) -> list[str]:
    """Return the files that differ from the commit or are not in it, as `git status` names them."""
    lines = _git(root, "status", "--porcelain", "--", *map(str, files)).splitlines()
    return [line[3:] for line in lines]


def _git(root: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
