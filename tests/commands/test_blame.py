"""`engineworks blame` from a failed engine to a bundle that shows the fault without Engineworks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.cli import run_command

CRASH = """\
recipe: crash
model: {source: {onnx: crash.onnx}}
inputs: {x: {dtype: float32, shape: [time, batch, 5]}}
outputs: {y: [batch, time, 4]}
shapes: {default: {batch: [1, 4, 8], time: [7, 7, 7]}}
precisions: [fp16]
data: {evaluation: {npz: crash.npz}}
accuracy: {limits: {fp16: {cosine: 0.9999}}}
targets: [cpu]
"""


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = run_command(["blame", *arguments, "--json"])
    captured = capsys.readouterr()
    assert captured.out.startswith("{"), captured.err
    return {"code": code, **json.loads(captured.out)}


def run_bundle(folder: str) -> subprocess.CompletedProcess[str]:
    """As anyone would, without this package."""
    return subprocess.run([sys.executable, "-I", "run.py"], cwd=folder, capture_output=True, text=True, check=False)


def test_a_product_that_int8_ruins_is_named_with_what_fp32_would_gain(
    outlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "outlier/int8/cpu")
    assert (found["code"], found["culprit"]) == (1, "lowered")
    assert found["nodes"] == ["/block1/MatMul (MatMul)"]
    assert "already wrong in ONNX Runtime" in found["message"]
    assert found["pieces"][0]["tensor"] == "p1"
    done = run_bundle(found["bundle"])
    assert (done.returncode, "the fault shows" in done.stderr) == (1, True), done.stderr
    assert len(Path(found["bundle"], "run.py").read_text(encoding="utf-8").splitlines()) <= 30


def test_an_engine_without_fault_is_acquitted(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "tiny/fp32/cpu")
    assert (found["code"], found["culprit"], found["nodes"], found["bundle"]) == (0, "nothing", [], "")


@pytest.fixture
def crashing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model on which ONNX Runtime's MatmulTransposeFusion ends the process, and no way around it."""
    monkeypatch.setenv("ENGINEWORKS_WORKAROUNDS", "off")
    random = np.random.default_rng(0)
    w, b = (random.normal(size=s).astype(np.float32) for s in ((5, 4), (4,)))
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["p"], name="product"),
        helper.make_node("Tanh", ["p"], ["a"], name="bend"),
        helper.make_node("Add", ["a", "b"], ["y"], name="bias"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", 4])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )  # fmt: skip
    recipes = repository / "recipes"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, recipes / "crash.onnx")
    np.savez(recipes / "crash.npz", x=random.normal(size=(9, 7, 5)).astype(np.float32))
    (recipes / "crash.yaml").write_text(CRASH, encoding="utf-8")
    return repository


def test_a_crash_of_the_runtime_is_cut_down_and_a_second_search_builds_nothing(
    crashing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "crash/fp16/cpu")
    assert (found["code"], found["culprit"], found["error"]) == (1, "engine", None), found
    assert "the engine alone is wrong: it crashes at" in found["message"]
    assert {"turn (Transpose)", "product (MatMul)"} <= set(found["nodes"])
    assert not {"bend (Tanh)", "bias (Add)"} & set(found["nodes"])
    assert run_bundle(found["bundle"]).returncode < 0  # the same signal, without Engineworks
    probes = crashing / "artifacts/blame/crash-fp16-cpu/probes"
    before = {path: path.stat().st_mtime_ns for path in probes.glob("*.json")}
    assert run_json(capsys, "crash/fp16/cpu")["nodes"] == found["nodes"]
    assert {path: path.stat().st_mtime_ns for path in probes.glob("*.json")} == before


@pytest.mark.parametrize(
    ("engine", "said"), [("tiny", "is no engine's id"), ("huge/int8/cpu", "recipes/ has no recipe 'huge'")]
)
def test_what_cannot_be_blamed_is_said(
    repository: Path, capsys: pytest.CaptureFixture[str], engine: str, said: str
) -> None:
    assert run_command(["blame", engine]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_build_blames_its_failures_in_its_record_and_report(
    outlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["build", str(outlier), "--blame", "--json"])
    built = json.loads(capsys.readouterr().out)
    assert code == 1
    (blame,) = built["blame"]
    assert (blame["engine"], blame["nodes"]) == ("outlier/int8/cpu", ["/block1/MatMul (MatMul)"])
    assert run_command(["report", "outlier", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert "Where the failures come from" in page
    assert blame["message"] in page
    assert "Where the time goes" not in page  # this recipe measures nothing
