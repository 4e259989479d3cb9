"""int8 products are exact on every processor: without VNNI, x86 kernels saturate unless a session asks otherwise."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.commands.init import trials
from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import BuildRequest
from engineworks.model import equivalence
from engineworks.model.calibrate import runtime
from engineworks.model.lower.half.run import Bench
from engineworks.model.ort import exact_options
from engineworks.steps.partial_quantization.trials import CutSession
from engineworks.tensors import InputRange, Profile

SOURCE = Path(__file__).parents[2] / "engineworks"
ROWS = np.random.default_rng(0).integers(100, 127, (4, 64)).astype(np.float32)
WEIGHT = np.random.default_rng(1).integers(-127, 128, (64, 16)).astype(np.int8)
EXPECTED: NDArray[Any] = (ROWS.astype(np.int32) @ WEIGHT.astype(np.int32)).astype(np.float32) * np.float32(0.01)


def saturating_product(op_type: str) -> onnx.ModelProto:
    """ROWS times WEIGHT in int8: the sum of any two products overflows int16."""
    constants: dict[str, Any] = {"one": np.float32(1), "zero": np.int8(0), "w": WEIGHT, "scale": np.float32(0.01)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wd"]),
        helper.make_node(op_type, ["xd", "wd"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 64), ("y", 16)))
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def raw(open_session: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: open_session(path).run(None, {"x": ROWS})[0]


SESSIONS: dict[str, Callable[[Path], Any]] = {
    "engine": lambda path: backend.load(path, {}).run({"x": ROWS})["y"],
    "as written": lambda path: backend.load_as_written(path).run({"x": ROWS})["y"],
    "mixture": lambda path: CutSession(onnx.load(str(path)), path.parent).run({"x": ROWS})["y"],
    "half precision": raw(lambda path: Bench(path.parent).open(onnx.load(str(path)), {}, optimize="all")),
    "equivalence": raw(lambda path: equivalence.open_session(path, optimized=True)),
    "calibration": raw(lambda path: runtime.open_session(path, path, 1, ["CPUExecutionProvider"], alone=True)),
    "init": raw(lambda path: trials._session(str(path))),
}


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
@pytest.mark.parametrize("name", SESSIONS)
def test_large_operands_do_not_saturate(tmp_path: Path, name: str, op_type: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(saturating_product(op_type), str(path))
    np.testing.assert_allclose(SESSIONS[name](path), EXPECTED, rtol=1e-4, atol=1e-3)


def test_an_engine_saved_where_nothing_saturates_is_exact_elsewhere(tmp_path: Path) -> None:
    """A processor with VNNI saves int8 weights as they are: so does a session without the option, on any."""
    path, saved = tmp_path / "model.onnx", tmp_path / "engine"
    onnx.save(saturating_product("MatMul"), str(path))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(saved), 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert TensorProto.INT8 in {t.data_type for t in onnx.load(str(saved)).graph.initializer if t.dims}
    found: Any = backend.load(saved, {}).run({"x": ROWS})["y"]
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-4, atol=1e-3)


def shared_weight() -> tuple[onnx.ModelProto, NDArray[Any], NDArray[Any]]:
    """Two products of one weight: without VNNI, ONNX Runtime would convert that weight twice and fails to load it."""
    made = saturating_product("MatMul")
    made.graph.node[3].output[0] = "first"
    made.graph.node.append(helper.make_node("MatMul", ["xd", "wd"], ["z"], name="second"))
    made.graph.node.append(helper.make_node("Max", ["first", "z"], ["y"], name="both"))
    return made, ROWS, EXPECTED


def left_weight() -> tuple[onnx.ModelProto, NDArray[Any], NDArray[Any]]:
    """A weight on the left with a scale per channel: without VNNI, ONNX Runtime loads it and fails to run it."""
    scales = np.linspace(0.01, 0.02, 16, dtype=np.float32)
    zeros = np.zeros(16, np.int8)
    constants = {"one": np.float32(1), "zero": np.int8(0), "w": WEIGHT.T, "scale": scales, "zeros": zeros}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zeros"], ["wd"], axis=0),
        helper.make_node("MatMul", ["wd", "xd"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k, 4]) for n, k in (("x", 64), ("y", 16)))
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], values)
    columns = np.stack([ROWS.T, ROWS.T])
    expected = (WEIGHT.T.astype(np.float32) * scales[:, None]) @ columns
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), columns, expected


def built(path: Path, feeds: Any) -> Any:
    shape = InputRange(feeds.shape, feeds.shape, feeds.shape)
    request = BuildRequest(path, path.parent, "int8", (Profile("only", {"x": shape}),))
    report = backend.build(request, lambda line: None)
    return backend.load(path.parent / report.file, {}).run({"x": feeds})["y"]


RUNS: dict[str, Callable[[Path, Any], Any]] = {
    "build": built,
    "mixture": lambda path, feeds: CutSession(onnx.load(str(path)), path.parent).run({"x": feeds})["y"],
    "half precision": lambda path, feeds: (
        Bench(path.parent).open(onnx.load(str(path)), {}, optimize="all").run(None, {"x": feeds})[0]
    ),
    "calibration": lambda path, feeds: runtime.open_session(path, path, 1, ["CPUExecutionProvider"], alone=True).run(
        None, {"x": feeds}
    )[0],
    "init": lambda path, feeds: trials._session(str(path)).run(None, {"x": feeds})[0],
}


@pytest.mark.parametrize("graph", [shared_weight, left_weight])
@pytest.mark.parametrize("name", RUNS)
def test_a_graph_without_exact_kernels_runs_all_the_same(tmp_path: Path, name: str, graph: Any) -> None:
    model, feeds, expected = graph()
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    np.testing.assert_allclose(RUNS[name](path, feeds), expected, rtol=1e-4, atol=1e-2)


def test_every_session_has_these_options() -> None:
    """Options are made in one place; each session is opened with such options."""
    made, without = [], []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".SessionOptions"):
                made.append(path.relative_to(SOURCE).as_posix())
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".InferenceSession"):
                without += [f"{path}:{node.lineno}"] if len(node.args) < 2 else []
    assert made == ["model/ort.py"]
    assert without == []


def test_the_options_are_those_of_onnx_runtime() -> None:
    assert exact_options().get_session_config_entry("session.x64quantprecision") == "1"
