"""The main job: one recipe → gated, recorded engines. Order and fan-out only; tasks do the work.

A deployment has only plain values: its flow plans where it starts, with the settings of its environment. The command
has a plan and settings already, and passes them to `build_planned`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from engineworks.builds.delivery import publish_body, with_deliveries
from engineworks.builds.progress import listener
from engineworks.builds.results import BuildResult, EngineResult
from engineworks.builds.state import Build
from engineworks.errors import InputError, StoreError
from engineworks.plan.plan import Plan
from engineworks.recipe.smoke import Mode
from engineworks.report.answer import may_ship
from engineworks.settings import Settings, read_settings
from engineworks.tracking.spooled import SpooledRun
from flows.distributed_steps import run_distributed
from flows.local_steps import RUNNER, run_steps
from flows.outcomes import ended, opaque
from flows.planned import run_name, run_planned
from tasks.conclude_engines import conclude_engines
from tasks.plan_build import open_build, plan_build
from tasks.record_build import end_record, start_record
from tasks.report_build import report_build


@flow(
    name="build-recipe",
    flow_run_name=run_name,
    task_runner=RUNNER,  # type: ignore[arg-type]  # TaskRunner is invariant in its kind of future
)
def build_recipe(
    recipe: str,
    only: str | None = None,
    compare: str | None = None,
    distributed: bool = False,
    again: str | None = None,
    mode: Mode = "full",
) -> State[BuildResult]:
    """Build every engine of the recipe file that `only` (a glob over ids) selects, and measure the peers that `compare`
    names ('pytorch,ort-cpu').

    distributed: prepare here and order each engine from the work pool of its target; the result is in the store, and
    the last words of the run name its digest. again: glob over ids of engines to order again, even if workers built
    them before. mode: 'smoke' for a quick build that is not mistaken for a full one. Everything is recorded first; then
    the flow ends failed if a step or a gate failed.
    """
    if distributed and compare:
        raise InputError("peers are measured by a build in one process", hint="engineworks build --compare")
    build = plan_build(Path(recipe), read_settings(), only, compare, mode)
    if distributed:
        build.plan = with_deliveries(build.plan, build.store, again=again)
    listener().planned(build.plan)

    def spread(build: Build) -> None:
        run_distributed(build, recipe, again)

    result = build_and_evaluate(build, str(flow_run.get_id() or ""), spread if distributed else run_steps)
    return _ended(result, f"\n{_published(build, result)}" if distributed else "")


def build_planned(plan: Plan, settings: Settings, only: str | None) -> State[BuildResult]:
    """Build a plan made in this process."""

    def body() -> State[BuildResult]:
        build = open_build(opaque(plan), settings, plan.recipe)
        listener().planned(build.plan)
        return _ended(build_and_evaluate(build, str(flow_run.get_id() or "")))

    compare = ",".join(dict.fromkeys(peer.name for peer in plan.peers)) or None
    return run_planned(build_recipe, plan, only, body, compare=compare, mode=plan.loaded.mode)


def _ended(result: BuildResult, more: str = "") -> State[BuildResult]:
    reasons = (f"\n{e.id}: {e.status}: {_reason(e)}" for e in result.engines if e.verdict not in ("pass", "unmeasured"))
    message = may_ship(result).text + "".join(reasons)
    return ended(message + more, result, good=result.exit_code() == 0)


def _reason(engine: EngineResult) -> str:
    """Return the sentence of the failure, or of the first check that gave the verdict."""
    if engine.failure:
        return engine.failure.message
    return next((c.text for c in engine.checks if c.verdict == engine.verdict), "")


def _published(build: Build, result: BuildResult) -> str:
    """Store the verdicts; returns their digest, or why they are not stored."""
    try:
        return f"verdicts {publish_body(build.store, 'verdicts', result.recipe, result.to_json())}"
    except StoreError as error:
        return f"the verdicts are not stored: {error}"


def build_and_evaluate(build: Build, flow_run_id: str, run: Callable[[Build], None] = run_steps) -> BuildResult:
    """Run the steps (by `run`), evaluate every engine and record everything."""
    recording = start_record.submit(build, build.plan.recipe, flow_run_id)
    try:
        run(build)
    except BaseException:
        with recording.result():  # ends the record: KILLED or FAILED
            raise
    with recording.result() as record:
        return gate_and_record(build, record)


def gate_and_record(build: Build, run: SpooledRun) -> BuildResult:
    """Evaluate and record every engine, then the build."""
    build.settle()
    conclude_engines(build, run, build.plan.recipe)
    result = build.result(run.run_id)
    report = report_build(build, opaque(result), build.plan.recipe)
    end_record(build, run, opaque(result), build.plan.recipe, report)
    build.store.publish_waiting()
    waits = tuple(message for message in (run.warning, build.store.outage) if message)
    return replace(result, report=report, warnings=result.warnings + waits, seconds=build.seconds)
