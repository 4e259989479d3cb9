"""Models whose weights lie in a file of their own, as those above 1 GiB do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from random_graphs import WIDTH, random_graph, run

from engineworks.model import onnx_files
from engineworks.model.onnx_files import load_model, save_model
from engineworks.steps.blame import lowered, values
from engineworks.steps.blame.graph import Graph, read_graph
from engineworks.steps.blame.values import error_of, save_part


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A model with its weights beside it, and one with a spoiled product."""
    monkeypatch.setattr(onnx_files, "_DETACHED_FROM_BYTES", 64)
    model = random_graph(40, 3, controlled=False)
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(model)
    name = next(node.input[1] for node in reversed(model.graph.node) if node.op_type == "MatMul")
    for tensor in spoiled.graph.initializer:
        if tensor.name == name:
            array = onnx.numpy_helper.to_array(tensor)[::-1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    found = {}
    for what, made in (("folded", model), ("lowered", spoiled)):
        found[what] = tmp_path / f"{what}.onnx"
        save_model(made, found[what], beside=True)
        assert found[what].with_name(f"{what}.onnx.data").stat().st_size > 0
    return found


def test_weights_stay_on_disk_until_a_part_is_written(files: dict[str, Path], tmp_path: Path) -> None:
    graph = read_graph(files["folded"], tmp_path / "spill")
    assert not any(t.raw_data for t in graph.model.graph.initializer if len(t.dims) > 1)
    assert (tmp_path / "spill").stat().st_size == 0  # nothing is copied of a model with its data in a file
    feeds = {"x": np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)}
    wanted = run(Graph(load_model(files["folded"])).marked(), feeds)
    product = next(i for i, node in enumerate(graph.nodes) if node.op_type == "MatMul")
    output = graph.nodes[product].output[0]
    part = graph.extract({product}, [output], {**feeds, **wanted})
    source = graph.nodes[product].input[0]
    given = {source: {**feeds, **wanted}[source]}
    model, _ = save_part(part, given, tmp_path / "part")
    assert error_of(run(load_model(model), given)[output], wanted[output]) < 1e-6


def test_values_and_lowered_pieces_of_such_models(files: dict[str, Path], tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    payload: dict[str, Any] = {"allowed": 1e-2, "out": str(tmp_path / "bundle")}
    for what, file in files.items():
        out = tmp_path / f"{what}.npz"
        said = values.main({"model": str(file), "feeds": str(tmp_path / "feeds.npz"), "out": str(out)})
        assert said["moved"]
        payload |= {what: str(file), f"{what}_values": str(out)}
    (piece,) = lowered.main(payload)["blamed"]
    assert piece["node"].endswith("(MatMul)")
