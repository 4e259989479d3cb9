"""`engineworks build` without a server: the flow in this process, with a temporary Prefect API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from engineworks.builds.command import Champions
from engineworks.builds.results import BuildResult
from engineworks.engines.backends import BACKENDS, backend
from engineworks.errors import EngineworksError, StepError
from engineworks.host.child import default_pool
from engineworks.host.collector import not_collected
from engineworks.host.disk import full_disk_named
from engineworks.plan.plan import Plan
from engineworks.settings import Settings
from engineworks.tracking.opening import prepare_environment
from engineworks.tracking.runs import open_tracking
from flows.local_prefect import prefect_api

if TYPE_CHECKING:
    from engineworks.release.promotion import ReleaseResult

R = TypeVar("R")

CHILD_IMPORTS = ("engineworks.steps.job", "onnx", "onnxruntime")
"""Modules that every child needs, so that this process imports them for the first ones."""


def build_recipes(
    plans: Sequence[Plan], settings: Settings, *, only: str | None, champions: Champions | None = None
) -> list[BuildResult] | list[ReleaseResult]:
    """Build every plan, one after the other; a failed one does not stop the others. champions: also release them."""
    home = settings.artifacts / "prefect"
    with full_disk_named(settings.artifacts), prefect_api(home) as prefect:
        prepare_environment()  # before children start: one of another environment is never used
        backends = sorted({engine.target.target.backend for plan in plans for engine in plan.engines})
        libraries = [module for name in backends for module in backend(name).IMPORTS]
        # Before Prefect is imported, which no step needs.
        default_pool().prestart([*CHILD_IMPORTS, *(BACKENDS[name] for name in backends)], libraries, count=2)
        prefect.load()
        with not_collected():
            tracking = open_tracking(settings.artifacts, settings.tracking_uri)
            tracking.prestart()  # after Prefect's import: two imports at once only wait for each other
        prefect.wait_ready()
        if champions is None:
            from flows.build_recipe import build_planned

            return [_result(build_planned(plan, settings, only), BuildResult, plan) for plan in plans]
        from engineworks.release.promotion import ReleaseResult  # NumPy and Triton's packages, which no build needs
        from flows.release import release_planned

        return [_result(release_planned(plan, settings, only, champions), ReleaseResult, plan) for plan in plans]


def _result(state: Any, kind: type[R], plan: Plan) -> R:
    from flows.outcomes import result_of  # imports Prefect, which reads its environment then: telemetry is off by now

    result = result_of(state)
    if isinstance(result, kind):
        return result
    if isinstance(result, EngineworksError | KeyboardInterrupt):
        raise result
    raise StepError(f"{plan.recipe}: the flow ended {state.name} without a result: {state.message}")
