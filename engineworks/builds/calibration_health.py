"""The quality of a recipe's calibrations: metrics and warnings, read from the artifacts that a plan names.

Drift is evaluated here, from the statistics that `calibrate` and `reference` store of their own samples, so the key of
neither depends on the other's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engineworks.model.calibrate.report import CalibrationReport
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step
from engineworks.store.store import Store

if TYPE_CHECKING:
    from engineworks.model.calibrate.inputs import InputStatistics

INPUTS = "inputs.json"


@dataclass(frozen=True)
class CalibrationHealth:
    """One calibration of a recipe. step: its id. report: the artifact's, without the inputs' values; its warnings are
    also about how the samples differ from the evaluation data."""

    step: str
    report: CalibrationReport

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, **self.report.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CalibrationHealth:
        """The inverse of `to_json`. Raises `StoreError`."""
        report = {key: part for key, part in value.items() if key != "step"}
        return cls(value["step"], CalibrationReport.from_json(report, value["step"]))

    def message(self) -> str:
        """Return the metrics in one line."""
        report = self.report
        return (
            f"{report.method} over {report.samples} samples, {report.tensors} tensors: "
            f"{report.saturated.mean:.3%} of the values clipped, {report.unused.mean:.0%} of the codes "
            f"unused, {report.moved.mean:.1%} moved with the last samples (means over tensors)"
        )


def calibration_health(plan: Plan, store: Store) -> tuple[CalibrationHealth, ...]:
    """Return every calibration of the plan whose artifact the store has, in the order of the plan."""
    evaluation = _evaluation(plan, store)
    steps = [step for step in plan.steps.values() if step.kind == "calibrate"]
    return tuple(health for step in steps if (health := _health(step, store, evaluation)) is not None)


def _health(step: Step, store: Store, evaluation: Mapping[str, Any]) -> CalibrationHealth | None:
    artifact = store.get(step.key)
    if artifact is None or CalibrationReport.FILE not in artifact.files:
        return None
    report = artifact.read(CalibrationReport)
    warnings = (*report.warnings, *_drift(report.inputs, evaluation))
    inputs = {name: replace(statistics, drawn=()) for name, statistics in report.inputs.items()}
    return CalibrationHealth(step.id, replace(report, warnings=warnings, inputs=inputs))


def _drift(before: Mapping[str, InputStatistics], evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    from engineworks.model.calibrate.inputs import drift
    from engineworks.model.calibrate.trust import constant_integers

    now = _statistics(evaluation)
    return (*constant_integers(before, now), *drift(before, now))


def _statistics(inputs: Mapping[str, Any]) -> dict[str, InputStatistics]:
    from engineworks.model.calibrate.inputs import InputStatistics

    return {name: InputStatistics.from_json(statistics) for name, statistics in inputs.items()}


def _evaluation(plan: Plan, store: Store) -> Mapping[str, Any]:
    """Return statistics of the evaluation data; empty where the reference was not made."""
    for step in plan.steps.values():
        artifact = store.get(step.key) if step.kind == "reference" else None
        if artifact is not None and INPUTS in artifact.files:
            statistics: Mapping[str, Any] = artifact.read_json(INPUTS)
            return statistics
    return {}
