"""What blame found → the record of the engine's build, and its report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from engineworks.builds.blame_result import BLAME_FILE, Blame
from engineworks.builds.from_mlflow import read_build
from engineworks.builds.recorded import build_of, engine_runs, find_run, read_json, recorded
from engineworks.builds.results import BuildResult
from engineworks.errors import InputError, TrackingError
from engineworks.report.gather import gather_background
from engineworks.report.write import write_report
from engineworks.settings import Settings
from engineworks.tracking.records import PLAN_FILE


def record_blames(results: Sequence[BuildResult], found: Sequence[Blame], settings: Settings) -> None:
    """Add each finding to its engine's run of these builds, and write their reports again."""
    by_engine = {blame.engine: blame for blame in found}
    tracking = recorded(settings)
    for result in results:
        engines = [e.id for e in result.engines if e.id in by_engine]
        if not engines:
            continue
        build = tracking.get_run(result.run)
        runs = {run.engine: run.run_id for run in engine_runs(tracking, build)}
        for engine in engines:
            if engine in runs:
                tracking.add_text(runs[engine], BLAME_FILE, json.dumps(by_engine[engine].to_json(), indent=1))
        background = gather_background(result, read_json(tracking, build.run_id, PLAN_FILE) or {}, tracking)
        write_report(result, settings.runs / build.run_id, background)


def record_in_newest(found: Blame, settings: Settings) -> None:
    """Add the finding to the engine's newest run, if one is recorded, and write that build's report again."""
    try:
        tracking = recorded(settings)
        build = build_of(tracking, find_run(tracking, found.engine))
        result = read_build(tracking, build)
    except (InputError, TrackingError):
        return  # nothing was recorded: the finding lies under artifacts/blame
    record_blames([result], [found], settings)
