"""Settings: environment variables, read once, as a frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import InputError

KNOWN_STATEMENTS = "ENGINEWORKS_KNOWN_STATEMENTS"


@dataclass(frozen=True)
class Settings:
    """Places of this run.

    artifacts: the root, set by ENGINEWORKS_ARTIFACTS (default: `artifacts` in the repository, or in the current folder
    outside a repository). store: a folder or fsspec URL, ENGINEWORKS_STORE (default: `<artifacts>/store`). data_roots:
    folders outside the repository that recipes may read, ENGINEWORKS_DATA_ROOTS (colon-separated). tracking_uri:
    MLFLOW_TRACKING_URI, None for the SQLite file under artifacts. known_statements: the newest releases that this
    host has seen, ENGINEWORKS_KNOWN_STATEMENTS (default: `<artifacts>/known-statements`).
    """

    artifacts: Path
    store: str
    data_roots: tuple[Path, ...] = ()
    tracking_uri: str | None = None
    known: Path | None = None

    @property
    def known_statements(self) -> Path:
        return self.known or self.artifacts / "known-statements"

    @property
    def runs(self) -> Path:
        """Reports and logs, one folder per run."""
        return self.artifacts / "runs"


def read_settings(environ: Mapping[str, str] | None = None, *, start: Path | None = None) -> Settings:
    """Settings from the environment; `start` replaces the current folder. Raises `InputError` where that is gone."""
    env = os.environ if environ is None else environ
    try:
        here = _real(start or Path.cwd())
    except FileNotFoundError:
        raise InputError("the current folder was deleted", hint="go to a folder that exists, and start again") from None
    artifacts = Path(env.get("ENGINEWORKS_ARTIFACTS") or (find_repository(here) or here) / "artifacts")
    artifacts = _real(here / artifacts)
    roots = env.get("ENGINEWORKS_DATA_ROOTS", "")
    return Settings(
        artifacts=artifacts,
        store=env.get("ENGINEWORKS_STORE") or str(artifacts / "store"),
        data_roots=tuple(_real(Path(p).expanduser()) for p in roots.split(os.pathsep) if p),
        tracking_uri=env.get("MLFLOW_TRACKING_URI") or None,
        known=_real(here / Path(known).expanduser()) if (known := env.get(KNOWN_STATEMENTS)) else None,
    )


def _real(path: Path) -> Path:
    """Resolve symbolic links; a loop of links stays, and who opens it gets an OSError."""
    return Path(os.path.realpath(path))


def find_repository(start: Path) -> Path | None:
    """The nearest folder at or above `start` that holds `.git`, None outside a repository."""
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            return folder
    return None


def uses_workarounds(environ: Mapping[str, str] | None = None) -> bool:
    """Whether known faults of the backends are worked around: unless ENGINEWORKS_WORKAROUNDS is 'off'.

    Off, a fault shows as a user of the bare library sees it, which `blame` and reports to its vendor need.
    """
    return (os.environ if environ is None else environ).get("ENGINEWORKS_WORKAROUNDS") != "off"
