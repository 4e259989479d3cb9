"""Git: the commit of a file, and a repository at a revision, in a temporary folder, independent of the working tree.

Unchanged files and files that git does not track (fetched data) are links to the working tree or copies of it; only
differing files are written from the revision. The repository itself, its index included, is not modified.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from engineworks.errors import InputError
from engineworks.settings import find_repository

GIT_S = 300.0
"""Time limit for git in seconds: a filter such as LFS fetches files that changed."""

LINKED_BYTES = 2**20
LINKED = (".npz",)
"""Data that is linked, not copied. Models and code are copied: they read files next to them, and a link resolves to the
folder of its target."""


@dataclass(frozen=True)
class Revision:
    """A commit: the user's name for it, its full id, and its repository (absolute)."""

    name: str
    commit: str
    repository: Path


@dataclass(frozen=True)
class RevisionTree:
    """A repository at a revision. root: the temporary folder. differing: paths that differ between the revision and the
    working tree; tracked: paths in the revision; both relative to the repository."""

    revision: Revision
    root: Path
    differing: frozenset[str]
    tracked: frozenset[str]

    def then(self, path: Path) -> Path:
        """Return where a path of the working tree is in this tree."""
        return self.root / path.relative_to(self.revision.repository)

    def name_of(self, path: Path) -> str | None:
        """Return a path of this tree, or of the linked working tree, relative to the repository; None outside of
        both."""
        for root in (self.root, self.revision.repository):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return None


def find_revision(start: Path, name: str) -> Revision:
    """Return the commit that `name` means in the repository around `start`.

    Raises `InputError` without git, outside of a repository, and for a name that git does not know.
    """
    root = find_repository(start.resolve())
    if root is None:
        raise InputError(f"{start} is in no git repository", hint="recipes as code need one: git init")
    answer = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if answer.returncode != 0:
        if "dubious ownership" in answer.stderr:
            raise InputError(f"git: {answer.stderr.strip()}")
        shallow = (root / ".git" / "shallow").is_file()
        fetch = "this clone is shallow: git fetch --unshallow" if shallow else "git fetch it, or see git log --oneline"
        raise InputError(f"git knows no revision '{name}' in {root}", hint=fetch)
    return Revision(name, answer.stdout.strip(), root)


@contextmanager
def checked_out(revision: Revision, folders: Sequence[Path], without: Sequence[Path] = ()) -> Iterator[RevisionTree]:
    """Yield the tree of the revision, in a folder that is removed afterwards. folders: the recipes' (absolute);
    untracked recipes there are in no revision. without: folders to leave out."""
    root = revision.repository
    differing = frozenset(_lines(root, "diff", "--name-only", "--no-renames", "-z", revision.commit, "--"))
    tracked = frozenset(_lines(root, "ls-tree", "-r", "-z", "--name-only", revision.commit))
    with TemporaryDirectory(prefix="engineworks-revision-") as name:
        tree = RevisionTree(revision, Path(name).resolve() / "tree", differing, tracked)
        unkept = {p.relative_to(root).as_posix() for folder in folders for p in folder.glob("*.yaml")} - tracked
        unkept |= {w.relative_to(root).as_posix() for w in without if w.is_relative_to(root)}
        _mirror(root, tree.root, set(folders), differing | unkept)
        (tree.root / ".git").mkdir()  # marks a repository, which paths of recipes may not leave
        if old := sorted(differing & tracked):
            _check_out(revision, tree.root, old, Path(name) / "index")
        for folder in folders:
            tree.then(folder).mkdir(parents=True, exist_ok=True)
        yield tree


def _mirror(root: Path, target: Path, real: set[Path], left_out: frozenset[str]) -> None:
    """Link or create what is in `root`, except `left_out`. Folders become links, unless they hold something left out or
    a folder of `real`."""
    mixed = {parent.as_posix() for name in left_out for parent in Path(name).parents}

    def bring(folder: Path, into: Path) -> None:
        into.mkdir()
        for entry in os.scandir(folder):
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            if name == ".git" or name in left_out:
                continue
            if entry.is_dir(follow_symlinks=False):
                if name in mixed or any(mixed_folder.is_relative_to(path) for mixed_folder in real):
                    bring(path, into / entry.name)
                else:
                    (into / entry.name).symlink_to(path)
            elif entry.is_symlink():
                (into / entry.name).symlink_to(path.readlink())
            elif entry.is_file():
                _bring_file(path, into / entry.name)

    bring(root, target)


def _bring_file(source: Path, target: Path) -> None:
    if source.suffix in LINKED and source.stat().st_size >= LINKED_BYTES:
        target.symlink_to(source)
        return
    try:
        shutil.copyfile(source, target)
    except PermissionError:  # unreadable there as here; its user reports that
        target.symlink_to(source)


def _check_out(revision: Revision, target: Path, names: Sequence[str], index: Path) -> None:
    """Write these files of the revision through a separate index, by git's rules (line ends, LFS)."""
    env = {"GIT_INDEX_FILE": str(index)}
    _git(revision.repository, "read-tree", revision.commit, env=env)
    prefix = f"--prefix={target}/"
    _git(revision.repository, "checkout-index", "-f", "-z", "--stdin", prefix, env=env, given="\0".join(names))


def _lines(root: Path, *arguments: str) -> list[str]:
    return [line for line in _git(root, *arguments).split("\0") if line]


def _git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, given: str | None = None) -> str:
    """Return git's output. Raises `InputError` with git's message."""
    answer = _run(root, *arguments, env=env, given=given)
    if answer.returncode != 0:
        raise InputError(f"git {arguments[0]}: {answer.stderr.strip() or f'exit code {answer.returncode}'}")
    return answer.stdout


def _run(
    root: Path, *arguments: str, env: Mapping[str, str] | None = None, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git without the location variables that a hook's git sets. Raises `InputError` where git cannot be run."""
    environ = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **(env or {})}
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, errors="surrogateescape", timeout=GIT_S, check=False,
            env=environ, input=given,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError("git is not installed", hint="git lists what changed since a revision") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"git {arguments[0]} took more than {GIT_S:.0f} s", hint="try it by hand") from None


STATE_S = 5.0
"""Time limit for a question about the state; its answers are empty where there is no git or no repository."""


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
            self._clean[folder] = not _answer(folder, "status", "--porcelain", "--", ":(glob)*.yaml")
        return self._clean[folder]


def commit_of(root: Path) -> str:
    """Return the checked-out commit, '' outside of a repository."""
    return _answer(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path, files: Sequence[Path]) -> list[str]:
    """Return the files that differ from the commit or are not in it, as `git status` names them."""
    lines = _answer(root, "status", "--porcelain", "--", *map(str, files)).splitlines()
    return [line[3:] for line in lines]


def _answer(root: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=STATE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
