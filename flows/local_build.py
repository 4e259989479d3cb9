"""`engineworks build` without a server: the flow in this process, on a Prefect API of its own while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from engineworks.builds.results import BuildResult
from engineworks.engines.backends import backend
from engineworks.errors import EngineworksError, StepError
from engineworks.host.child import default_pool
from engineworks.host.collector import not_collected
from engineworks.plan.plan import Plan
from engineworks.release.promotion import ReleaseResult
from engineworks.settings import Settings
from engineworks.tracking.runs import open_tracking
from flows.local_prefect import prefect_api

R = TypeVar("R")

CHILD_IMPORTS = ("engineworks.steps.job", "onnx", "onnxruntime")
"""What every child needs; with what builds the engines, it is imported while Prefect's server starts."""


def build_recipes(
    plans: Sequence[Plan], settings: Settings, *, only: str | None, release: bool = False
) -> list[BuildResult] | list[ReleaseResult]:
    """Run `build_recipe`, or `release`, for every plan, one after the other; a failed one does not stop the others."""
    with prefect_api(settings.artifacts / "prefect") as prefect, _places(settings):
        default_pool().prestart(_imports(plans), count=2)
        with not_collected():
            prefect.load()
            tracking = open_tracking(settings.artifacts, settings.tracking_uri)
            tracking.prestart()  # after Prefect's import: two imports at once take turns and help nobody
            prefect.wait_ready()
        if release:
            return [_release(plan, only) for plan in plans]
        return [_build(plan, only) for plan in plans]


def _imports(plans: Sequence[Plan]) -> list[str]:
    backends = {engine.target.target.backend for plan in plans for engine in plan.engines}
    return [*CHILD_IMPORTS, *(module for name in sorted(backends) for module in backend(name).IMPORTS)]


def _build(plan: Plan, only: str | None) -> BuildResult:
    from flows.build_recipe import build_recipe

    compare = ",".join(dict.fromkeys(peer.name for peer in plan.peers)) or None
    return _result(
        build_recipe(str(plan.loaded.path), only, compare, mode=plan.loaded.mode, return_state=True), BuildResult, plan
    )


def _release(plan: Plan, only: str | None) -> ReleaseResult:
    from flows.release import release

    return _result(release(str(plan.loaded.path), only, return_state=True), ReleaseResult, plan)


def _result(state: Any, kind: type[R], plan: Plan) -> R:
    result = state.result(raise_on_failure=False)
    if isinstance(result, kind):
        return result
    if isinstance(result, EngineworksError | KeyboardInterrupt):
        raise result
    raise StepError(f"{plan.recipe}: the flow ended {state.name} without a result: {state.message}")


@contextmanager
def _places(settings: Settings) -> Iterator[None]:
    """The flow reads its places from the environment: let them be ours, whatever the current folder is."""
    values = {"ENGINEWORKS_ARTIFACTS": str(settings.artifacts), "ENGINEWORKS_STORE": settings.store}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
