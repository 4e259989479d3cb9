"""The git commit that a file stands at; empty answers where there is no git or no repository."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

GIT_S = 5.0
"""Seconds that git may take."""


class Checkout:
    """A repository as git knows it when it is first asked: its commit, and which files differ from that. Where none of
    a folder's YAML files does, one look covers all its recipes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clean: dict[Path, bool] = {}

    @cached_property
    def commit(self) -> str:
        """'' outside of a repository."""
        return commit_of(self._root)

    def changed(self, files: Sequence[Path]) -> list[str]:
        """Those of the files that differ, as `changed_files` names them; none outside of a repository."""
        if not self.commit or all(file.suffix == ".yaml" and self._is_clean(file.parent) for file in files):
            return []
        return changed_files(self._root, files)

    def _is_clean(self, folder: Path) -> bool:
        if folder not in self._clean:  # asked from within it, for its name may hold what git takes for a pattern
            self._clean[folder] = not _git(folder, "status", "--porcelain", "--", ":(glob)*.yaml")
        return self._clean[folder]


def commit_of(root: Path) -> str:
    """The commit that is checked out, '' outside of a repository."""
    return _git(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path, files: Sequence[Path]) -> list[str]:
    """Those of the files that differ from the commit, or that it does not have, as `git status` names them."""
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
