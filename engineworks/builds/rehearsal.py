"""Builds recipes with other versions of packages, beside the present ones, and compares the results.

Each side builds in an environment and artifacts of its own, under `artifacts/rehearse/`: store, MLflow database and
champions of the present are neither read nor written. Both keep what they built for the next rehearsal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, EXIT_STEP_FAILED, InputError
from engineworks.host.environments import make_environment
from engineworks.measure.scorecard import Change, compare_builds
from engineworks.settings import Settings

WITH_RESULT = (EXIT_PASSED, EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_STEP_FAILED)
"""Exit codes of builds that print a result."""

SCORECARD_FILE = "scorecard.json"

OWN_PLACES = ("ENGINEWORKS_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PYTHONPATH", "PYTHONHOME")
"""Variables that would lead a build to the present artifacts, servers or packages."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsal:
    """requirements: the other versions. changes: by engine, the worst first. reports: pages of the builds."""

    requirements: tuple[str, ...]
    changes: tuple[Change, ...]
    file: Path

    @property
    def worse(self) -> bool:
        return any(change.tone == "worse" for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        changes = [change.to_json() for change in self.changes]
        return {"with": list(self.requirements), "worse": self.worse, "changes": changes, "file": str(self.file)}


def rehearse(
    recipes: Sequence[Path], requirements: Sequence[str], settings: Settings, say: Say, *, only: str | None = None
) -> Rehearsal:
    """Build on both sides and compare. Raises `InputError` for an environment that cannot be made or a bad recipe."""
    root = settings.artifacts / "rehearse"
    python = make_environment(requirements, root / "environments", say)
    sides = {}
    for name, executable in (("present", Path(sys.executable)), (python.parents[1].name, python)):
        say(f"building with {'the present versions' if name == 'present' else ', '.join(requirements)}")
        sides[name] = _build(executable, recipes, root / name, settings, say, only)
    changes = compare_builds(*sides.values())
    file = root / python.parents[1].name / SCORECARD_FILE
    found = Rehearsal(tuple(requirements), tuple(changes), file)
    file.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    return found


def _build(
    python: Path, recipes: Sequence[Path], artifacts: Path, settings: Settings, say: Say, only: str | None
) -> list[Mapping[str, Any]]:
    """Run `engineworks build` and return its results, one per recipe."""
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-c", "from engineworks.cli import main; main()", "build", *map(str, recipes), "--json"]
    command += ["--only", only] if only else []
    roots = os.pathsep.join(map(str, settings.data_roots))
    environ = {k: v for k, v in os.environ.items() if k not in OWN_PLACES}
    environ |= {"ENGINEWORKS_ARTIFACTS": str(artifacts)} | ({"ENGINEWORKS_DATA_ROOTS": roots} if roots else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode not in WITH_RESULT or not out.strip().startswith("{"):
        lines = [line for line in err.splitlines() if line.strip()]
        message = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
        raise InputError(
            f"{'the present' if python == Path(sys.executable) else 'the other'} build gave no result: {message}"
        )
    result = json.loads(out)
    return list(result["recipes"]) if "recipes" in result else [result]
