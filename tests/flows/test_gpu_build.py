"""The main job on a real GPU: built, compared as served, measured, gated, released and compared with the champion, by the
same flow as on the CPU. The target is the GPU of this host; ENGINEWORKS_TEST_TARGET=cpu tries the test without one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model
from onnx import helper, numpy_helper

from engineworks.builds.results import BuildResult
from engineworks.host.gpu import first_gpu
from engineworks.release.promotion import ReleaseResult
from engineworks.settings import Settings, read_settings
from engineworks.tracking.runs import default_uri, open_tracking
from flows.outcomes import result_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("flows"),
    pytest.mark.usefixtures("api"),
    pytest.mark.timeout(600),
]

ON_CPU = os.environ.get("ENGINEWORKS_TEST_TARGET") == "cpu"


@pytest.fixture
def settings(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tiny recipe in fp32 and fp16 for this GPU, served with CUDA graphs."""
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(repository / "artifacts"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(repository / "artifacts"))
    if ON_CPU:
        target = "{backend: onnxruntime}"
    else:
        gpu = first_gpu()
        assert gpu is not None, "there is no NVIDIA GPU here"
        target = f"{{backend: tensorrt_rtx, compute_capability: [{gpu.compute_capability}]}}"
    (repository / "recipes" / "_targets.yaml").write_text(f"targets: {{gpu: {target}}}\n", encoding="utf-8")
    recipe = repository / "recipes" / "tiny.yaml"
    text = recipe.read_text(encoding="utf-8")
    assert "[cpu]" in text
    text = text.replace("[cpu]", "[gpu]").replace("[fp32, int8]", "[fp32, fp16]")
    text = text.replace("int8: {cosine: 0.98}", "fp16: {cosine: 0.999}")
    recipe.write_text(text.replace("  at:", "  serving: {cuda_graphs: true}\n  at:"), encoding="utf-8")
    return read_settings()


def build(only: str | None = None) -> BuildResult:
    from flows.build_recipe import build_recipe

    result = result_of(build_recipe("recipes/tiny.yaml", only, return_state=True))
    assert isinstance(result, BuildResult), result
    return result


def release(only: str) -> ReleaseResult:
    from flows.release import release

    result = result_of(release("recipes/tiny.yaml", only=only, return_state=True))
    assert isinstance(result, ReleaseResult), result
    return result


def the_champion_answers(settings: Settings) -> None:
    """It is an MLflow model; the fixture names its database."""
    import mlflow

    model = mlflow.pyfunc.load_model("models:/tiny@champion-gpu-fp16")
    with np.load("recipes/test.npz") as test:
        found = model.predict({"image": test["image"]})["logits"]
        right = float((np.asarray(found).argmax(axis=-1) == test["label"]).mean())
    assert right > 0.9


def slower_model() -> onnx.ModelProto:
    """The tiny model, with a dozen matrix products beside it whose result hardly counts."""
    model, width = tiny_model(), 1024
    random = np.random.default_rng(3)
    graph, last = model.graph, "wide0"
    graph.node[-1].output[0] = "plain"
    new = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "m0"], ["wide0"])]
    graph.initializer.append(numpy_helper.from_array(random.normal(0, 0.2, (16, width)).astype(np.float32), "m0"))
    for i in range(1, 13):
        weights = random.normal(0, 1 / np.sqrt(width), (width, width)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f"m{i}"))
        new += [
            helper.make_node("MatMul", [last, f"m{i}"], [f"wide{i}"]),
            helper.make_node("Tanh", [f"wide{i}"], [f"tanh{i}"]),
        ]
        last = f"tanh{i}"
    graph.initializer.append(numpy_helper.from_array(np.array(1e-6, np.float32), "little"))
    new += [
        helper.make_node("ReduceMean", [last], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "little"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
    graph.node.extend(new)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_engines_are_built_compared_as_served_measured_and_on_record(settings: Settings) -> None:
    result = build()
    assert {e.id: e.verdict for e in result.engines} == {"tiny/fp32/gpu": "pass", "tiny/fp16/gpu": "pass"}
    tracking = open_tracking(settings.artifacts, None)
    for engine in result.engines:
        assert engine.accuracy is not None
        assert engine.accuracy.served is not None
        assert engine.accuracy.served.failures == ()
        values: dict[str, Any] = engine.latency.shapes["one"].to_json() if engine.latency else {}
        assert values["latency_ms_p50"] > 0
        if not ON_CPU:
            assert values["device_ms_p50"] < 1.1 * values["latency_ms_p50"]
            assert engine.latency is not None
            assert engine.latency.facts["cuda_graphs"] is True
            assert set(engine.latency.loads) == {"without_cache", "with_cache"}
        (child,) = tracking.find_runs(engine=engine.id, parent_run_id=result.run)
        assert json.loads(tracking.read_text(child.run_id, "accuracy.json"))["served"]["failures"] == []
    assert build().steps.run == 0


def test_the_champion_is_a_model_and_kept_by_itself_and_from_a_slower_candidate(settings: Settings) -> None:
    recipe = Path("recipes/tiny.yaml")
    text = recipe.read_text(encoding="utf-8").replace("  at:", "  regression: {latency: 5%}\n  at:")
    recipe.write_text(text, encoding="utf-8")
    assert [e.action for e in release("*/fp16/*").engines] == ["promoted"]
    the_champion_answers(settings)
    same = build("*/fp16/*")
    assert same.exit_code() == 0
    onnx.save(slower_model(), "recipes/tiny.onnx")
    (engine,) = build("*/fp16/*").engines
    checks = {c.name: c.verdict for c in engine.checks if c.name.startswith("regression.latency")}
    told = [c.message for c in engine.checks] or [str(engine.failure)]
    if ON_CPU and "inconclusive" in checks.values():  # other work on this host: then nothing is said, and rightly
        assert any("rounds were disturbed" in sentence for sentence in told), told
        return
    assert set(checks.values()) == {"fail"}, told
    assert [e.action for e in release("*/fp16/*").engines] == ["kept"]
