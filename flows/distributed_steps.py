"""The steps of a build on work pools: prepared here, then one flow run per engine on the pool of its GPU type."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.logging import get_run_logger

from engineworks.builds.delivery import (
    Delivery,
    digest_in,
    is_named,
    is_unfinished,
    note_delivery,
    order_of,
    prepare_keys,
    read_body,
    take_delivery,
    was_asked,
)
from engineworks.builds.results import Failure
from engineworks.builds.state import Build
from engineworks.errors import EXIT_STEP_FAILED, StoreError
from engineworks.plan.plan import PlannedEngine
from flows.dispatch import Ended, Order, started, workers_online
from flows.local_steps import run_steps


def run_distributed(build: Build, recipe: str, again: str | None = None) -> None:
    """Prepare, order each engine from a worker of its pool, and take the deliveries into the build.

    An engine whose pool has no worker is built here, ahead of time if its backend can. It stays unmeasured unless this
    host has its hardware.
    """
    run_steps(build, prepare_keys(build.plan, build.plan.engines))
    online = workers_online(sorted({e.target.target.pool for e in build.plan.engines}))
    orders = _orders(build, recipe, online, again)
    asked = {e.id: order_of(build.plan, e) for e in build.plan.engines if e.id in orders}
    here = {key for e in build.plan.engines if e.id not in orders for key in e.steps.values()}
    with started(list(orders.values())) as runs:
        run_steps(build, here)
        for order, ended in runs.ends():
            _take(build, order.name, asked[order.name], ended, online[order.pool])


def _orders(build: Build, recipe: str, online: Mapping[str, frozenset[str]], again: str | None) -> dict[str, Order]:
    """Return the workers' orders, by engine: unfinished steps that have all their inputs."""
    engines = [e for e in build.plan.engines if is_unfinished(build.plan, e) and not _is_lost(build, e)]
    orders = {}
    for engine in engines:
        pool = engine.target.target.pool
        if pool in online:
            if not is_named(engine, again) and was_asked(build.store, build.plan, engine, online[pool]):
                continue
            parameters = {"recipe": recipe, "engine": engine.id, "mode": build.plan.loaded.mode}
            orders[engine.id] = Order(engine.id, f"build-engine/{pool}", pool, parameters)
        else:
            message = "%s: pool '%s' has no worker; what can be done here is done here"
            get_run_logger().warning(message, engine.id, pool)
    return orders


def _is_lost(build: Build, engine: PlannedEngine) -> bool:
    """Return whether a step that the engine needs has failed."""
    return bool(build.plan.closure(engine.steps.values()) & build.failures.keys())


def _take(build: Build, engine_id: str, order: str, ended: Ended, workers: frozenset[str]) -> None:
    """Take the engine's delivery. Without one it failed, for the reason in its run's final message."""
    engine = next(e for e in build.plan.engines if e.id == engine_id)
    key = digest_in(ended.message, "delivery")
    message = f"{engine_id}: its flow run {ended.state.lower()}: {ended.message}"
    if key is not None:
        try:
            delivery = Delivery.from_json(read_body(build.store, key))
            take_delivery(build, delivery)
            if not delivery.failures:
                note_delivery(build.store, engine_id, order, key, workers)
            return
        except StoreError as error:
            message = f"{engine_id}: what its worker delivered cannot be read: {error}"
    build.failures[engine.steps["build"]] = Failure(f"{engine_id}/build", message, exit_code=EXIT_STEP_FAILED)
