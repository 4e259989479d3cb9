"""The CPU target: ONNX Runtime's optimized graph, saved, loaded, run and timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import backend_facts, onnxruntime
from engineworks.engines.backends.base import BuildRequest, Serving
from engineworks.engines.capabilities import why_not
from engineworks.errors import BuildError, RunError, TargetError
from engineworks.host.child import run_in_child
from engineworks.host.file_digests import digest_file
from engineworks.model.lower.quantize import name_nodes, quantize, raise_opset_for
from engineworks.tensors import TensorSpec

Operators = Callable[[str, str], onnx.ModelProto]
RequestFor = Callable[..., BuildRequest]
GraphOf = Callable[..., onnx.ModelProto]
Arrays = Mapping[str, NDArray[np.generic]]


def quiet(line: str) -> None:
    pass


def build(request: BuildRequest) -> Path:
    report = onnxruntime.build(request, quiet)
    return request.out / report.file


def feeds(batch: int, *shape: int) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)}


def reference(model: onnx.ModelProto, given: Arrays) -> NDArray[Any]:
    """What ONNX Runtime computes with every optimization off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, dict(given))[0]
    return found


@pytest.mark.parametrize("kind", ["conv", "matmul", "gemm", "deconv"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_engine_computes_what_the_model_does(
    request_for: RequestFor, operators: Operators, kind: str, batch: int
) -> None:
    model = operators(kind, "fp32")
    session = onnxruntime.load(build(request_for(model)), {})
    given = feeds(batch, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    np.testing.assert_allclose(session.run(given)["y"], reference(model, given), rtol=1e-4, atol=1e-5)


def test_the_engine_is_described(request_for: RequestFor, operators: Operators) -> None:
    request = request_for(operators("gemm", "fp32"))
    report = onnxruntime.build(request, quiet)
    assert [f.name for f in request.out.iterdir()] == ["engine"]
    assert report.inputs == (TensorSpec("x", "float32", ("n", 128)),)
    assert report.outputs == (TensorSpec("y", "float32", ("n", 64)),)
    assert report.versions == {"onnxruntime": backend_facts("onnxruntime").version}
    assert report.details == {"optimization_level": "extended", "engine_bytes": (request.out / "engine").stat().st_size}


def test_the_saved_graph_is_optimized_but_not_laid_out_for_this_processor(
    request_for: RequestFor, graph_of: GraphOf, operators: Operators
) -> None:
    conv = operators("conv", "fp32")
    nodes = [*conv.graph.node[:-1], helper.make_node("Relu", ["y_cast"], ["y"])]
    model = graph_of(nodes, [("x", ["n", 16, 8, 8])], [("y", ["n", 32, 8, 8])], list(conv.graph.initializer))
    saved = onnx.load(str(build(request_for(model))))
    assert [(n.domain, n.op_type) for n in saved.graph.node] == [("com.microsoft", "FusedConv")]


def test_large_weights_go_beside_the_engine(
    request_for: RequestFor, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "EXTERNAL_ABOVE_BYTES", 1000)
    model = operators("gemm", "fp32")
    request = request_for(model)
    report = onnxruntime.build(request, quiet)
    assert sorted(f.name for f in request.out.iterdir()) == ["engine", "engine.data"]
    assert report.details["weights_bytes"] == 128 * 64 * 4
    moved = request.out.rename(request.out.with_name("moved"))
    given = feeds(2, 128)
    np.testing.assert_allclose(
        onnxruntime.load(moved / "engine", {}).run(given)["y"], reference(model, given), rtol=1e-4, atol=1e-5
    )


def test_what_the_capability_table_says_of_precisions_is_true(request_for: RequestFor, operators: Operators) -> None:
    for kind in ("conv", "matmul", "gemm"):
        for precision in ("fp32", "fp16", "bf16", "int8", "int8_weights"):
            said = why_not("onnxruntime", "1.31.1", precision, ())
            request = request_for(operators(kind, precision), precision)
            if said is None:
                onnxruntime.load(build(request), {})
            else:
                with pytest.raises(BuildError, match="has no CPU kernel"):
                    build(request)


@pytest.mark.parametrize(
    ("kind", "named"), [("gemm", "Gemm (node 'gemm')"), ("conv", "Conv (node 'conv'): Type 'tensor(bfloat16)'")]
)
def test_an_operator_without_a_kernel_is_named_with_its_node(
    request_for: RequestFor, operators: Operators, kind: str, named: str
) -> None:
    with pytest.raises(BuildError) as caught:
        build(request_for(operators(kind, "bf16"), "bf16"))
    assert f"has no CPU kernel for {named}" in caught.value.message
    assert "use fp32 or int8 on this target" in caught.value.hint


def test_a_node_without_a_name_is_called_by_its_output(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    kinds = {"x": TensorProto.BFLOAT16, "y": TensorProto.BFLOAT16}
    with pytest.raises(BuildError, match=r"has no CPU kernel for Add \(node of 'y'\)"):
        build(request_for(graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4])], types=kinds)))


def test_an_operator_of_nobody_is_named(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [helper.make_node("Special", ["x"], ["y"], name="ours", domain="acme")]
    with pytest.raises(BuildError, match=r"has no CPU kernel for acme:Special \(node 'ours'\)"):
        build(request_for(graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4])], domains=("acme",))))


def test_a_graph_that_is_wrong_in_itself_is_told_by_node(request_for: RequestFor, graph_of: GraphOf) -> None:
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [5, 4], [1.0] * 20)]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    with pytest.raises(BuildError, match=r"finds MatMul \(node 'product'\) invalid: .*Incompatible dimensions"):
        build(request_for(graph_of(nodes, [("x", ["n", 3])], [("y", ["n", 4])], weights)))


@pytest.mark.parametrize("precision", ["int8_weights", "int4_weights"])
def test_weight_only_engines_do_not_round_activations(
    request_for: RequestFor, graph_of: GraphOf, precision: str
) -> None:
    """ONNX Runtime's own accuracy level gives a cosine of 0.6 and less here: channels of the input that are 1,000 times
    as large as others take all the steps of an int8 activation."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 16)).astype(np.float32)
    weight[::8] /= 1000
    source = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], [("x", ["n", 64])], [("y", ["n", 16])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    globs = {precision: ("*",)}
    lowered = quantize(name_nodes(raise_opset_for(source, globs)), None, globs=globs).model
    given = feeds(4, 64)
    given["x"][:, ::8] *= 1000
    expected = reference(lowered, given)
    request = request_for(lowered, precision)
    for engine in (build(request), request.model):  # a model that is loaded as it is computes the same
        np.testing.assert_allclose(onnxruntime.load(engine, {}).run(given)["y"], expected, rtol=1e-3, atol=1e-3)
    [node] = [n for n in onnx.load(str(request.out / "engine")).graph.node if n.op_type == "MatMulNBits"]
    assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 1  # for whoever loads it without our options


def test_unknown_options_are_refused(request_for: RequestFor, operators: Operators) -> None:
    with pytest.raises(TargetError, match="unknown option 'thread' of ONNX Runtime; did you mean 'threads'"):
        build(request_for(operators("gemm", "fp32"), options={"thread": 2}))
    with pytest.raises(TargetError, match="'threads' of ONNX Runtime is 'all'"):
        onnxruntime.load(Path("engine"), {"threads": "all"})


def test_threads_are_those_asked_for_else_one_a_core() -> None:
    assert onnxruntime.session_options({"threads": 1}).intra_op_num_threads == 1
    assert onnxruntime.session_options({}).intra_op_num_threads == int(onnxruntime.hardware()["cores"])


def test_a_file_that_is_no_engine_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"not an engine")
    with pytest.raises(RunError, match="cannot load it") as caught:
        onnxruntime.load(tmp_path / "engine", {})
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="cannot load it"):
        onnxruntime.load(tmp_path / "missing", {})


@pytest.fixture
def two_inputs(request_for: RequestFor, graph_of: GraphOf) -> onnxruntime.OrtSession:
    """y = a + b of one named batch; count = number of values of a that are not zero, of data-dependent shape."""
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("NonZero", ["a"], ["where"])]
    shapes: list[tuple[str, list[Any]]] = [("a", ["batch", 3]), ("b", ["batch", 3])]
    model = graph_of(nodes, shapes, [("y", ["batch", 3]), ("where", [2, "found"])], types={"where": TensorProto.INT64})
    return onnxruntime.load(build(request_for(model, profiles=())), {})


def ones(*shape: int, dtype: type = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": ones(2, 3)}, r"input 'b' is missing; the engine takes a: float32\[batch, 3\]"),
        ({"a": ones(2, 3), "b": ones(2, 3), "c": ones(1)}, "the engine has no input 'c'"),
        ({"a": ones(2, 3), "b": ones(2, 3, dtype=np.float64)}, "input 'b' is float64, the engine takes float32"),
        ({"a": ones(2, 4), "b": ones(2, 3)}, r"input 'a' is \[2, 4\], the engine takes a: float32\[batch, 3\]"),
        ({"a": ones(2, 3), "b": ones(3)}, r"input 'b' is \[3\], the engine takes b: float32\[batch, 3\]"),
        ({"a": ones(2, 3), "b": ones(1, 3)}, r"input 'b' is \[1, 3\], .* with batch = 2"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_name(
    two_inputs: onnxruntime.OrtSession, given: dict[str, NDArray[Any]], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        two_inputs.run(given)
    with pytest.raises(RunError, match=said):
        two_inputs.time_runs(given, 1)


def test_runs_are_timed_with_outputs_of_any_shape(two_inputs: onnxruntime.OrtSession) -> None:
    for batch in (1, 5):
        given = {"a": ones(batch, 3), "b": ones(batch, 3)}
        times = two_inputs.time_runs(given, 20).host_ms
        assert len(times) == 20
        assert all(0 < t < 1000 for t in times)
        assert two_inputs.run(given)["where"].shape == (2, 3 * batch)


def test_a_model_that_takes_longer_is_timed_as_slower(request_for: RequestFor, graph_of: GraphOf) -> None:
    def time_of(size: int) -> float:
        nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
        model = graph_of(nodes, [("x", [size, size])], [("y", [size, size])])
        session = onnxruntime.load(build(request_for(model, profiles=())), {"threads": 1})
        return float(np.median(session.time_runs({"x": ones(size, size)}, 9).host_ms))

    assert time_of(512) > 4 * time_of(32)


def test_arrays_that_are_not_contiguous_are_fed_right(two_inputs: onnxruntime.OrtSession) -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::-1].T[:, :3]
    assert not a.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(two_inputs.run({"a": a, "b": ones(4, 3)})["y"], a + 1)


def test_a_closed_session_says_so(two_inputs: onnxruntime.OrtSession) -> None:
    two_inputs.close()
    two_inputs.close()
    with pytest.raises(RunError, match="was closed"):
        two_inputs.run({"a": ones(1, 3), "b": ones(1, 3)})


def test_the_target_must_be_the_cpu() -> None:
    assert onnxruntime.why_not_build(()) is None
    assert "leave compute_capability out" in str(onnxruntime.why_not_run(("8.6",)))


BuildJob = Callable[[str, BuildRequest], dict[str, Any]]


def test_in_a_child_the_log_of_the_library_is_kept(
    request_for: RequestFor, operators: Operators, build_job: BuildJob
) -> None:
    lines: list[str] = []
    request = request_for(operators("gemm", "fp32"))
    run_in_child("engineworks.steps.job:main", build_job("onnxruntime", request), on_line=lines.append)
    sidecar = json.loads((request.out / "engine.json").read_text(encoding="utf-8"))
    assert lines[0].startswith("ONNX Runtime ")
    assert any("GraphTransformer" in line for line in lines)  # written by C++ on standard error
    assert sidecar["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 128]}]
    assert sidecar["sha256"] == digest_file(request.out / "engine")


def test_in_a_child_a_failure_is_a_build_error_with_its_log(
    request_for: RequestFor, operators: Operators, build_job: BuildJob
) -> None:
    job = build_job("onnxruntime", request_for(operators("gemm", "bf16"), "bf16"))
    with pytest.raises(BuildError, match="has no CPU kernel for Gemm") as caught:
        run_in_child("engineworks.steps.job:main", job)
    assert "NOT_IMPLEMENTED" in caught.value.log


def test_threads_share_a_session(two_inputs: onnxruntime.OrtSession) -> None:
    assert two_inputs.throughput({"a": ones(2, 3), "b": ones(2, 3)}, 2, 0.05) > 0


def test_a_wish_for_cuda_graphs_is_answered(request_for: RequestFor, operators: Operators) -> None:
    engine = build(request_for(operators("gemm", "fp32")))
    session = onnxruntime.load(engine, {}, serving=Serving(cuda_graphs=True))
    assert session.notes == ("a CPU has no CUDA graphs: runs without",)


@pytest.mark.parametrize(("level", "rounds"), [(1, False), (4, True)])
def test_activations_are_rounded_as_the_model_itself_asks(tmp_path: Path, level: int, rounds: bool) -> None:
    """y = x · codes, 4 bits, by blocks of 32; at level 4 x is rounded to int8, as written too."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (16, 2, 16)).astype(np.uint8)  # two codes a byte, zero at 8
    weights = ((codes[..., None] >> np.array([0, 4])) & 15).reshape(16, 64).astype(np.float32) - 8
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=64, N=16, bits=4, block_size=32,
        accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(codes, "b"), numpy_helper.from_array(np.ones((16, 2), np.float32), "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    x = feeds(5, 64)["x"]
    got = onnxruntime.load_as_written(tmp_path / "m.onnx").run({"x": x})["y"]
    error = float(np.abs(got - x @ weights.T).max())
    assert (error > 1e-2) == rounds
    assert error < 1
