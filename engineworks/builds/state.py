"""One build in progress: what its tasks share, as one handle.

A plain class on purpose: Prefect walks through dataclasses and mappings that are handed to a task, and a plan is large.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from engineworks.builds.calibration_health import calibration_health
from engineworks.builds.ladders import ladders
from engineworks.builds.passport import recipe_origin
from engineworks.builds.results import (
    BuildResult,
    EngineResult,
    Failure,
    RanStep,
    StepCounts,
    build_notes,
    engine_result,
    synthetic_notes,
    waiver_notes,
)
from engineworks.builds.side_by_side import compare_with_peers
from engineworks.builds.step import Outcome
from engineworks.builds.step_facts import step_facts
from engineworks.errors import StoreError
from engineworks.measure.ladder.ladder import ladder_words
from engineworks.plan.plan import Plan
from engineworks.plan.prepared import notes_of_data, notes_of_lowering
from engineworks.settings import Settings
from engineworks.store.open import open_store
from engineworks.tracking.runs import open_tracking


class Build:
    """A plan, the store and the record that it works with, and what has come of it so far.

    results: the store as verdicts read it, see `settle`.
    """

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self.plan = plan
        self.settings = settings
        self.store = open_store(settings)
        self.results = self.store
        self.tracking = open_tracking(settings.artifacts, settings.tracking_uri)
        self.outcomes: list[Outcome] = []
        self.failures: dict[str, Failure] = {}
        self.engines: dict[str, EngineResult] = {}
        self._started = time.monotonic()

    def settle(self) -> None:
        """Call it when all steps have ended. Where the store that others share does not answer, verdicts are read from
        what is here, and a result that is not has failed: so every engine gets a word."""
        failed = set(self.failures)
        for key in self.plan.goals:
            try:
                self.store.get(key)
            except StoreError as error:
                self.results = self.store.here
                step = self.plan.steps[key]
                if step.state in ("cached", "to do") and not failed & self.plan.closure([key]):
                    self.failures[key] = Failure(
                        step.id, f"{step.id} cannot be read: {error}", exit_code=error.exit_code
                    )

    @cached_property
    def origin(self) -> Mapping[str, Any]:
        """The recipe's text and commit, as passports tell it."""
        return recipe_origin(self.plan)

    @cached_property
    def ladder_words(self) -> Mapping[str, str]:
        """By engine, what the ladder of `precisions: auto` says of it. Read when all steps have ended: an engine is
        recorded by itself, but judged beside the others."""
        if self.plan.loaded.auto is None:
            return {}
        engines = [engine_result(self.plan, e, self.results, self.failures) for e in self.plan.engines]
        return ladder_words(ladders(self.plan, engines, self.results))

    def result(self, run_id: str) -> BuildResult:
        """What the build came to; `run_id`: its parent run in MLflow."""
        engines = tuple(self.engines.values())
        seconds = time.monotonic() - self._started
        calibration = calibration_health(self.plan, self.results)
        told = (sentence for health in calibration for sentence in health.warnings)
        notes = (*notes_of_data(self.plan, self.results), *notes_of_lowering(self.plan, self.results))
        doubts = (*notes, *told, *build_notes(engines), *synthetic_notes(self.plan, engines))
        return BuildResult(
            self.plan.recipe, run_id, engines, self.plan.refused, self.counts(),
            seconds=seconds, warnings=(*doubts, *waiver_notes(self.plan, engines)), calibration=calibration,
            comparison=compare_with_peers(self.plan, engines, self.results, self.failures),
            ran=tuple(self._ran()),
            ladder=ladders(self.plan, engines, self.results),
            dag=step_facts(self.plan, self.outcomes, self.failures), not_selected=self.plan.not_selected,
        )  # fmt: skip

    def _ran(self) -> Iterator[RanStep]:
        for outcome in self.outcomes:
            if outcome.how == "run":
                yield RanStep(outcome.id, outcome.seconds, self.plan.steps[outcome.key].reason)

    def counts(self) -> StepCounts:
        cached = sum(1 for step in self.plan.steps.values() if step.state == "cached")
        ran = sum(1 for outcome in self.outcomes if outcome.how == "run")
        needed = self.plan.closure(key for engine in self.plan.engines for key in engine.steps.values())
        failed = sum(1 for key in self.failures if key in needed)  # what only a peer needs fails no build
        return StepCounts(ran, cached + len(self.outcomes) - ran, failed)
