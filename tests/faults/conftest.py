"""One server and one undisturbed build for all tests of a session; workers and a repository for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from faults.plant import ENGINES, STEPS, Plant, Server, Site, deploy


@pytest.fixture
def site(repository: Path) -> Site:
    return Site(repository)


@pytest.fixture(scope="session")
def _undisturbed() -> dict[str, str]:
    return {}


@pytest.fixture
def undisturbed(
    _undisturbed: dict[str, str], repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """Step ids by key, of a build that nothing happened to: keys are the same in every folder."""
    if not _undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed")
        shutil.copytree(repository / "recipes", folder / "recipes")
        calm = Site(folder)
        done = calm.command("build", "recipes/tiny.yaml")
        assert done.returncode == 0, done.stderr
        found = {key: calm.store.require(key).step for key in calm.store.keys()}
        steps = {key: step for key, step in found.items() if not step.endswith("/passport")}
        assert len(steps) == STEPS
        assert len(calm.runs("engine")) == len(ENGINES)
        _undisturbed.update(steps)
    return _undisturbed


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with our pools, deployments and automation, by `engineworks deploy`."""
    home = tmp_path_factory.mktemp("server")
    server = Server(home)
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "DO_NOT_TRACK": "true"}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    try:
        server.start(environment)
        deploy(server, environment)
        yield server
    finally:
        server.kill()


@pytest.fixture
def plant(site: Site, server: Server) -> Iterator[Plant]:
    """The site with a worker for each of its two pools: `cpu` (recipes) and `prepare` (engines)."""
    plant = Plant(site, server)
    try:
        plant.start_worker("cpu")
        yield plant
    finally:
        plant.stop()
