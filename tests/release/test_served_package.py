"""Packages on a real Triton server: what users run, and what goes wrong there."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_record import record

from engineworks.builds.step import run_step
from engineworks.cli import run_command
from engineworks.commands.serve_jobs import job_of
from engineworks.engines.passport import read_passport
from engineworks.engines.signing import Trust
from engineworks.errors import RunError
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.host.triton import NO_SERVER, InstalledServer, find_server
from engineworks.package.package import PackagedEngine, write_package
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.release.promotion import champions_before, release_build
from engineworks.serving.client import Client
from engineworks.serving.server import SHARED_MEMORY, started
from engineworks.steps import serve as step
from engineworks.steps.job import StepJob
from engineworks.store.shared import open_store
from engineworks.tracking.runs import open_tracking

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]


@pytest.fixture
def server() -> InstalledServer:
    found = find_server(start=Path(__file__))
    if not isinstance(found, InstalledServer):
        pytest.fail(NO_SERVER)
    return found


@pytest.fixture
def models(built: Any, tmp_path: Path, server: InstalledServer) -> Path:
    engine = built.engine("tiny/int8/cpu")
    packaged = PackagedEngine(engine.path.parent, read_passport(engine.passport, Trust()))
    write_package(built.plan.loaded, [packaged], tmp_path / "models", available=server.available)
    return tmp_path / "models"


def ended(pid: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 5)[0])
    finally:
        os.close(process)


IMAGE = {"image": np.ones((2, 1, 4, 4), np.float32)}


def test_an_engine_that_is_altered_while_the_server_runs_is_refused_at_the_next_load(
    models: Path, server: InstalledServer
) -> None:
    engine = models / "tiny-int8-cpu" / "1" / "model.onnx"
    with started(server, models) as process, Client(process.addresses.grpc, "grpc") as client:
        client.load("tiny-int8-cpu")
        before = client.infer("tiny-int8-cpu", IMAGE)["logits"]
        whole = engine.read_bytes()
        engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        np.testing.assert_array_equal(client.infer("tiny-int8-cpu", IMAGE)["logits"], before)
        client.unload("tiny-int8-cpu")
        with pytest.raises(RunError, match=r"'tiny-int8-cpu' does not become ready: .*altered") as error:
            client.load("tiny-int8-cpu")
        assert "\n" not in error.value.message
        engine.write_bytes(whole)
        client.load("tiny-int8-cpu")


def test_a_model_that_cannot_start_gives_its_reason_in_one_sentence(models: Path, server: InstalledServer) -> None:
    (models / "tiny-int8-cpu" / "1" / "model.py").write_text("import no_such_library\n")
    with (
        started(server, models) as process,
        Client(process.addresses.grpc, "grpc") as client,
        pytest.raises(RunError) as error,
    ):
        client.load("tiny-int8-cpu")
    reason = "ModuleNotFoundError: No module named 'no_such_library'"
    assert error.value.message == f"'tiny-int8-cpu' does not become ready: {reason}"


def test_the_command_serves_what_was_built_and_leaves_nothing(
    built: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: InstalledServer
) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", str(server.binary))
    monkeypatch.chdir(built.root)
    assert run_command(["serve", "recipes/tiny.yaml", "--only", "*/int8/cpu", "--swaps", "2", "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["verdict"] == "pass"
    names = {check["name"] for check in engine["checks"]}
    assert {"served.answers[http]", "served.answers[grpc]", "served.refusals", "served.reload", "served.swaps"} <= names
    answers = engine["report"]["answers"]
    assert all(answers[way]["equal"] == answers[way]["requests"] > 0 for way in ("http", "grpc"))
    assert answers["4 clients"]["requests"] == 4 * answers["grpc"]["requests"]


def step_of(built: Any, out: Path) -> StepJob:
    """The step `serve` of an engine, to be run in this process."""
    engine = built.engine("tiny/int8/cpu")
    packaged = PackagedEngine(engine.path.parent, read_passport(engine.passport, Trust()))
    payload = job_of(built.plan, open_store(built.settings), packaged, "serve")
    inputs = {**{role: Path(path) for role, path in payload["inputs"].items()}, "build": engine.path.parent}
    unkeyed = {**payload["unkeyed"], "passport": str(engine.passport)}
    return StepJob(payload["id"], payload["params"], inputs, unkeyed, out, lambda _: None)


def test_a_server_that_is_killed_in_the_middle_fails_the_step_by_its_signal(
    built: Any, monkeypatch: pytest.MonkeyPatch, server: InstalledServer, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", str(server.binary))
    pids: list[int] = []

    def kill(job: StepJob, addresses: Any, process: Any, model: str, single: Any) -> None:
        pids.extend(process.tree)
        os.kill(process.pid, signal.SIGKILL)

    monkeypatch.setattr(step, "_load", kill)
    with pytest.raises(RunError, match="the Triton server was ended by SIGKILL"):
        step.run(step_of(built, tmp_path))
    assert len(pids) > 1
    assert all(map(ended, pids))
    assert not (tmp_path / "serving.json").exists()
    assert not list(SHARED_MEMORY.glob(f"engineworks-{os.getpid()}-*"))


def test_a_running_server_is_asked_for_the_model_that_it_has(
    built: Any, monkeypatch: pytest.MonkeyPatch, server: InstalledServer, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with started(server, models) as process, Client(process.addresses.grpc, "grpc") as client:
        client.load("tiny-int8-cpu")
        _, _, port = process.addresses.grpc.rpartition(":")
        monkeypatch.setenv("ENGINEWORKS_TRITON", f"http://{process.addresses.http}?grpc={port}")
        step.run(step_of(built, out))
        assert client.ready("tiny-int8-cpu")
    report = json.loads((out / "serving.json").read_text())
    assert all(report["answers"][way]["equal"] == report["answers"][way]["requests"] > 0 for way in ("http", "grpc"))
    assert not report["answers"]["4 clients"]["errors"]
    assert all(one["refused"] and one["right_after"] for one in report["refusals"])
    assert "reload" not in report


def test_the_batcher_is_measured_and_the_recommendation_is_packaged_and_served(
    built: Any, monkeypatch: pytest.MonkeyPatch, server: InstalledServer, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", str(server.binary))
    monkeypatch.setattr(step, "DELAYS_US", (500,))
    monkeypatch.setattr(step, "batching_settings", partial(step.batching_settings, instances=(1,)))
    monkeypatch.setattr(step, "sweep", partial(step.sweep, tries=1))
    text = built.recipe.read_text().replace("{preferred: [8, 16], max_delay_us: 500}", "{measured: true}")
    load = "{find_qps: true, p99_ms: 1000, seconds: 1}"
    built.recipe.write_text(text.replace("performance:\n", f"performance:\n  serving: {{load: {load}}}\n"))
    job = step_of(replace(built, plan=plan_recipe(load_recipe(built.recipe), built.store, FileDigests(None))), tmp_path)
    step.run(replace(job, params={**job.params, "reloads": 1}))
    report = json.loads((tmp_path / "serving.json").read_text())
    points = report["batching"]["points"]
    assert [(p["preferred"], p["delay_us"]) for p in points] == [(None, 0), ([], 500), ([8, 16], 500)]
    assert all(len(p["tries"]) == 1 for p in points)
    best = report["batching"]["recommended"]
    assert best == max(points, key=lambda point: point["rate"])
    assert report["load"]["rate"] == max((one["qps"] for one in report["load"]["tries"] if one["holds"]), default=0)
    assert len(report["load"]["tries"]) > 1  # it was searched
    engine = built.engine("tiny/int8/cpu")
    passport = read_passport(engine.passport, Trust())
    body = {**passport.body, "reports": {"serving.json": report}}
    loaded = load_recipe(built.recipe)
    packaged = PackagedEngine(engine.path.parent, replace(passport, body=body))
    (model,) = write_package(loaded, [packaged], tmp_path / "models", available=server.available)
    with started(server, tmp_path / "models") as process, Client(process.addresses.grpc, "grpc") as client:
        client.load(model.name)
        served = client.config(model.name).get("dynamic_batching")
        assert client.infer(model.name, IMAGE)["logits"].shape == (2, 3)
    assert (served is None) == (best["preferred"] is None)
    assert served is None or served.get("preferred_batch_size", []) == best["preferred"]


def test_a_candidate_is_served_beside_the_champion(
    built: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: InstalledServer
) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", str(server.binary))
    registry = open_tracking(built.settings.artifacts, None).registry()
    before = champions_before(built.plan.loaded, registry)
    release_build(built.plan, record(built), open_tracking(built.settings.artifacts, None), before)
    line = json.dumps({"inputs": [{"name": "image", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": [0.5] * 16}]})
    (built.root / "recorded.jsonl").write_text(line + "\n")
    command = ["serve", "recipes/tiny.yaml", "--only", "*/int8/cpu", "--shadow", "--requests", "recorded.jsonl"]
    assert run_command(command) == 0
    assert "the champion is this very engine, byte for byte" in capsys.readouterr().out
    text = built.recipe.read_text()
    built.recipe.write_text(f"{text}calibration: {{method: percentile, percentile: 99}}\n")
    plan = plan_recipe(load_recipe(built.recipe), built.store, FileDigests(None), only="*/int8/cpu")
    for one in plan.to_do:
        run_step(one, built.store, default_pool(), echo=lambda _: None)
    assert run_command([*command, "--seconds", "1", "--json"]) == 3  # one second gives too few rounds
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    words = {check["name"]: check["verdict"] for check in engine["checks"]}
    assert words.pop("shadow.latency[evaluation]") == words.pop("shadow.latency[recorded]") == "inconclusive"
    assert words == {
        "shadow.answers[evaluation]": "pass", "shadow.answers[recorded]": "pass", "shadow.metric": "pass",
    }  # fmt: skip
    assert engine["report"]["answers"]["recorded"]["requests"] == 1
    assert not list(SHARED_MEMORY.glob(f"engineworks-{os.getpid()}-*"))


def test_two_engines_are_served_together(
    built: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: InstalledServer
) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", str(server.binary))
    command = ["serve", "recipes/tiny.yaml", "--together", "--seconds", "1", "--json"]
    assert run_command([*command, "--memory-mib", "1"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["engines"]
    assert found["report"]["models"].keys() == {"tiny-fp32-cpu", "tiny-int8-cpu"}
    assert {c["name"]: c["verdict"] for c in found["checks"]} == {
        "together.memory": "fail", "together.p99[tiny-fp32-cpu]": "pass", "together.p99[tiny-int8-cpu]": "pass",
    }  # fmt: skip
    assert all(one["memory_mib"] > 10 for one in found["report"]["models"].values())


def test_without_a_server_the_command_says_what_to_do(
    built: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENGINEWORKS_TRITON", raising=False)
    monkeypatch.chdir(built.root)
    shutil.rmtree(built.root / ".triton", ignore_errors=True)
    assert run_command(["serve", "recipes/tiny.yaml"]) == 2
    assert NO_SERVER in capsys.readouterr().err
