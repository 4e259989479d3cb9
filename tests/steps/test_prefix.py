"""A cut model gives what the whole one gives; the cut stays where it cannot move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.recipe.samples import SampleFile
from engineworks.steps.job import StepJob
from engineworks.steps.partial_quantization.groups import group_nodes, single_nodes
from engineworks.steps.partial_quantization.trials import CutSession, Prefix, Trials
from engineworks.tensors import TensorSpec


def branching_model() -> onnx.ModelProto:
    """x f32[batch,8] → a; b, c of a; y = (b + c) @ w, and a second output that is made early."""
    random = np.random.default_rng(2)
    weights = [numpy_helper.from_array(random.normal(0, 0.4, (8, 8)).astype(np.float32), f"w{i}") for i in range(4)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Identity", ["w3"], ["passed"], name="passes_a_weight"),
        helper.make_node("Tanh", ["a"], ["early"], name="tanh"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="left"),
        helper.make_node("MatMul", ["a", "w2"], ["c"], name="right"),
        helper.make_node("Add", ["b", "c"], ["sum"], name="add"),
        helper.make_node("Add", ["sum", "x"], ["residual"], name="residual"),
        helper.make_node("MatMul", ["residual", "passed"], ["y"], name="last"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "branching",
        [value("x", TensorProto.FLOAT, ["batch", 8])],
        [value("y", TensorProto.FLOAT, ["batch", 8]), value("early", TensorProto.FLOAT, ["batch", 8])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def batches() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(7)
    return [{"x": random.normal(0, 1, (n, 8)).astype(np.float32)} for n in (1, 4)]


@pytest.mark.parametrize("places", [[1], [3], [4, 6], [1, 2, 3, 4, 5, 6, 7]])
def test_what_comes_after_a_cut_gives_what_the_whole_gives(
    tmp_path: Path, batches: list[dict[str, np.ndarray]], places: list[int]
) -> None:
    model = branching_model()
    prefix = Prefix(model, batches, tmp_path)
    for place in places:
        prefix.move_to(place)
        assert prefix.at == place
    cut, whole = CutSession(prefix.rest(), tmp_path), CutSession(model, tmp_path)
    for feeds, tensors in zip(batches, prefix.batches, strict=True):
        wanted, got = whole.run(feeds), cut.run(tensors)
        assert "y" in got
        for name, value in got.items():
            np.testing.assert_allclose(value, wanted[name], atol=1e-6)


def test_only_what_is_read_later_is_kept(tmp_path: Path, batches: list[dict[str, np.ndarray]]) -> None:
    prefix = Prefix(branching_model(), batches, tmp_path)
    prefix.move_to(7)
    assert {name for tensors in prefix.batches for name in tensors} == {"residual", "passed"}


def test_the_cut_stays_where_its_tensors_would_take_too_much(
    tmp_path: Path, batches: list[dict[str, np.ndarray]]
) -> None:
    prefix = Prefix(branching_model(), batches, tmp_path, cache_bytes=100)
    prefix.move_to(4)
    assert prefix.at == 0
    assert prefix.batches == batches


def test_an_unsorted_graph_is_not_cut(tmp_path: Path, batches: list[dict[str, np.ndarray]]) -> None:
    model = branching_model()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[1:], nodes[0]])
    prefix = Prefix(model, batches, tmp_path)
    prefix.move_to(4)
    assert prefix.at == 0


def test_trials_of_a_cut_model_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a node whose weight another node passes on: behind a cut it would look like an activation."""
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(7).normal(0, 1, (20, 8)).astype(np.float32))
    samples = SampleFile(tmp_path / "data.npz", (TensorSpec("x", "float32", ("batch", 8)),), {"x": "x"}, None, 20, 20)
    params = {"batches": [1, 4], "metric": None, "output": None, "integer_kernels": True}
    job = StepJob("t", params, {}, {}, tmp_path, lambda line: None)
    ranges = Ranges("minmax", 20, {name: Range(4.0, -4.0, 4.0, 0.0, 100) for name in ("x", "a", "residual")})

    def noises() -> dict[str, float]:
        trials = Trials(branching_model(), ranges, samples, job, globs={"int8": ["*"]}, scratch=tmp_path)
        groups = single_nodes(group_nodes(trials.candidates))
        return {t.group.name: t.noise for t in trials.each_alone(groups, lambda trial: None)}

    cut = noises()
    monkeypatch.setattr(Prefix, "move_to", lambda self, position: None)
    whole = noises()
    assert list(cut) == ["first", "left", "right", "last"]
    assert all(noise > 0 for noise in cut.values())
    assert cut == pytest.approx(whole, rel=1e-3)
