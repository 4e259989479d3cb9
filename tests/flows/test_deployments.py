"""prefect.yaml is what the targets ask for; one job per GPU; nobody waits for a place that his own parent holds."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from engineworks.errors import InputError
from engineworks.recipe.load import load_targets
from flows.checkout import enter_checkout
from flows.deploy import deploy
from flows.deployments import PREPARE_POOL, pools, prefect_yaml

REPOSITORY = Path(__file__).parents[2]
TARGETS = load_targets(REPOSITORY / "recipes")


def test_prefect_yaml_is_that_of_the_targets() -> None:
    written = YAML(typ="safe").load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    assert written == prefect_yaml(TARGETS)


def test_every_gpu_pool_runs_one_job_at_once() -> None:
    by_name = {pool.name: pool for pool in pools(TARGETS)}
    assert by_name.keys() == {target.pool for target in TARGETS.values()}
    assert {pool.limit for name, pool in by_name.items() if name != PREPARE_POOL} == {1}


def test_flows_that_wait_for_each_other_have_limits_of_their_own() -> None:
    entries = prefect_yaml(TARGETS)["deployments"]
    queues = {(e["tags"][1], e["name"]): e["work_pool"].get("work_queue_name") for e in entries}
    waiting = [queues["nightly", "nightly"], queues["build-recipe", "build-recipe"], queues["build-engine", "cpu"]]
    assert len(set(waiting)) == 3
    assert set(waiting) == pools(TARGETS)[0].queues.keys()
    assert pools(TARGETS)[0].limit is None


def test_every_entrypoint_is_a_flow_of_that_name_that_takes_those_parameters() -> None:
    for entry in prefect_yaml(TARGETS)["deployments"]:
        module, _, name = entry["entrypoint"].rpartition(".")
        flow = getattr(import_module(module), name)
        assert flow.name == entry["tags"][1]
        assert entry["parameters"].keys() <= flow.parameters.properties.keys()


def test_runs_find_the_recipes_on_any_host(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("ENGINEWORKS_ROOT", str(repository))
    assert enter_checkout() == {"directory": str(repository)}
    assert Path.cwd() == repository
    monkeypatch.setenv("ENGINEWORKS_ROOT", str(repository / "recipes"))
    with pytest.raises(InputError, match="holds no recipes/"):
        enter_checkout()


def test_deploy_needs_a_server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(InputError, match="PREFECT_API_URL is not set"):
        deploy(TARGETS, repository)
