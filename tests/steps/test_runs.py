"""The steps that run engines: tensors without any dimension keep their shape, and batches their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engineworks.engines.backends import onnxruntime
from engineworks.recipe.batch import output_axes
from engineworks.recipe.samples import feeds_at, open_samples
from engineworks.steps import reference
from engineworks.steps.job import StepJob
from engineworks.tensors import TensorSpec

IMAGE, RATE = TensorSpec("image", "float32", ("batch", 2)), TensorSpec("rate", "float32", ())


def scaled(folder: Path) -> Path:
    """total[] = sum(image * rate)."""
    nodes = [
        helper.make_node("Mul", ["image", "rate"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled"], ["total"], keepdims=0),
    ]
    values = [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, list(s.shape)) for s in (IMAGE, RATE)]
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "g", values, [total])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def data(folder: Path) -> Mapping[str, NDArray[np.float32]]:
    arrays = {"image": np.ones((3, 2), np.float32), "rate": np.arange(3, dtype=np.float32)}
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return arrays


def test_outputs_without_dimensions_are_kept_as_they_are(tmp_path: Path) -> None:
    scaled(tmp_path)
    data(tmp_path)
    specs = [IMAGE.to_json(), RATE.to_json()]
    samples = {"arrays": {"image": "image", "rate": "rate"}, "count": 3, "total": 3, "specs": specs}
    job = StepJob(
        "tiny/reference", {"samples": samples, "batches": [1]}, {"fold": tmp_path},
        {"evaluation": str(tmp_path / "data.npz")}, tmp_path, lambda _: None,
    )  # fmt: skip
    reference.run(job)
    totals = [run["total"] for run in reference.read_reference(tmp_path)]
    assert [t.shape for t in totals] == [(), (), ()]
    assert [float(t) for t in totals] == [0.0, 2.0, 4.0]


def test_inputs_without_dimensions_are_timed_as_they_are(tmp_path: Path) -> None:
    data(tmp_path)
    samples = open_samples(tmp_path / "data.npz", [IMAGE, RATE], {}, samples=None, labels=None)
    feeds = feeds_at((IMAGE, RATE), samples, {"batch": 4})
    assert {name: array.shape for name, array in feeds.items()} == {"image": (4, 2), "rate": ()}
    session = onnxruntime.load(scaled(tmp_path), {})
    assert len(session.time_runs(feeds, 2).host_ms) == 2
    assert session.run(feeds)["total"].shape == ()


def test_outputs_of_whole_runs_have_no_batch_axis() -> None:
    inputs = [TensorSpec("sound", "float32", (4, 3)), TensorSpec("state", "float32", (2, 4, 5))]
    assert output_axes(inputs, [TensorSpec("y", "float32", (4, 1))]) == {"y": None}
    assert output_axes(inputs[:1], [TensorSpec("y", "float32", (4, 1))]) == {"y": 0}
