"""One build in progress: the state that its tasks share, as one handle.

A plain class on purpose: Prefect walks through dataclasses and mappings passed to a task, and a plan is large.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from engineworks.builds.assembly import assemble_result, count_steps
from engineworks.builds.ladders import ladders
from engineworks.builds.passport import recipe_origin
from engineworks.builds.results import BuildResult, EngineResult, Failure, StepCounts, engine_result
from engineworks.builds.step import Outcome
from engineworks.errors import StoreError
from engineworks.measure.ladder.ladder import ladder_statements
from engineworks.plan.plan import Plan
from engineworks.settings import Settings
from engineworks.store.leases import Lease
from engineworks.store.shared import open_store
from engineworks.tracking.runs import open_tracking


class Build:
    """A plan, the store and record it works with, and its results so far.

    results: the store as verdicts read it, see `settle`. lease: keeps from gc what the plan uses,
    as long as this object exists.
    """

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self.plan = plan
        self.settings = settings
        self.store = open_store(settings)
        self.lease = Lease(self.store.root, plan.steps)
        self.results = self.store
        self.tracking = open_tracking(settings.artifacts, settings.tracking_uri)
        self.outcomes: list[Outcome] = []
        self.failures: dict[str, Failure] = {}
        self.engines: dict[str, EngineResult] = {}
        self._started = time.monotonic()

    def settle(self) -> None:
        """Prepare for verdicts once all steps have ended.

        If the shared store does not answer, verdicts use the local one. A result missing there has failed, so every
        engine gets a verdict.
        """
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
        """The recipe's text and commit, for passports."""
        return recipe_origin(self.plan)

    @cached_property
    def ladder_statements(self) -> Mapping[str, str]:
        """By engine, its status in the ladder of `precisions: auto`.

        Read it when all steps have ended: an engine is recorded alone, but ranked with the others.
        """
        if self.plan.loaded.auto is None:
            return {}
        engines = [engine_result(self.plan, e, self.results, self.failures) for e in self.plan.engines]
        return ladder_statements(ladders(self.plan, engines, self.results))

    def result(self, run_id: str) -> BuildResult:
        """Return the result, once every engine is evaluated. run_id: its parent run in MLflow."""
        return assemble_result(
            self.plan, tuple(self.engines.values()), self.results,
            run=run_id, failures=self.failures, outcomes=self.outcomes, seconds=self.seconds,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """The build's duration so far."""
        return time.monotonic() - self._started

    def counts(self) -> StepCounts:
        return count_steps(self.plan, self.outcomes, self.failures)
