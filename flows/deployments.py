"""Deployments and work pools from `_targets.yaml`: the values of prefect.yaml.

    pool cpu      queue nightly (1 run at once), recipes (2), engines (1)
    pool <GPU>    one run at once: two jobs on one GPU would disturb each other

A nightly waits for its recipes and a recipe for its engines, so each of the three has a queue with its own limit.
With one limit for all, waiting runs would take the places of those that they wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engineworks.recipe.targets import Target
from flows.local_prefect_child import NO_TELEMETRY

PREPARE_POOL = "cpu"
"""The pool of flows that order others, of prepare steps, and of targets without a pool."""

CRON = "0 2 * * *"
HEARTBEAT_S = 30
"""Seconds between heartbeats of a flow run; Prefect's minimum."""

JOB_ENVIRONMENT = {
    **NO_TELEMETRY,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # a server on SQLite answers this while its database is locked
}
"""Environment of every flow run of a worker; paths come from the worker's own."""


@dataclass(frozen=True)
class Pool:
    """A work pool of type process. `limit`: concurrent runs, None where its queues have limits."""

    name: str
    limit: int | None
    queues: Mapping[str, int]


def pools(targets: Mapping[str, Target]) -> tuple[Pool, ...]:
    """Return the pool that prepares, and one for each GPU type."""
    first = Pool(PREPARE_POOL, None, {"nightly": 1, "recipes": 2, "engines": 1})
    return (first, *(Pool(name, 1, {}) for name in _pool_names(targets) if name != PREPARE_POOL))


def deployments(targets: Mapping[str, Target], *, cron: str = CRON) -> list[dict[str, Any]]:
    """Return the deployments as prefect.yaml has them."""
    spread = {"distributed": True}
    nightly = _deployment("nightly", "nightly", spread)
    nightly["schedules"] = [{"cron": cron, "timezone": "UTC"}]
    recipe = _deployment("build-recipe", "recipes", spread)
    others = [_deployment(flow, "recipes", {}) for flow in ("release", "rehearse")]
    engines = [
        _deployment("build-engine", "engines" if pool == PREPARE_POOL else None, {}, name=pool, pool=pool)
        for pool in sorted({PREPARE_POOL, *_pool_names(targets)})
    ]
    return [nightly, recipe, *others, *engines]


def prefect_yaml(targets: Mapping[str, Target], *, cron: str = CRON) -> dict[str, Any]:
    """Return the whole of prefect.yaml."""
    return {
        "name": "engineworks",
        "pull": [{"flows.checkout.enter_checkout": {}}],
        "deployments": deployments(targets, cron=cron),
    }


def _pool_names(targets: Mapping[str, Target]) -> list[str]:
    return list(dict.fromkeys(target.pool for target in targets.values() if target.pool))


def _deployment(
    flow: str, queue: str | None, parameters: Mapping[str, Any], *, name: str = "", pool: str = PREPARE_POOL
) -> dict[str, Any]:
    """Return a deployment, by default called as its flow, which has a module of its name."""
    function = flow.replace("-", "_")
    work_pool: dict[str, Any] = {"name": pool, "job_variables": {"env": dict(JOB_ENVIRONMENT)}}
    if queue is not None:
        work_pool["work_queue_name"] = queue
    return {
        "name": name or flow,
        "tags": ["engineworks", flow],
        "entrypoint": f"flows.{function}.{function}",
        "parameters": dict(parameters),
        "work_pool": work_pool,
    }
