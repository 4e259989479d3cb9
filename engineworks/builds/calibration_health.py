"""The quality of a recipe's calibrations: metrics and warnings, read from the artifacts that a plan names.

Drift is evaluated here, from the statistics that `calibrate` and `reference` store of their own samples, so the key of
neither depends on the other's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One calibration of a recipe. step: its id. figures: as in the artifact's report, without the inputs' values.

    warnings: messages about the ranges, the samples, and how these differ from the evaluation data.
    """

    step: str
    figures: Mapping[str, Any]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, **self.figures, "warnings": list(self.warnings)}

    def message(self) -> str:
        """Return the metrics in one line."""
        figures = self.figures
        return (
            f"{figures['method']} over {figures['samples']} samples, {figures['tensors']} tensors: "
            f"{figures['saturated']['mean']:.3%} of the values clipped, {figures['unused']['mean']:.0%} of the codes "
            f"unused, {figures['moved']['mean']:.1%} moved with the last samples (means over tensors)"
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
    figures = {k: v for k, v in report.to_json().items() if k != "warnings"}
    figures["inputs"] = {name: _without_values(statistics) for name, statistics in figures["inputs"].items()}
    return CalibrationHealth(step.id, figures, (*report.warnings, *_drift(report.inputs, evaluation)))


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


def _without_values(statistics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in statistics.items() if key != "drawn"}
