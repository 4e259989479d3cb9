"""Which pools have workers: a pool that is not there has none, and stops no night."""

from __future__ import annotations

import pytest

from engineworks.errors import InputError

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]


def test_a_deployment_that_is_not_there_is_named() -> None:
    from flows.dispatch import Order, started

    order = Order("a/fp16/rtx99", "build-engine/rtx99", "rtx99", {})
    words = "no deployment 'build-engine/rtx99'; engineworks deploy"
    with pytest.raises(InputError, match=words), started([order]):
        pass


def test_a_pool_that_nobody_has_made_has_no_workers() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.dispatch import workers_online

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="there", type="process"))
        client.send_worker_heartbeat("there", "w1", heartbeat_interval_seconds=30)
    assert workers_online(["", "not-there", "there"]) == {"there": frozenset({"w1"})}
