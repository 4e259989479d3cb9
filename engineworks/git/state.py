"""The git commit that a file stands at; empty answers where there is no git or no repository."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

GIT_S = 5.0
"""Seconds that git may take."""


def commit_of(root: Path) -> str:
    """The commit that is checked out, '' outside of a repository."""
    return _git(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path, files: Sequence[Path]) -> list[str]:
    """Those of the files that differ from the commit, or that it does not have, as `git status` names them."""
    lines = _git(root, "status", "--porcelain", "--", *map(str, files)).splitlines()
    return [line[3:] for line in lines]


def _git(root: Path, *arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout if found.returncode == 0 else ""
