"""The input of a step's `run`, and the folder for its output."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.recipe.datasets.preparation import find_made
from engineworks.typed_json import Report


@dataclass(frozen=True)
class StepJob:
    """The input of a step's `run`.

    params: the slice of the plan that it reads (part of its key). inputs: folders of earlier steps' artifacts by role.
    unkeyed: what cannot shape the result, mostly absolute paths. out: an empty folder to fill. say: logs one line of
    the step. crashes: how earlier attempts at this step ended, one sentence each. time_limit_s: after which the step is
    killed. reports: sha256 by name of the reports written so far. begin: when it began, by `time.monotonic`.
    """

    id: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    unkeyed: Mapping[str, Any]
    out: Path
    echo: Callable[[str], None]
    crashes: tuple[str, ...] = ()
    time_limit_s: float | None = None
    reports: dict[str, str] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """Return the time limit of code that this step waits for: it ends before the step, so that it is named."""
        if self.time_limit_s is None:
            return None
        return max(0.0, 0.95 * self.time_limit_s - (time.monotonic() - self.begin))

    def path(self, name: str) -> Path:
        """Return an absolute path from `unkeyed`, or of the samples that a `prepare` step made for this role."""
        return find_made(self.inputs[name]) if name in self.inputs else Path(self.unkeyed[name])

    def paths(self, name: str) -> tuple[Path, ...]:
        """Return paths as `path` does, for samples, which may lie in several files."""
        several = () if name in self.inputs else self.unkeyed[name]
        return tuple(map(Path, several)) if several and isinstance(several, list | tuple) else (self.path(name),)

    def write(self, report: Report) -> None:
        """Write a report into its own file."""
        self.write_json(report.FILE, report.to_json())

    def write_json(self, name: str, value: object) -> None:
        """Write a report into `out`. NaN is not JSON: write null for a missing value."""
        data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
        path = self.out / name
        path.unlink(missing_ok=True)  # whatever code of others put there, a link perhaps
        path.write_bytes(data)
        self.reports[name] = hashlib.sha256(data).hexdigest()
