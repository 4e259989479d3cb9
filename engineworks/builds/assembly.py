"""A plan, its evaluated engines and stored step results → the build's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engineworks.builds.calibration_health import calibration_health
from engineworks.builds.ladders import ladders
from engineworks.builds.results import (
    BuildResult,
    EngineResult,
    Failure,
    RanStep,
    StepCounts,
    build_notes,
    synthetic_notes,
    waiver_notes,
)
from engineworks.builds.side_by_side import compare_with_peers
from engineworks.builds.step import Outcome
from engineworks.builds.step_facts import step_facts
from engineworks.plan.plan import Plan
from engineworks.plan.prepared import notes_of_data, notes_of_lowering
from engineworks.store.store import Store


def assemble_result(
    plan: Plan, engines: Sequence[EngineResult], store: Store, *,
    run: str, failures: Mapping[str, Failure], outcomes: Sequence[Outcome] = (), seconds: float = 0.0,
) -> BuildResult:  # fmt: skip
    """Assemble the result. run: id of the build's run in MLflow. failures: by key of the step. outcomes: of the steps
    that this build ran or found in the store; none for a recorded build. seconds: the build's duration."""
    calibration = calibration_health(plan, store)
    warnings = (
        *notes_of_data(plan, store), *notes_of_lowering(plan, store),
        *(warning for health in calibration for warning in health.report.warnings),
        *build_notes(engines), *synthetic_notes(plan, engines), *waiver_notes(plan, engines),
    )  # fmt: skip
    ran = tuple(RanStep(o.id, o.seconds, plan.steps[o.key].reason) for o in outcomes if o.how == "run")
    return BuildResult(
        recipe=plan.recipe,
        run=run,
        engines=tuple(engines),
        refused=plan.refused,
        steps=count_steps(plan, outcomes, failures),
        seconds=seconds,
        warnings=warnings,
        comparison=compare_with_peers(plan, engines, store, failures),
        calibration=calibration,
        ran=ran,
        ladder=ladders(plan, engines, store),
        dag=step_facts(plan, outcomes, failures),
        not_selected=plan.not_selected,
    )


def count_steps(plan: Plan, outcomes: Sequence[Outcome], failures: Mapping[str, Failure]) -> StepCounts:
    """Count the steps by outcome. A failure of a step that only a peer needs fails no build, and is not counted."""
    cached = sum(1 for step in plan.steps.values() if step.state == "cached")
    ran = sum(1 for outcome in outcomes if outcome.how == "run")
    needed = plan.closure(key for engine in plan.engines for key in engine.steps.values())
    return StepCounts(ran, cached + len(outcomes) - ran, len(needed & failures.keys()))
