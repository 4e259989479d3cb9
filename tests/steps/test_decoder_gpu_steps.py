"""A decoder's recipe with a GPU target: every step, on a GPU made of host memory. The build step writes ONNX files for
engines there; tests/engines/test_trt_build.py builds real ones."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_decoder_gpu import OnnxVendor, build, use_fake_gpu
from fake_gpu import FakeRuntime

from engineworks.engines.backends import onnxruntime, tensorrt_rtx
from engineworks.engines.decoder.generation import open_generator
from engineworks.engines.verified import verified_engine
from engineworks.errors import TrustError, UnsupportedError
from engineworks.host.file_digests import FileDigests
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.measure.latency import Sampling
from engineworks.measure.latency_report import Latency
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.recipe.recipe import Limits
from engineworks.report.blocks import Fold
from engineworks.report.decoder import decoder_section
from engineworks.steps.decoder import build as build_step
from engineworks.steps.decoder import measure
from engineworks.steps.job import StepJob, main
from engineworks.store.store import Store

BENCHMARK = Path("benchmarks/decoder_gpu.py").resolve()
ENGINE = "tiny-decoder/fp16/rtx40"


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def plan(tmp_path_factory, patch):
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree("recipes/models/tiny-decoder", folder / "models/tiny-decoder")
    shutil.copytree("recipes/data", folder / "data")
    text = Path("recipes/tiny-decoder.yaml").read_text().replace("targets: [cpu]", "targets: [rtx40]")
    (folder / "tiny-decoder.yaml").write_text(text)
    shutil.copyfile("recipes/_targets.yaml", folder / "_targets.yaml")
    patch.chdir(folder)
    return plan_recipe(
        load_recipe(folder / "tiny-decoder.yaml"), Store(folder / "store"), FileDigests(None), only=ENGINE
    )


@pytest.fixture(scope="module")
def made(plan, tmp_path_factory, patch):
    """Folder by id of every step."""
    cuda = FakeRuntime()
    use_fake_gpu(patch, OnnxVendor(cuda))
    for name, fake in (("build", build), ("why_not_build", lambda _: None), ("why_not_run", lambda _: None)):
        patch.setattr(tensorrt_rtx, name, fake)
    patch.setattr(tensorrt_rtx, "device_watch", onnxruntime.device_watch)
    quick = Sampling(watch_s=0.0, least_runs=3, max_s=0.05, precision=1.0)
    patch.setattr(measure, "BRIEF", quick)
    patch.setattr(measure, "Sampling", lambda **_: quick)
    folder, outs = tmp_path_factory.mktemp("steps"), dict[str, Path]()
    for key, step in plan.steps.items():
        outs[key] = folder / key
        outs[key].mkdir()
        unkeyed = json.loads(json.dumps(dict(step.unkeyed), default=str))
        inputs = {role: str(outs[k]) for role, k in step.inputs.items()}
        params = json.loads(json.dumps(dict(step.params)))
        main({"kind": step.kind, "id": step.id, "params": params, "inputs": inputs, "unkeyed": unkeyed, "out": str(outs[key])})  # fmt: skip
    return {step.id.rpartition("/")[2]: outs[key] for key, step in plan.steps.items()}


def report_of(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_a_plan_builds_and_does_not_run_where_there_is_no_gpu(plan):
    (engine,) = plan.engines
    assert "no NVIDIA GPU here" in engine.unmeasured_because
    assert set(engine.steps) == {"build", "compare", "measure"}


def test_the_artifact_holds_an_engine_for_every_situation(made):
    sidecar = report_of(made["build"], "engine.json")
    parts = {(p["batch"], p["tokens"]): p["file"] for p in sidecar["decoder"]["parts"]}
    assert set(parts) == {(1, 1), (4, 1), (1, 24)}
    assert all((made["build"] / file).is_file() for file in parts.values())
    assert sidecar["engine"] == parts[1, 1]
    assert set(sidecar["details"]["parts"]) == set(parts.values())
    assert {c["dtype"] for c in sidecar["decoder"]["interface"]["caches"]} == {"float16"}


def test_it_passes_the_gates_that_cpu_engines_pass(made):
    report = Accuracy.read(made["compare"])
    verdict = evaluate_gates(report, None, Limits(metric_ratio=0.99, cosine=0.999), {})
    assert verdict.verdict == "pass", list(verdict.checks)
    assert sum(c.name.startswith("decoder[") for c in verdict.checks) == 12  # with the graph


def test_one_rounding_moves_half_precision_further(made):
    assert 1e-4 < report_of(made["lowered-reference"], "lowered.json")["moved"] < 0.05


def test_the_sweep_is_measured_and_drawn(made):
    latency = Latency.read(made["measure"])
    assert [(p.dims["prompt"], p.dims["streams"]) for p in latency.points] == [
        (8, 1), (8, 2), (8, 4), (48, 1), (48, 2), (48, 4),
    ]  # fmt: skip
    assert all(p.tokens_per_s and p.first_token_ms for p in latency.points)
    engine = SimpleNamespace(id=ENGINE, accuracy=Accuracy.read(made["compare"]), latency=latency)
    section = decoder_section(SimpleNamespace(engines=[engine]), plots=True)
    (fold,) = (block for block in section.blocks if isinstance(block, Fold))
    plot, points = fold.blocks
    assert "<svg" in plot.svg
    assert len(points.rows) == 6


def test_it_is_measured_at_the_recipes_shapes(made):
    report = report_of(made["measure"], "latency.json")
    shapes = report["shapes"]
    assert [note.split(" ms ")[0].split(":")[0] for note in report["notes"]] == ["busy"]
    assert "ms together" in report["notes"][0]
    assert "ms one stream at a time" in report["notes"][0]
    assert set(shapes) == {"chat", "busy"}
    for shape in shapes.values():
        assert shape["first_token_ms"] > 0
        assert shape["streams_that_fit"] > 100


def test_the_benchmark_for_gpus_reads_what_the_steps_wrote(made, monkeypatch):
    spec = importlib.util.spec_from_file_location("decoder_gpu", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "artifact", lambda engine, step: made[step])
    values, steps = benchmark.recorded_measurements(ENGINE), benchmark.timed_steps(ENGINE)
    assert all(situation["right"] for situation in values["situations"].values())
    assert set(values["shapes"]) == {"chat", "busy"}
    assert set(steps) == {"1 together", "4 together", "4 alone"}
    assert all(step["step_ms"] > 0 for step in steps.values())


def test_it_generates(made):
    with verified_engine(made["build"]) as engine:
        generator = open_generator(engine, engine.sidecar.target, streams=2)
    try:
        pieces = list(generator.stream("You may reproduce and", 8))
        assert generator.generate(["You may reproduce and", "the"], 8)[0] == "".join(pieces)
    finally:
        generator.close()


def test_one_altered_part_is_refused(made, tmp_path):
    shutil.copytree(made["build"], tmp_path / "engine")
    with (tmp_path / "engine" / "engine-4x1").open("ab") as part:
        part.write(b" ")
    with pytest.raises(TrustError, match="engine-4x1: was altered"), verified_engine(tmp_path / "engine"):
        pass


def test_a_cache_that_grows_is_not_for_a_gpu(plan, made, tmp_path):
    step = plan.steps[plan.engines[0].steps["build"]]
    shutil.copytree(made["lower"], tmp_path / "lower")
    face = report_of(tmp_path / "lower", "decoder.json")
    (tmp_path / "lower" / "decoder.json").write_text(json.dumps({**face, "form": "growing"}))
    job = StepJob(step.id, step.params, {"lower": tmp_path / "lower"}, step.unkeyed, tmp_path, print)
    with pytest.raises(UnsupportedError, match="its cache grows by concatenation, and a GPU's engines"):
        build_step.run(job)
