"""PostgreSQL, behind Prefect and MLflow alike, is killed and started again in the middle of a build on workers."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from faults.plant import CHECKOUT, ENGINES, PASSED, Plant, Server, Site, deploy

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("postgres"), pytest.mark.timeout(600)]
for library in ("psycopg2", "asyncpg"):
    pytest.importorskip(library)

BUILD = "tiny/int8/cpu/build"


@pytest.fixture
def cluster() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("databases", CHECKOUT / "benchmarks" / "databases.py")
    assert spec is not None
    assert spec.loader is not None
    databases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(databases)
    # Not in pytest's own folder: every pytest of this user closes it to others, and root's PostgreSQL is not root's.
    with tempfile.TemporaryDirectory(prefix="engineworks-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = databases.Cluster(Path(folder))
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop("immediate")


@pytest.fixture
def plant(site: Site, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    urls = cluster.urls()
    site.environment["MLFLOW_TRACKING_URI"] = urls["MLFLOW_TRACKING_URI"]
    server = Server(tmp_path_factory.mktemp("server"), urls["PREFECT_API_DATABASE_CONNECTION_URL"])
    try:
        server.start(site.environment)
        deploy(server, site.environment)
        plant = Plant(site, server)
        try:
            plant.start_worker("cpu")
            plant.start_worker("prepare")
            yield plant
        finally:
            plant.stop()
    finally:
        server.kill()


def test_postgresql_is_killed_and_started_again_in_the_middle(
    plant: Plant, cluster: Any, undisturbed: Mapping[str, str]
) -> None:
    site = plant.site
    site.hold(BUILD)
    run = plant.order_recipe()
    site.held(BUILD)
    cluster.stop("immediate")
    time.sleep(5)
    site.release(BUILD)  # ends while there is no database
    time.sleep(5)
    cluster.start()
    state, message = plant.end(run)
    assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    assert Counter(plant.runs_of("build-engine")) == Counter((e, "COMPLETED") for e in ENGINES)
    state, message = plant.end(plant.order_recipe())  # sends what MLflow had not taken
    assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    site.assert_as_undisturbed(undisturbed, whole=2)
    site.assert_nothing_repeated()
