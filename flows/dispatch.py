"""Runs of deployments that a flow starts and waits for: all started first, watched in one loop, restarted if crashed.

A thread or a task for each would be a dozen threads per recipe. A loop over their states costs one request in two
seconds for any number of runs, and outlives a restart of the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelling

from engineworks.errors import InputError

POLL_S = 2.0

CRASHES = 1
"""How often a crashed run (its process or its host died) is restarted."""

NO_WORKER_S = 300.0
"""Seconds that a run waits in a pool without workers."""

SERVER_GONE_S = 600.0
"""Seconds without an answer of Prefect's server after which the flow gives up."""

PAGE = 200
"""Maximum number of flow runs in one response of Prefect's API."""


@dataclass(frozen=True)
class Order:
    """One run to start. `name`: of the run, unique among its siblings; `deployment`: flow/deployment."""

    name: str
    deployment: str
    pool: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """The end of an ordered run: the name of its last state (COMPLETED, FAILED, CRASHED, CANCELLED) and its message."""

    state: str
    message: str


@dataclass
class _Going:
    order: Order
    attempt: int = 0
    waiting_since: float | None = None


class Runs:
    """The started runs of some orders; use it through `started`."""

    def __init__(self, client: SyncPrefectClient, orders: Sequence[Order]) -> None:
        self._client = client
        self._answered = time.monotonic()
        self._going: dict[UUID, _Going] = {}
        for order in orders:
            self._start(order, 0)

    def ends(self) -> Iterator[tuple[Order, Ended]]:
        """Yield each order as its run ends. A crashed run is restarted, at most `CRASHES` times."""
        while self._going:
            time.sleep(POLL_S)
            workers = cache(partial(_workers, self._client))  # asked once for all runs that wait in a pool
            for run in self._look():
                ended = _ended(self._client, run, self._going[run.id], workers)
                if ended is None:
                    continue
                going = self._going.pop(run.id)
                if ended.state == "CRASHED" and going.attempt < CRASHES:
                    self._start(going.order, going.attempt + 1)
                else:
                    yield going.order, ended

    def _look(self) -> list[FlowRun]:
        """Return the current runs; nothing while the server restarts or its database is busy."""
        try:
            runs = _read(self._client, list(self._going))
        except httpx.HTTPError:
            if time.monotonic() - self._answered > SERVER_GONE_S:
                raise
            return []
        self._answered = time.monotonic()
        return runs

    def cancel(self) -> None:
        """Cancel all runs in progress."""
        for run in self._going:
            self._client.set_flow_run_state(run, Cancelling(message="the flow that waited for it has ended"))

    def _start(self, order: Order, attempt: int) -> None:
        self._going[_start(order, attempt)] = _Going(order, attempt)


@contextmanager
def started(orders: Sequence[Order]) -> Iterator[Runs]:
    """Start a run for every order. Whatever ends the block cancels those still running."""
    with get_client(sync_client=True) as client:
        runs = Runs(client, orders)
        try:
            yield runs
        finally:
            runs.cancel()


def workers_online(pools: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the names of online workers by pool, without pools that have none."""
    with get_client(sync_client=True) as client:
        by_pool = {pool: _workers(client, pool) for pool in pools if pool}
    return {pool: names for pool, names in by_pool.items() if names}


def _workers(client: SyncPrefectClient, pool: str) -> frozenset[str]:
    """Return the names of online workers; none for a pool that does not exist yet (before `engineworks deploy`)."""
    try:
        workers = client.read_workers_for_work_pool(pool)
    except PrefectHTTPStatusError as error:  # the client raises ObjectNotFound for other resources only
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        return frozenset()
    return frozenset(worker.name for worker in workers if worker.status == WorkerStatus.ONLINE)


def _start(order: Order, attempt: int) -> UUID:
    """Start a run linked to this one and return its id. The key makes it one run, however often a request is sent.

    Raises `InputError` if there is no such deployment, because Prefect's own error has no message.
    """
    key = f"{flow_run.get_id()}/{flow_run.get_run_count()}/{order.deployment}/{order.name}/{attempt}"
    try:
        run: Any = run_deployment(
            order.deployment,
            parameters=dict(order.parameters),
            flow_run_name=order.name,
            idempotency_key=key,
            timeout=0,
        )
    except ObjectNotFound:
        raise InputError(
            f"Prefect's server has no deployment '{order.deployment}'", hint="engineworks deploy makes them all"
        ) from None
    return UUID(str(run.id))


def _read(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    pages = [ids[at : at + PAGE] for at in range(0, len(ids), PAGE)]
    return [
        run
        for page in pages
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=page)), limit=PAGE)
    ]


def _ended(
    client: SyncPrefectClient, run: FlowRun, going: _Going, workers: Callable[[str], frozenset[str]]
) -> Ended | None:
    """Return how the run ended, None while it goes on."""
    state = run.state
    if state is None:
        return None
    if state.is_final():
        return Ended(state.type.value, state.message or "")
    if not state.is_scheduled() or workers(going.order.pool):
        going.waiting_since = None
        return None
    going.waiting_since = going.waiting_since or time.monotonic()
    if time.monotonic() - going.waiting_since < NO_WORKER_S:
        return None
    message = f"no worker took it: pool '{going.order.pool}' has none; prefect worker start --pool {going.order.pool}"
    client.set_flow_run_state(run.id, Cancelling(message=message), force=True)
    return Ended("CANCELLED", message)
