"""What is done where ONNX Runtime crashes: fewer optimizations, which the engine's own file remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.builds.step import run_step
from engineworks.engines.backends import onnxruntime
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import RunError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool
from engineworks.model import ort as ort_forms
from engineworks.model.export.outline import metadata_of
from engineworks.model.ort import FORMS, after_crashes, form_of
from engineworks.plan.steps import Step
from engineworks.store.store import Store

RequestFor = Callable[..., BuildRequest]
GraphOf = Callable[..., onnx.ModelProto]

WEIGHT: NDArray[Any] = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
FEEDS = {"x": np.random.default_rng(1).normal(size=(7, 3, 5)).astype(np.float32)}
EXPECTED: NDArray[Any] = FEEDS["x"].transpose(1, 0, 2) @ WEIGHT.astype(np.float32)
CPU = {"backend": "onnxruntime", "compute_capability": [], "options": {}}

SERVED = """
from pathlib import Path
import numpy as np
from engineworks.engines.engine_session import load_engine

def run(payload):
    session = load_engine(Path(payload["folder"]), payload["target"])
    return {"y": session.run({"x": np.asarray(payload["x"], np.float32)})["y"].tolist()}
"""


@pytest.fixture
def transposed_product(graph_of: GraphOf) -> onnx.ModelProto:
    """fp16 Transpose → MatMul: at its highest level ONNX Runtime 1.31 crashes on it (SIGSEGV)."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["x16"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["y16"], name="fc"),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = [numpy_helper.from_array(WEIGHT, "w")]
    return graph_of(nodes, [("x", [7, "n", 5])], [("y", ["n", 7, 4])], weights)


@pytest.mark.parametrize("crashes", range(1, len(FORMS)))
def test_every_form_but_the_first_is_remembered_by_the_engine(
    request_for: RequestFor, transposed_product: onnx.ModelProto, crashes: int
) -> None:
    request = request_for(transposed_product)
    with after_crashes(crashes):
        report = onnxruntime.build(request, lambda line: None)
    engine = request.out / report.file
    assert form_of(engine) == FORMS[crashes]
    assert report.details["load_level"] == FORMS[crashes].loaded
    onnx.load(str(engine))
    session = onnxruntime.load(engine, {})
    np.testing.assert_allclose(session.run(FEEDS)["y"], EXPECTED, atol=0.02)
    assert any(FORMS[crashes].description() in note for note in session.notes)


def test_the_first_form_leaves_no_trace(request_for: RequestFor, operators: Callable[..., onnx.ModelProto]) -> None:
    request = request_for(operators("gemm", "fp32"))
    report = onnxruntime.build(request, lambda line: None)
    assert ort_forms.METADATA_KEY not in metadata_of(request.out / report.file)
    assert not {"notes", "load_level"} & report.details.keys()
    assert onnxruntime.load(request.out / report.file, {}).notes == ()


def test_the_forms_take_away_more_and_more() -> None:
    order = list(ort_forms.LEVELS)
    loaded, saved = ([order.index(getattr(f, field)) for f in FORMS] for field in ("loaded", "saved"))
    assert loaded == sorted(loaded)
    assert saved == sorted(saved)
    assert FORMS[-1] == ort_forms.Form("none", "none")


def test_a_file_that_is_no_model_is_ort_s_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"\xff" * 40)
    with pytest.raises(RunError, match="ONNX Runtime"):
        onnxruntime.load(tmp_path / "engine", {})


def test_a_model_that_crashes_the_runtime_is_built_all_the_same(
    tmp_path: Path, transposed_product: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the step, its child and its sidecar; then loaded in a process that has seen no crash."""
    (tmp_path / "served.py").write_text(SERVED, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    store = Store(tmp_path / "store")
    document = {"step": "lower", "params": {}, "inputs": {}}
    key = digest_of(document)
    with store.writing(key, document, "tiny/fp16/lower") as writing:
        onnx.save(transposed_product, str(writing.folder / "model.onnx"))
    shape = {"min": [7, 1, 5], "opt": [7, 2, 5], "max": [7, 4, 5]}
    params = {"target": CPU, "precision": "fp16", "profiles": [{"name": "default", "inputs": {"x": shape}}]}
    whole = {"step": "build", "params": params, "inputs": {"lower": key}}
    step = Step("build", "tiny/fp16/cpu/build", digest_of(whole), whole, {"lower": key}, {})
    with ChildPool() as pool:
        run_step(step, store, pool, echo=lambda line: None)
        folder = store.require(step.key).path
        seen = pool.run("served:run", {"folder": str(folder), "target": CPU, "x": FEEDS["x"].tolist()}, fresh=True)
    np.testing.assert_allclose(np.asarray(seen["y"]), EXPECTED, atol=0.02)
    details = Sidecar.read(folder).details
    assert ("crashed with" in (folder / "log.txt").read_text()) == bool(details.get("crashes"))
