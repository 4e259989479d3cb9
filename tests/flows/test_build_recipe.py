"""The main job, whole: the flow with real tasks, a real store, a real MLflow database and real engines."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from by_hand import by_hand
from conftest import STEPS, tiny_model
from flow_builds import build, enter

from engineworks.builds.command import build_plans
from engineworks.builds.results import BuildResult
from engineworks.engines.peers import PEERS
from engineworks.errors import RecipeError
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.settings import Settings, read_settings
from engineworks.store.shared import open_store
from engineworks.tracking.existing import open_existing
from engineworks.tracking.runs import open_tracking
from flows.outcomes import result_of

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def built(tiny_build: tuple[Path, BuildResult], monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, BuildResult]:
    """Its settings and result; the recipe and its files are as they were built, whatever the test before changed."""
    root, result = tiny_build
    shutil.copytree(root / "as_built", root / "recipes", dirs_exist_ok=True)
    enter(root, monkeypatch)
    return read_settings(), result


def plan(settings: Settings, recipe: str = "recipes/tiny.yaml", only: str | None = None) -> Plan:
    loaded = load_recipe(Path(recipe))
    return plan_recipe(loaded, open_store(settings), FileDigests(None), only=only)


def edit(old: str, new: str) -> None:
    path = Path("recipes/tiny.yaml")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_recipe_becomes_engines_with_verdicts_on_record(built: tuple[Settings, BuildResult]) -> None:
    settings, result = built
    assert {e.id: e.verdict for e in result.engines} == {"tiny/fp32/cpu": "pass", "tiny/int8/cpu": "pass"}
    assert (result.steps.run, result.steps.reused, result.steps.failed) == (STEPS, 0, 0)
    assert result.report is not None
    assert "tiny/int8/cpu" in result.report.read_text(encoding="utf-8")
    for engine in result.engines:
        assert engine.path is not None
        assert engine.path.is_file()
        assert engine.accuracy is not None
        assert engine.accuracy.metric is not None
        assert engine.accuracy.metric.kind == "labels"
        assert engine.latency is not None
        assert engine.latency.shapes["one"].latency_ms_p50 > 0
    tracking = open_tracking(settings.artifacts, None)
    (parent,) = tracking.find_runs(kind="build")
    assert parent.run_id == result.run
    children = tracking.find_runs(kind="engine", parent_run_id=parent.run_id)
    assert {c.name for c in children} == {"tiny/fp32/cpu", "tiny/int8/cpu"}
    assert all(c.tags["engineworks.verdict"] == "pass" for c in children)
    assert all("cosine/logits" in c.metrics for c in children)
    used = open_existing(tracking.uri).keys_in_use()
    assert {s for e in result.engines for s in e.keys.values()} <= used


def test_mlflow_and_prefect_show_the_verdicts_and_lead_to_the_report(built: tuple[Settings, BuildResult]) -> None:
    from prefect.artifacts import Artifact

    settings, result = built
    assert result.report is not None
    tracking = open_tracking(settings.artifacts, None)
    page = tracking.read_text(result.run, "report.html")
    assert page == result.report.read_text(encoding="utf-8")
    parent = tracking.get_run(result.run)
    flow = parent.tags["prefect.page"]
    assert flow.endswith(parent.tags["prefect.flow_run"])
    assert flow in page
    assert "| tiny/int8/cpu | pass |" in parent.tags["mlflow.note.content"]
    assert "artifacts/report.html" in parent.tags["mlflow.note.content"]
    for run in tracking.find_runs(kind="engine", parent_run_id=result.run):
        assert run.name == run.engine
        assert {"p50_ms", "samples_per_s", "worst_cosine", "engine_mib"} <= set(run.metrics)
        assert f"{result.run}/artifacts/report.html" in run.tags["mlflow.note.content"]
    shown = Artifact.get("verdicts-tiny")
    assert shown is not None
    assert "| tiny/int8/cpu | pass |" in str(shown.data)
    assert "Ship tiny? Yes: 2 engines passed" in str(shown.data)
    assert "127.0.0.1:5000" not in str(shown.data), "no server shows MLflow's pages"
    assert re.fullmatch(r"tiny \d{4}-\d\d-\d\d \d\d:\d\d", parent.name)
    assert "mlflow.sharedViewState.recipe-tiny" in tracking._connect().experiment_tags()
    read_run = tracking._connect().client.get_run
    data = {i.tags[0].value: i.dataset for i in read_run(result.run).inputs.dataset_inputs}
    assert data.keys() == {"evaluation", "calibration"}
    assert all(len(d.digest) == 12 and Path(json.loads(d.source)["uri"]).name == d.name for d in data.values())
    for run in tracking.find_runs(kind="engine", parent_run_id=result.run):
        roles = {i.tags[0].value for i in read_run(run.run_id).inputs.dataset_inputs}
        assert roles == data.keys() - (set() if "/int8/" in run.engine else {"calibration"})
    steps = json.loads(tracking.read_text(result.run, "steps.json"))
    assert [s["state"] for s in steps] == ["run"] * STEPS


def test_a_second_build_runs_no_step_and_tells_the_same(built: tuple[Settings, BuildResult]) -> None:
    settings, first = built
    (second,) = build_plans([plan(settings)], settings)
    assert (second.steps.run, second.steps.failed) == (0, 0)
    assert second.run == first.run
    assert json.dumps(second.to_json()["engines"]) == json.dumps(first.to_json()["engines"])
    third = build()
    assert third.steps.run == 0


@pytest.mark.usefixtures("built")
def test_a_changed_limit_runs_no_step_and_the_verdict_changes() -> None:
    edit("int8: {cosine: 0.98}", "int8: {cosine: 0.99999999}")
    result = build()
    assert result.steps.run == 0
    assert {e.id: e.verdict for e in result.engines} == {"tiny/fp32/cpu": "pass", "tiny/int8/cpu": "fail"}
    assert result.exit_code() == 1


def test_a_damaged_engine_is_built_again(built: tuple[Settings, BuildResult]) -> None:
    _, first = built
    path = first.engines[0].path
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result = build()
    assert result.steps.run == 1
    assert path.is_file()
    assert result.exit_code() == 0


def test_a_plan_that_was_made_already_is_carried_out_as_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan and settings come by closure: nothing is planned again, no environment is read, Prefect stores neither."""
    from prefect.client.orchestration import get_client

    from flows.build_recipe import build_planned

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr("tasks.plan_build.read_plans", refuse)
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", "/nowhere")
    only = "tiny/fp32/cpu"
    first = result_of(build_planned(plan(settings, only=only), settings, only))
    assert isinstance(first, BuildResult), first
    assert (first.exit_code(), first.steps.failed) == (0, 0)
    (recorded,) = open_tracking(settings.artifacts, None).find_runs(kind="build")
    assert recorded.run_id == first.run
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(recorded.tags["prefect.flow_run"])  # type: ignore[arg-type]
    assert run.parameters == {
        "recipe": str(plan(settings).loaded.path), "only": only, "options": {"compare": None, "mode": "full"},
    }  # fmt: skip
    path = first.engines[0].path
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    again = result_of(build_planned(plan(settings, only=only), settings, only))
    assert isinstance(again, BuildResult), again
    assert (again.steps.run, again.exit_code()) == (1, 0), "what is damaged is made again"


def test_one_failing_engine_stops_no_other_and_is_recorded(settings: Settings) -> None:
    edit("targets: [cpu]", "calibration: {keep: [no-such-node]}\ntargets: [cpu]")
    result = build()
    verdicts = {e.id: e.verdict for e in result.engines}
    assert verdicts == {"tiny/fp32/cpu": "pass", "tiny/int8/cpu": "failed"}
    failed = result.engines[1]
    assert failed.failure is not None
    assert "no-such-node" in failed.failure.message
    assert result.exit_code() != 0
    tracking = open_tracking(settings.artifacts, None)
    (child,) = tracking.find_runs(engine="tiny/int8/cpu", kind="engine")
    assert child.status == "FAILED"
    assert "no-such-node" in tracking.read_text(child.run_id, "error.txt")


def test_auto_builds_what_the_target_has_drops_what_fails_and_records_why(
    auto_build: tuple[Path, BuildResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, result = auto_build
    enter(root, monkeypatch)
    settings = read_settings()
    assert result.exit_code() == 0
    (cpu,) = result.ladder
    assert {r.precision for r in cpu.candidates if r.engine} == {"fp32", "fp16", "int8", "int8_weights", "int4_weights"}
    assert cpu.basis == "measured"
    assert cpu.chosen is not None
    fastest = min(r.latency_ms for r in cpu.candidates if r.verdict == "pass" and r.latency_ms)
    assert cpu.chosen.latency_ms is not None
    assert cpu.chosen.latency_ms <= fastest * 1.02
    int8 = next(r for r in cpu.candidates if r.precision == "int8")
    assert "engineworks sensitivity recipes/tiny.yaml --precision int8" in int8.dropped
    assert result.report is not None
    page = result.report.read_text(encoding="utf-8")
    assert "Ladder of cpu" in page
    assert "<svg" in page
    tracking = open_tracking(settings.artifacts, None)
    tags = {c.name: c.tags["engineworks.ladder"] for c in tracking.find_runs(kind="engine", parent_run_id=result.run)}
    assert tags[cpu.chosen.engine] == "chosen"
    assert tags["tiny/int8/cpu"] == f"dropped: {int8.dropped}"
    assert tracking.get_run(result.run).tags["engineworks.ladder"] == cpu.message
    (again,) = build_plans([plan(settings)], settings)
    assert again.steps.run == 0
    assert again.ladder == result.ladder
    assert again.exit_code() == 0


def test_peers_are_measured_beside_the_engines_and_recorded(settings: Settings) -> None:
    result = build(only="tiny/fp32/cpu", compare="ort-cpu,pytorch")
    assert result.exit_code() == 0
    assert result.comparison is not None
    rows = {row.name: row for row in result.comparison.rows}
    assert rows.keys() == {"pytorch-fp32", "pytorch-fp16", "ort-cpu-fp32", "fp32/cpu"}
    assert result.comparison.over == "ONNX Runtime, CPU fp32"
    assert rows["ort-cpu-fp32"].speedup == 1.0
    assert rows["fp32/cpu"].speedup is not None
    assert rows["pytorch-fp16"].note == "the recipe's source is onnx: there is no PyTorch module to run"
    assert result.report is not None
    assert "ONNX Runtime, CPU" in result.report.read_text(encoding="utf-8")
    tracking = open_tracking(settings.artifacts, None)
    run = tracking.get_run(result.run)
    assert run.metrics["peer_latency_ms_p50/ort-cpu-fp32/one"] == rows["ort-cpu-fp32"].latency_ms_p50
    assert json.loads(tracking.read_text(result.run, "comparison.json"))["over"] == result.comparison.over
    again = plan_recipe(
        load_recipe(Path("recipes/tiny.yaml")), open_store(settings), FileDigests(None), only="tiny/fp32/cpu",
        compare=("pytorch", "ort-cpu"),
    )  # fmt: skip
    (second,) = build_plans([again], settings)
    assert (second.steps.run, second.run) == (0, result.run)
    assert second.to_json()["comparison"] == result.to_json()["comparison"]


def test_a_peer_that_fails_is_a_row_and_fails_no_build(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is changed here, not in the child: there the peer is unknown."""
    monkeypatch.setitem(PEERS, "broken", PEERS["ort-cpu"])  # type: ignore[index]
    result = build(only="tiny/fp32/cpu", compare="broken")
    assert result.exit_code() == 0
    assert (result.verdict, result.steps.failed) == ("pass", 0)
    assert result.comparison is not None
    (row,) = (row for row in result.comparison.rows if not row.engine)
    assert row.note.startswith("--compare: unknown peer 'broken'")
    assert open_tracking(settings.artifacts, None).get_run(result.run).status == "FINISHED"


def foreign_operator() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Foo", "com.acme"
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    return model


def renamed_input() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    return model


def test_a_model_with_another_input_is_refused_before_any_step(settings: Settings) -> None:
    from flows.build_recipe import build_recipe

    onnx.save(renamed_input(), "recipes/tiny.onnx")
    before = list(open_store(settings).keys())
    state = build_recipe("recipes/tiny.yaml", return_state=True)
    error = result_of(state)
    assert isinstance(error, RecipeError)
    assert error.exit_code == 2
    assert "recipes/tiny.yaml:6:3: the model has no input 'image'; known: picture" in str(error)
    assert list(open_store(settings).keys()) == before


def test_a_model_that_cannot_be_used_is_bad_input(settings: Settings) -> None:
    onnx.save(foreign_operator(), "recipes/tiny.onnx")
    result = build()
    assert result.exit_code() == 2
    assert {e.verdict for e in result.engines} == {"failed"}
    failure = result.engines[0].failure
    assert failure is not None
    assert "unsupported operator 'Foo' (domain com.acme) at node 'relu'" in failure.message
    assert result.steps.failed == 1


def test_engines_without_hardware_are_built_and_unmeasured(settings: Settings) -> None:
    pytest.importorskip("tensorrt_rtx")
    edit("targets: [cpu]", "targets: [rtx40]")
    edit("[fp32, int8]", "[int8]")
    result = build()
    (engine,) = result.engines
    assert engine.verdict == "unmeasured"
    assert result.exit_code() == 0
    assert result.exit_code(require_verdict=True) == 3
    assert engine.path is not None
    assert engine.path.read_bytes()[:4] == b"vtrt"
    assert engine.sidecar.details["header"]["compute_capabilities"] == ["8.9"]


def asymmetric_quantization() -> onnx.ModelProto:
    """The tiny model with Q/DQ of zero point 3 behind its Relu."""
    model = tiny_model()
    nodes = list(model.graph.node)
    nodes[2].input[0] = "rd"
    quantizers = [
        onnx.helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["rq"], name="quantize"),
        onnx.helper.make_node("DequantizeLinear", ["rq", "scale", "zero"], ["rd"], name="dequantize"),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *quantizers, *nodes[2:]])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.05, np.float32), "scale"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, np.int8), "zero"))
    return model


def test_what_the_folded_model_rules_out_is_refused_before_it_is_lowered_or_built(settings: Settings) -> None:
    pytest.importorskip("tensorrt_rtx")
    onnx.save(asymmetric_quantization(), "recipes/tiny.onnx")
    edit("targets: [cpu]", "targets: [cpu, rtx40]")
    edit("[fp32, int8]", "[as_is]")
    edit("fp32: {cosine: 0.9999}", "as_is: {cosine: 0.99}")
    edit("    int8: {cosine: 0.98}\n", "")
    edit("performance:\n  at: {one: {batch: 1}}\n", "")
    assert plan(settings).refused == ()  # nobody knows yet
    result = build()
    assert [(e.id, e.verdict) for e in result.engines] == [("tiny/as_is/cpu", "pass")]
    assert [r.id for r in result.refused] == ["tiny/as_is/rtx40"]
    assert "a zero point that is not 0: QuantizeLinear (node 'quantize')" in result.refused[0].message
    assert "tiny/as_is/rtx40/build" not in {step.id for step in result.ran}
    assert result.exit_code() == 0
    assert plan(settings).refused == result.refused


def test_digits_calibrated_on_near_black_images_are_caught(settings: Settings) -> None:
    """The recipe that must fail: a calibration set that says nothing about the data."""
    recipes = settings.artifacts.parent / "recipes"
    for name in ("models/digits_cnn.onnx", "data/digits_test.npz"):
        (recipes / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "recipes" / name, recipes / name)
    black = np.random.default_rng(0).uniform(0, 0.01, (256, 1, 8, 8)).astype(np.float32)
    np.savez(recipes / "data/digits_calib.npz", x=black)
    text = (REPOSITORY / "recipes/digits.yaml").read_text(encoding="utf-8")
    (recipes / "digits.yaml").write_text(re.sub(r"^performance:\n(  .*\n)+", "", text, flags=re.M), encoding="utf-8")
    for name in ("_targets.yaml", "_defaults.yaml"):
        shutil.copy(REPOSITORY / "recipes" / name, recipes / name)
    result = build("recipes/digits.yaml", "digits/int8/cpu")
    (engine,) = result.engines
    assert engine.verdict == "fail"
    assert result.exit_code() == 1
    sentence = next(c.message for c in engine.checks if c.name == "metric_ratio")
    assert sentence.startswith("top1 on 597 labelled samples: 0.")
    assert "limit at least 0.99 of fp32" in sentence


def crown(settings: Settings, result: BuildResult, engine: int = 0) -> None:
    """Make an engine of the build the champion, as a release does."""
    one = result.engines[engine]
    _, precision, target = one.id.split("/")
    tracking = open_tracking(settings.artifacts, None)
    (run,) = tracking.find_runs(engine=one.id, kind="engine", parent_run_id=result.run)
    client = by_hand(tracking)
    client.create_registered_model("tiny")
    tags = {
        "engineworks.engine": one.id, "engineworks.engine_digest": one.digest,
        "engineworks.build_key": one.keys["build"], "engineworks.run": run.run_id,
    }  # fmt: skip
    version = client.create_model_version("tiny", source="somewhere", run_id=run.run_id, tags=tags)
    client.set_registered_model_alias("tiny", f"champion-{target}-{precision}", str(version.version))


def test_an_engine_is_held_against_the_champion(settings: Settings) -> None:
    """The champion itself passes; another one, with too little time to know, is inconclusive, and is tried again."""
    edit("[fp32, int8]", "[fp32]")
    edit("  at:", "  regression: {latency: 5%, accuracy: 0.5%, max_s: 0.001}\n  at:")
    first = build()
    assert {c.message for c in first.engines[0].checks if c.name.startswith("regression")} == {
        "No champion yet: nothing to compare with."
    }
    crown(settings, first)
    same = build()
    assert same.exit_code() == 0
    (sentence,) = [c.message for c in same.engines[0].checks if c.name == "regression.latency"]
    assert sentence == "The champion (version 1 of tiny) is this very engine, byte for byte: nothing to measure."

    model = tiny_model()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1 + 1e-6), "w"
    ))  # fmt: skip
    onnx.save(model, "recipes/tiny.onnx")
    other = build()
    (engine,) = other.engines
    assert (engine.verdict, other.exit_code()) == ("inconclusive", 3)
    assert {c.name: c.verdict for c in engine.checks}["regression.latency[one]"] == "inconclusive"
    assert engine.champion_comparison is not None
    assert engine.champion_comparison.attempts[0].rounds[0].blocks["one"][0].ms
    tracking = open_tracking(settings.artifacts, None)
    (child,) = tracking.find_runs(engine="tiny/fp32/cpu", parent_run_id=other.run)
    assert json.loads(tracking.read_text(child.run_id, "champion_comparison.json"))["method"] == "measured"
    assert child.tags["engineworks.champion"] == "tiny/1"
    again = build()
    assert again.steps.run == 1
    (child,) = tracking.find_runs(engine="tiny/fp32/cpu", parent_run_id=again.run)
    recorded = json.loads(tracking.read_text(child.run_id, "champion_comparison.json"))
    assert (recorded["confidence"], len(recorded["earlier"])) == (0.995, 1)
    verdict = json.loads(tracking.read_text(child.run_id, "verdict.json"))
    assert any("Compared again: the one before did not decide" in check["message"] for check in verdict)
    assert child.params["regression.latency"] == "0.05"
    rounds = recorded["attempts"][0]["rounds"]
    assert set(rounds[0]["log_ratios"]) == {"one"}
    assert len(json.loads(tracking.read_text(child.run_id, "latency.json"))["shapes"]["one"]["samples"]) > 4
    assert json.loads(tracking.read_text(child.run_id, "accuracy.json"))["served"]["sequence"]
    assert verdict == [check.to_json() for check in again.engines[0].checks]
    assert again.report is not None
    page = again.report.read_text(encoding="utf-8")
    assert "tiny version 1" in page
    assert "Compared again: the one before did not decide" in page


def test_a_doubtful_calibration_is_said_wherever_one_looks(settings: Settings) -> None:
    """24 samples are few, and images that are 255 times as bright were prepared in another way."""
    with np.load("recipes/calib.npz") as calib:
        np.savez("recipes/calib.npz", image=calib["image"] * 255)
    result = build(only="*/int8/*")
    few, drifted = result.warnings
    assert "24 samples, which is far too few" in few
    assert "'image' differs between calibration and evaluation data" in drifted
    assert result.exit_code() == 1, "the gate sees what this led to, the warnings say why"
    (health,) = result.to_json()["calibration"]
    assert health["warnings"] == [few, drifted]
    assert result.report is not None
    pages = [result.report, result.report.with_name("report.md")]
    (run,) = open_tracking(settings.artifacts, None).find_runs(kind="build")
    for text in (*(page.read_text(encoding="utf-8") for page in pages), run.tags["engineworks.warnings"]):
        assert "far too few" in text
        assert "Kolmogorov-Smirnov distance" in text
    (again,) = build_plans([plan(settings, only="*/int8/*")], settings)
    assert again.steps.run == 0
    assert again.warnings == result.warnings


@pytest.mark.parametrize(("value", "said"), [(np.nan, "holds NaN"), (0.0, "is constant")])
def test_calibration_data_that_tells_nothing_is_bad_input_and_leaves_nothing(
    settings: Settings, value: float, said: str
) -> None:
    np.savez("recipes/calib.npz", image=np.full((24, 1, 4, 4), value, np.float32))
    result = build(only="*/int8/*")
    (engine,) = result.engines
    assert engine.failure is not None
    assert said in engine.failure.message
    assert result.exit_code() == 2
    calibrations = [s for s in plan(settings, only="*/int8/*").steps.values() if s.kind == "calibrate"]
    assert [s.state for s in calibrations] == ["to do"]


def test_new_evaluation_data_calibrates_nothing_anew(built: tuple[Settings, BuildResult]) -> None:
    settings, _ = built
    with np.load("recipes/test.npz") as test:
        np.savez("recipes/test.npz", image=test["image"] + 0.25, label=test["label"])
    states = {s.kind: s.state for s in plan(settings).steps.values()}
    assert (states["reference"], states["calibrate"], states["lower"]) == ("to do", "cached", "cached")


LINES = """\
recipe: lines
model: {source: {onnx: lines.onnx}}
inputs: {image: {dtype: float32, shape: [batch, 1, 4, width]}}
outputs: {logits: [batch, width, 3]}
shapes: {default: {batch: [1, 2, 4], width: [8, 12, 24]}}
precisions: [fp32, int8]
data:
  calibration: {npz: "lines/calib*.npz", samples: 10}
  evaluation: {npz: [lines/short.npz, lines/long.npz], labels: places}
accuracy:
  metric: top1
  limits: {fp32: {cosine: 0.9999, metric: 1.0}, int8: {cosine: 0.9}}
targets: [cpu]
"""


def line_model() -> onnx.ModelProto:
    """image f32[batch,1,4,width] → Conv over the whole height, Squeeze, Transpose → logits f32[batch,width,3]: one class
    a place, whatever the width."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(0, 0.5, (3, 1, 4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], name="conv", pads=[0, 1, 0, 1]),
            helper.make_node("Squeeze", ["c", "axes"], ["s"], name="squeeze"),
            helper.make_node("Transpose", ["s"], ["logits"], name="transpose", perm=[0, 2, 1]),
        ],
        "lines",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, "width"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "width", 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([2], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_data_of_several_lengths_is_built_and_compared_without_padding(settings: Settings) -> None:
    """Labels of every place come from fp32 itself: one that was paired with another line would not be hit."""
    import onnxruntime

    recipes, model = Path("recipes"), line_model()
    onnx.save(model, recipes / "lines.onnx")
    (recipes / "lines").mkdir()
    (recipes / "lines.yaml").write_text(LINES, encoding="utf-8")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    for name, count, width in (("short", 7, 9), ("long", 5, 20), ("calib1", 8, 10), ("calib2", 6, 24)):
        images = random.normal(0, 1, (count, 1, 4, width)).astype(np.float32)
        places = session.run(None, {"image": images})[0].argmax(axis=-1)
        np.savez(recipes / "lines" / f"{name}.npz", image=images, places=places)
    result = build("recipes/lines.yaml")
    assert {e.id: e.verdict for e in result.engines} == {"lines/fp32/cpu": "pass", "lines/int8/cpu": "pass"}
    made = plan(settings, "recipes/lines.yaml")
    store = open_store(settings)
    steps = {
        step.kind: store.require(step.key) for step in made.steps.values() if step.kind in ("reference", "calibrate")
    }
    assert steps["reference"].read_json("reference.json") == {"samples": 12, "runs": 6}  # 1 2 4 | 1 2 2, none of both
    assert steps["calibrate"].read_json("report.json")["data"]["samples"] == 10
    (recipes / "lines" / "long.npz").write_bytes((recipes / "lines" / "calib2.npz").read_bytes())
    again = plan(settings, "recipes/lines.yaml")
    changed = {step.kind for key, step in again.steps.items() if key not in made.steps}
    assert changed == {"reference", "lowered_reference", "compare"}
