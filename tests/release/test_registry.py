"""The registry: a version per engine that passed, a champion that moves only as it should, and back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from by_hand import by_hand

import engineworks.errors
from engineworks.errors import InputError
from engineworks.tensors import TensorSpec
from engineworks.tracking import registry_lock
from engineworks.tracking.aliases import Slot, champions_of
from engineworks.tracking.engine_model import EngineModel
from engineworks.tracking.opening import connect
from engineworks.tracking.records import RECIPE, EngineRecord
from engineworks.tracking.registry import Registry
from engineworks.tracking.registry_lock import CLAIM, is_free
from engineworks.tracking.runs import Tracking, open_tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
ROOT = Path(engineworks.errors.__file__).parents[1]
SPEC = TensorSpec("x", "float32", ("batch", 2))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def tracking(artifacts: Path) -> Tracking:
    return open_tracking(artifacts)


@pytest.fixture(scope="module")
def registry(tracking: Tracking) -> Registry:
    return tracking.registry()


@pytest.fixture(scope="module")
def client(tracking: Tracking) -> MlflowClient:
    """What others do in MLflow by hand."""
    return by_hand(tracking)


@pytest.fixture(scope="module")
def run_id(tracking: Tracking) -> str:
    with tracking.start_build("any", "key", {}, {}) as build:
        return build.record_engine(EngineRecord("any/fp32/cpu"))


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path, run_id: str) -> EngineModel:
    """An engine of a recipe of its own, so that tests share one database."""
    name = request.node.name.replace("[", "-").replace("]", "")[-60:].lower()
    (tmp_path / "engine").write_bytes(b"bytes")
    return engine_model(name, run_id, tmp_path / "engine", "a" * 64)


def engine_model(name: str, run_id: str, file: Path, digest: str, target: str = "cpu") -> EngineModel:
    return EngineModel(
        Slot(name, target, "fp16"), name, f"{name}/fp16/{target}", digest, run_id, {"engine": file}, [SPEC], [SPEC],
        {"x": np.zeros((1, 2), np.float32)}, ["numpy"], {"engineworks.verdict": "pass"},
    )  # fmt: skip


def versions(registry: Registry, model: EngineModel, count: int) -> Iterator[int]:
    for n in range(count):
        yield registry.register(replace(model, digest=f"{n:064x}")).version


def champion(registry: Registry, model: EngineModel) -> int | None:
    return registry.versions_at("champion", [model.slot])[model.slot]


def test_an_engine_is_one_version_however_often_it_is_registered(registry: Registry, model: EngineModel) -> None:
    first = registry.register(model)
    again = registry.register(model)
    other_bytes = registry.register(replace(model, digest="b" * 64))
    other_target = registry.register(
        replace(model, slot=Slot(model.slot.model, "rtx40", "fp16"), engine=f"{model.recipe}/fp16/rtx40")
    )
    assert [v.version for v in (first, again, other_bytes, other_target)] == [1, 1, 2, 3]
    assert registry.versions_at("candidate", [model.slot])[model.slot] == 2
    assert champion(registry, model) is None


def test_the_tags_of_a_version_follow_the_newest_verdict(registry: Registry, model: EngineModel) -> None:
    waived = replace(
        model, tags={**model.tags, "engineworks.waived": "cosine"}, optional_tags=frozenset({"engineworks.waived"})
    )
    registry.register(waived)
    found = registry.get(model.slot, "candidate")
    assert found is not None
    assert found.tags["engineworks.waived"] == "cosine"
    assert found.tags["engineworks.engine"] == model.engine
    registry.register(replace(waived, tags=model.tags))
    found = registry.get(model.slot, "candidate")
    assert found is not None
    assert "engineworks.waived" not in found.tags


def test_the_champion_moves_once_and_only_from_the_one_it_was_judged_against(
    registry: Registry, model: EngineModel
) -> None:
    one, two, three = versions(registry, model, 3)
    assert registry.promote(model.slot, one, expected=None) == "moved"
    assert registry.promote(model.slot, one, expected=None) == "already"
    assert registry.promote(model.slot, two, expected=one) == "moved"
    assert registry.promote(model.slot, three, expected=one) == "overtaken"
    assert champion(registry, model) == two


def test_rollback_goes_back_step_by_step_and_then_says_that_there_is_nothing(
    registry: Registry, model: EngineModel, client: MlflowClient
) -> None:
    before = None
    for version in versions(registry, model, 3):
        registry.promote(model.slot, version, expected=before)
        before = version
    assert registry.rollback(model.slot) == (3, 2)
    assert champion(registry, model) == 2
    assert registry.promote(model.slot, 3, expected=2) == "moved"  # by hand, again
    assert registry.rollback(model.slot) == (3, 2)
    assert registry.rollback(model.slot) == (2, 1)
    assert registry.rollback(model.slot) is None
    assert champion(registry, model) == 1
    assert "engineworks.rolled_back" in client.get_model_version(model.slot.model, "3").tags


def test_rollback_steps_over_a_version_that_was_deleted(
    registry: Registry, model: EngineModel, client: MlflowClient
) -> None:
    before = None
    for version in versions(registry, model, 3):
        registry.promote(model.slot, version, expected=before)
        before = version
    client.delete_model_version(model.slot.model, "2")
    assert registry.rollback(model.slot) == (3, 1)


@pytest.fixture
def three(registry: Registry, model: EngineModel) -> EngineModel:
    """Three versions, each champion after the one before it."""
    before = None
    for version in versions(registry, model, 3):
        registry.promote(model.slot, version, expected=before)
        before = version
    return model


def lost(registry: Registry, model: EngineModel) -> str:
    return registry.standings([model.slot])[model.slot].lost


def test_rollback_goes_by_the_list_where_the_champion_was_deleted(
    registry: Registry, three: EngineModel, client: MlflowClient
) -> None:
    """MLflow removes the alias with its version."""
    assert lost(registry, three) == ""
    client.delete_model_version(three.slot.model, "3")
    assert champion(registry, three) is None
    assert lost(registry, three) == "version 3 was deleted in MLflow"
    assert registry.rollback(three.slot) == (3, 2)
    assert (champion(registry, three), lost(registry, three)) == (2, "")
    for version in "21":
        client.delete_model_version(three.slot.model, version)
    assert registry.rollback(three.slot) is None
    assert lost(registry, three) == "version 2 was deleted in MLflow"


def test_rollback_goes_by_the_list_where_the_alias_was_removed(
    registry: Registry, three: EngineModel, client: MlflowClient
) -> None:
    alias = three.slot.alias("champion")
    client.delete_registered_model_alias(three.slot.model, alias)
    assert lost(registry, three) == f"version 3 has lost its alias {alias}"
    assert registry.rollback(three.slot) == (3, 2)
    found = client.get_model_version(three.slot.model, "3")
    assert "engineworks.rolled_back" in found.tags


def test_a_champion_that_gets_its_alias_back_is_once_in_the_list(
    registry: Registry, three: EngineModel, client: MlflowClient
) -> None:
    client.delete_registered_model_alias(three.slot.model, three.slot.alias("champion"))
    assert registry.promote(three.slot, 3, expected=None) == "moved"
    assert registry.rollback(three.slot) == (3, 2)


def point_nowhere(artifacts: Path, slot: Slot) -> None:
    """Let the champion's alias name version 99, which MLflow itself refuses."""
    with contextlib.closing(sqlite3.connect(artifacts / "mlflow.db", timeout=20)) as database, database:
        values = (slot.alias("champion"), "99", slot.model)
        database.execute("DELETE FROM registered_model_aliases WHERE alias = ? AND name = ?", values[::2])
        database.execute("INSERT INTO registered_model_aliases (alias, version, name) VALUES (?, ?, ?)", values)


def test_an_alias_that_points_nowhere_is_moved_back_and_says_so(
    registry: Registry, three: EngineModel, client: MlflowClient, artifacts: Path
) -> None:
    slot = three.slot
    point_nowhere(artifacts, slot)
    assert registry.rollback(slot) == (99, 3)
    assert champion(registry, three) == 3
    client.set_registered_model_tag(slot.model, slot.history_tag, "[98, 99]")
    point_nowhere(artifacts, slot)
    assert registry.rollback(slot) is None
    assert champion(registry, three) == 99


def test_rollback_passes_over_a_version_that_cannot_be_served(
    registry: Registry, three: EngineModel, client: MlflowClient
) -> None:
    """Its files are missing, or somebody let the alias name a version that is no engine of this slot."""
    source = client.get_model_version(three.slot.model, "2").source
    shutil.rmtree(Path(str(source).removeprefix("file://")))
    assert registry.why_unfit(three.slot, 2) == "the files of version 2 are missing in MLflow"
    assert registry.rollback(three.slot) == (3, 1)


def test_a_version_of_another_kind_is_no_champion(registry: Registry, three: EngineModel, client: MlflowClient) -> None:
    model, alias = three.slot.model, three.slot.alias("champion")
    stranger = client.create_model_version(model, source="runs:/x/y")
    client.set_registered_model_alias(model, alias, str(stranger.version))
    assert lost(registry, three) == "version 4 is no engine that Engineworks registered"
    other = registry.register(replace(three, slot=Slot(model, "sm8.9", "fp16"), engine=f"{model}/fp16/sm8.9"))
    client.set_registered_model_alias(model, alias, str(other.version))
    assert lost(registry, three) == f"version 5 is {model}/fp16/sm8.9, another engine"
    assert registry.promote(Slot(model, "sm8.9", "fp16"), other.version, expected=None) == "moved"
    assert registry.standings([Slot(model, "sm8.9", "fp16")])[Slot(model, "sm8.9", "fp16")].lost == ""
    assert registry.rollback(three.slot) == (5, 3)


def test_an_engine_whose_files_are_gone_is_registered_again(
    registry: Registry, model: EngineModel, client: MlflowClient
) -> None:
    first = registry.register(model)
    source = client.get_model_version(model.slot.model, str(first.version)).source
    shutil.rmtree(Path(str(source).removeprefix("file://")))
    assert registry.register(model).version == 2


def test_a_list_of_champions_that_cannot_be_read_is_not_an_empty_one(
    registry: Registry, three: EngineModel, client: MlflowClient
) -> None:
    client.set_registered_model_tag(three.slot.model, three.slot.history_tag, "nonsense")
    assert lost(registry, three) == ""
    client.delete_registered_model_alias(three.slot.model, three.slot.alias("champion"))
    assert lost(registry, three) == f"its list of champions, tag {three.slot.history_tag}, cannot be read"


def test_the_list_of_all_champions_has_those_that_are_missing(
    registry: Registry, tracking: Tracking, three: EngineModel, client: MlflowClient
) -> None:
    client.delete_model_version(three.slot.model, "3")
    (found,) = tracking.champions(three.recipe)
    assert (found.engine, found.version, found.created_at) == (three.engine, "3", None)
    assert found.lost == "version 3 was deleted in MLflow"
    registry.rollback(three.slot)
    (found,) = tracking.champions(three.recipe)
    assert (found.version, found.digest, found.lost) == ("2", f"{1:064x}", "")
    assert found in tracking.champions()


def test_an_alias_that_was_moved_by_hand_is_part_of_the_history(
    registry: Registry, model: EngineModel, client: MlflowClient
) -> None:
    one, two, three = versions(registry, model, 3)
    registry.promote(model.slot, one, expected=None)
    client.set_registered_model_alias(model.slot.model, "champion-cpu-fp16", str(three))
    assert registry.promote(model.slot, two, expected=three) == "moved"
    assert registry.rollback(model.slot) == (two, three)
    assert registry.rollback(model.slot) == (three, one)


@pytest.mark.parametrize(
    ("text", "current", "champions"),
    [("[1, 2]", 2, [1, 2]), ("[1, 2]", 3, [1, 2, 3]), ("[1]", None, [1]), ("nonsense", 4, [4]), ("[]", None, [])],
)
def test_the_history_is_what_was_written_and_what_is(text: str, current: int | None, champions: list[int]) -> None:
    slot = Slot("m", "cpu", "fp16")
    assert champions_of({slot.history_tag: text}, slot, current) == champions


def test_a_registered_model_of_another_recipe_is_left_alone(
    registry: Registry, model: EngineModel, client: MlflowClient
) -> None:
    registry.register(model)
    with pytest.raises(InputError, match=f"is that of recipe '{model.recipe}'; say release:"):
        registry.register(replace(model, recipe="other"))
    client.create_registered_model("made-by-hand")
    with pytest.raises(InputError, match="was not made by Engineworks"):
        registry.register(replace(model, slot=Slot("made-by-hand", "cpu", "fp16")))


def test_what_was_never_released_can_not_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(InputError, match="there is no registered model 'never'"):
        registry.rollback(Slot("never", "cpu", "fp16"))


def test_a_dot_in_a_targets_name_is_an_underscore_in_its_alias() -> None:
    slot = Slot("m", "sm8.9", "int8")
    assert slot.uri() == "models:/m@champion-sm8_9-int8"


SETTLE_S = 0.4
"""Eight claims wait so long for each other; a write takes some .02 s here."""

RACER = """
import json, sys
from pathlib import Path
from engineworks.tracking.runs import open_tracking
sys.path.insert(0, sys.argv[3])
from test_registry import race
tracking = open_tracking(Path(sys.argv[1]))
tracking.find_runs(limit=1)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(race(tracking, json.loads(line), sys.argv[2], "b")), flush=True)
"""


def race(tracking: Tracking, setup: dict[str, str], run_id: str, own: str) -> dict[str, list[object]]:
    """Register and promote an engine for a target that all want, and one for a target of this racer's own."""
    registry = tracking.registry()
    if setup["lock"]:  # as on two hosts: each has a lock of its own, and only the server in common
        link = connect(Path(setup["file"]).parent, tracking.uri, "engineworks")
        registry = Registry(link, Path(setup["lock"] + own), shared=True)
    file = Path(setup["file"] + own)
    file.write_bytes(own.encode())
    moves: dict[str, list[object]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_lock, "SETTLE_S", SETTLE_S)
        for target in ("cpu", own):
            model = engine_model(setup["name"], run_id, file, own * 64, target)
            version = registry.register(model).version
            moves[target] = [version, registry.promote(model.slot, version, expected=None)]
    return moves


def test_of_two_releases_at_once_one_wins_and_no_alias_is_lost(
    tracking: Tracking, client: MlflowClient, artifacts: Path, tmp_path: Path, run_id: str
) -> None:
    arguments = [sys.executable, "-c", RACER, artifacts, run_id, Path(__file__).parent]
    racer = subprocess.Popen(
        [str(a) for a in arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert racer.stdin is not None
    assert racer.stdout is not None
    try:
        assert racer.stdout.readline() == "ready\n"
        for name, lock in (("one-host", ""), ("no-lock-in-common", str(tmp_path / "lock"))):
            client.create_registered_model(name, tags={RECIPE: name})
            setup = {"name": name, "lock": lock, "file": str(tmp_path / "file")}
            racer.stdin.write(json.dumps(setup) + "\n")
            racer.stdin.flush()
            mine = race(tracking, setup, run_id, "a")
            check_race(tracking, name, {"a": mine, "b": json.loads(racer.stdout.readline())})
    finally:
        racer.kill()
        racer.communicate()


def check_race(tracking: Tracking, name: str, answers: dict[str, dict[str, list[object]]]) -> None:
    registry = tracking.registry()

    def champion_of(target: str) -> int | None:
        slot = Slot(name, target, "fp16")
        return registry.versions_at("champion", [slot])[slot]

    shared = [answers[racer]["cpu"] for racer in "ab"]
    assert sorted(str(move) for _, move in shared) == ["moved", "overtaken"], name
    assert [version for version, move in shared if move == "moved"] == [champion_of("cpu")]
    for own in "ab":
        assert answers[own][own] == [champion_of(own), "moved"]
    assert len({version for a in answers.values() for version, _ in a.values()}) == 4
    assert CLAIM not in by_hand(tracking).get_registered_model(name).tags


def test_a_claim_that_a_killed_release_left_is_void_after_a_while() -> None:
    assert is_free(None)
    assert is_free("nonsense")
    assert is_free(json.dumps({"owner": "dead", "at": time.time() - 1000}))
    assert not is_free(json.dumps({"owner": "alive", "at": time.time()}))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server on loopback, with a new database."""
    pytest.importorskip("flask", reason="the server needs all of mlflow")
    open_tracking(tmp_path).find_runs()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    program = Path(sys.executable).parent / "mlflow"
    process = subprocess.Popen(
        [program, "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--port", str(port),
         "--artifacts-destination", tmp_path / "served"],
        cwd=tmp_path, env=os.environ | {"DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_over_a_server_it_is_the_same(server: str, tmp_path: Path) -> None:
    tracking = open_tracking(tmp_path, server, experiment="over-rest")
    with tracking.start_build("any", "key", {}, {}) as build:
        run_id = build.record_engine(EngineRecord("any/fp32/cpu"))
    (tmp_path / "engine").write_bytes(b"bytes")
    registry = tracking.registry()
    models = [engine_model("rest", run_id, tmp_path / "engine", c * 64) for c in "aab"]
    assert [registry.register(m).version for m in models] == [1, 1, 2]
    slot = models[0].slot
    assert [registry.promote(slot, v, expected=e) for v, e in ((1, None), (2, 1), (1, 1))] == [
        "moved",
        "moved",
        "overtaken",
    ]
    assert [registry.rollback(slot), registry.rollback(slot)] == [(2, 1), None]
    found = registry.get(slot)
    assert found is not None
    assert (found.version, found.digest) == (1, "a" * 64)
    assert (registry.download("rest", 1, tmp_path / "fetched") / "engine").read_bytes() == b"bytes"
    assert CLAIM not in by_hand(tracking).get_registered_model("rest").tags
