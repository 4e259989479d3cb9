"""Engines really built by TensorRT-RTX, ahead of time and without a GPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from half_conversion import to_half
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import _trt, tensorrt_rtx
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.capabilities import CAPABILITIES, why_not
from engineworks.errors import BuildError, TargetError, TimeLimitError, UnsupportedError
from engineworks.host.child import run_in_child
from engineworks.model.fold.inventory import node_uses
from engineworks.tensors import InputRange, Profile, TensorSpec

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")

VERSION = tensorrt_rtx.versions()["tensorrt-rtx"]

Operators = Callable[[str, str], onnx.ModelProto]
RequestFor = Callable[..., BuildRequest]
BuildJob = Callable[[str, BuildRequest], dict[str, Any]]
GraphOf = Callable[..., onnx.ModelProto]
Save = Callable[..., Path]

ROOT = Path(__file__).parents[2]


def quiet(line: str) -> None:
    pass


def test_an_engine_is_written_and_described(request_for: RequestFor, operators: Operators) -> None:
    lines: list[str] = []
    request = request_for(operators("gemm", "fp16"), "fp16", ("8.6", "8.9"))
    report = tensorrt_rtx.build(request, lines.append)
    assert [f.name for f in request.out.iterdir()] == ["engine"]
    assert report.details["engine_bytes"] == (request.out / "engine").stat().st_size
    assert report.inputs == (TensorSpec("x", "float32", ("n", 128)),)
    assert report.outputs == (TensorSpec("y", "float32", ("n", 64)),)
    assert report.versions == {"tensorrt-rtx": VERSION}
    assert report.details["tf32"] is False
    assert any("Engine generation completed" in line for line in lines)
    assert not any("cuda" in line.lower() for line in lines)


def test_several_profiles_are_built_into_one_engine(request_for: RequestFor, operators: Operators) -> None:
    profiles = tuple(
        Profile(name, {"x": InputRange((low, 128), (low, 128), (high, 128))})
        for name, low, high in (("small", 1, 2), ("large", 16, 64))
    )
    request = request_for(operators("gemm", "fp32"), "fp32", ("8.6",), profiles=profiles)
    assert tensorrt_rtx.build(request, quiet).details["engine_bytes"]


def test_a_model_of_fixed_shapes_needs_no_profile(request_for: RequestFor, graph_of: GraphOf) -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], [("x", [2, 4])], [("y", [2, 4])])
    assert tensorrt_rtx.build(request_for(model, "fp32", ("8.6",), profiles=()), quiet).outputs[0].shape == (2, 4)
    assert tensorrt_rtx.build(request_for(model, "fp32", ("8.6",)), quiet).inputs[0].shape == (2, 4)


def test_weights_beside_the_file_are_found(request_for: RequestFor, operators: Operators, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(
        operators("gemm", "fp32"), str(path), save_as_external_data=True, location="large.onnx.data", size_threshold=0
    )
    assert (tmp_path / "large.onnx.data").stat().st_size > 10_000
    assert tensorrt_rtx.build(request_for(path, "fp32", ("8.6",)), quiet).details["engine_bytes"]


def test_an_output_that_the_vendor_makes_float_is_said_to_be_so(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)]
    model = graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4])], types={"y": TensorProto.DOUBLE})
    lines: list[str] = []
    report = tensorrt_rtx.build(request_for(model, "fp32", ("8.6",)), lines.append)
    assert report.outputs[0].dtype == "float32"
    assert "output 'y' is float32 in the engine, float64 in the model" in lines


def test_every_node_that_is_not_supported_is_named(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [
        helper.make_node("Bernoulli", ["x"], ["a"], name="coin"),
        helper.make_node("Det", ["a"], ["b"], name="determinant"),
        helper.make_node("Special", ["b"], ["c"], name="ours", domain="acme"),
        helper.make_node("Special", ["c"], ["y"], name="ours too", domain="acme"),
    ]
    model = graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4])], domains=("acme",))
    with pytest.raises(UnsupportedError) as caught:
        tensorrt_rtx.build(request_for(model, "fp32", ("8.6",)), quiet)
    assert str(caught.value) == (
        f"model.onnx: TensorRT-RTX {VERSION} cannot parse it: it does not have Bernoulli (node 'coin'), "
        "Det (node 'determinant'), Special (node 'ours', 2 nodes); "
        "replace it in the model, or build the model for a CPU target (backend: onnxruntime)"
    )


def test_types_that_do_not_agree_are_told_by_node(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "w"], ["y"], name="mixed"),
    ]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])]
    model = graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4])], weights)
    with pytest.raises(BuildError, match=r"Add \(node 'mixed'\): .*same input types") as caught:
        tensorrt_rtx.build(request_for(model, "fp32", ("8.6",)), quiet)
    assert "CUDA" not in str(caught.value)


def attention(graph_of: GraphOf, dtype: int, head: int, *more: str) -> onnx.ModelProto:
    """y = Attention(q, k, v) over what inner nodes make; more: optional inputs of the operator, by their place."""
    shape = ["n", 4, 16, head]
    nodes = [helper.make_node("Relu", [name], [f"{name}_made"], name=f"make_{name}") for name in "qkv"]
    nodes.append(helper.make_node("Attention", ["q_made", "k_made", "v_made", *more], ["y"], name="heads"))
    inputs = [(name, shape) for name in "qkv"] + [(name, ["n"]) for name in more if name]
    types = dict.fromkeys("qkvy", dtype) | dict.fromkeys(more, TensorProto.INT64)
    model = graph_of(nodes, inputs, [("y", shape)], types=types)
    model.opset_import[0].version = 24
    return model


@pytest.mark.parametrize(("precision", "head"), [("fp32", 64), ("fp16", 8)])
def test_attention_without_a_kernel_is_built_from_smaller_operators(
    request_for: RequestFor, graph_of: GraphOf, precision: str, head: int
) -> None:
    lines: list[str] = []
    dtype = TensorProto.FLOAT if precision == "fp32" else TensorProto.FLOAT16
    report = tensorrt_rtx.build(request_for(attention(graph_of, dtype, head), precision, ("8.9",)), lines.append)
    assert report.details["attention"] == "written out as smaller operators"
    assert [spec.name for spec in report.inputs] == ["q", "k", "v"]
    assert any("it has no kernel for Attention (node 'heads')" in line for line in lines)


def test_attention_with_a_kernel_is_left_whole(request_for: RequestFor, graph_of: GraphOf) -> None:
    report = tensorrt_rtx.build(request_for(attention(graph_of, TensorProto.FLOAT16, 64), "fp16", ("8.9",)), quiet)
    assert "attention" not in report.details


def test_attention_with_omitted_inputs_is_built_from_smaller_operators(
    request_for: RequestFor, graph_of: GraphOf
) -> None:
    model = attention(graph_of, TensorProto.FLOAT16, 64, "", "", "", "lengths")
    report = tensorrt_rtx.build(request_for(model, "fp16", ("8.9",)), quiet)
    assert report.details["attention"] == "written out as smaller operators"
    assert [spec.name for spec in report.inputs] == ["q", "k", "v", "lengths"]


def test_an_input_that_the_parser_drops_is_refused_by_name(
    request_for: RequestFor, graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trt, "written_out", lambda path: None)
    model = attention(graph_of, TensorProto.FLOAT16, 64, "", "", "", "lengths")
    with pytest.raises(UnsupportedError) as caught:
        tensorrt_rtx.build(request_for(model, "fp16", ("8.9",)), quiet)
    assert "would leave out without a word: nonpad_kv_seqlen 'lengths' of Attention (node 'heads')" in str(caught.value)


def test_an_output_that_is_an_input_or_a_constant_is_built(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    constants = [helper.make_tensor("c", TensorProto.FLOAT, [2], [1, 2])]
    model = graph_of(nodes, [("x", ["n", 4])], [("y", ["n", 4]), ("c", [2]), ("x", ["n", 4])], constants)
    report = tensorrt_rtx.build(request_for(model, "fp32", ("8.9",)), quiet)
    assert [(s.name, s.shape) for s in report.inputs] == [("x", ("n", 4))]
    assert [s.name for s in report.outputs] == ["y", "c", "x"]


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_sequence_lengths_are_refused_in_half_as_the_table_says(
    request_for: RequestFor, graph_of: GraphOf, operator: str
) -> None:
    import numpy as np

    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    for precision, kind in (("fp32", np.float32), ("fp16", np.float16)):
        weights = [numpy_helper.from_array(np.ones((1, 8 * gates, w), kind), n) for n, w in (("w", 5), ("r", 8))]
        node = helper.make_node(operator, ["x", "w", "r", "", "len"], ["y"], name="cells", hidden_size=8)
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        types = {"x": dtype, "y": dtype, "len": TensorProto.INT32}
        model = graph_of([node], [("x", [6, "n", 5]), ("len", ["n"])], [("y", [6, 1, "n", 8])], weights, types=types)
        request = request_for(model, precision, ("8.9",))
        said = why_not("tensorrt_rtx", VERSION, precision, ("8.9",), operators=node_uses(model))
        if precision == "fp32":
            assert said is None
            tensorrt_rtx.build(request, quiet)
        else:
            assert f"{operator} (node 'cells')" in str(said)
            with pytest.raises(UnsupportedError, match=rf"{operator} \(node 'cells'\) is supported in fp32 only"):
                tensorrt_rtx.build(request, quiet)


def test_operators_whose_output_follows_from_the_data_are_refused_as_the_table_says(
    request_for: RequestFor, graph_of: GraphOf
) -> None:
    import numpy as np

    values = {"m": np.array([5]), "i": np.array([0.5], np.float32), "s": np.array([0.1], np.float32)}
    constants = [numpy_helper.from_array(v, n) for n, v in values.items()]
    suppress = helper.make_node("NonMaxSuppression", ["b", "x", "m", "i", "s"], ["y"], name="nms")
    where = helper.make_node("NonZero", ["x"], ["y"], name="where")
    types = {"y": TensorProto.INT64}
    models = {
        "NonMaxSuppression (node 'nms')": graph_of(
            [suppress], [("b", [1, 10, 4]), ("x", [1, 3, 10])], [("y", ["k", 3])], constants, types=types
        ),
        "NonZero (node 'where')": graph_of([where], [("x", ["n", 4])], [("y", [2, "k"])], types=types),
    }
    for named, model in models.items():
        said = why_not("tensorrt_rtx", VERSION, "fp32", ("8.9",), operators=node_uses(model))
        assert f"cannot run {named}" in str(said)
        with pytest.raises(UnsupportedError, match=re.escape(named)):
            tensorrt_rtx.build(request_for(model, "fp32", ("8.9",)), quiet)


def test_an_input_that_holds_a_shape_is_refused(request_for: RequestFor, graph_of: GraphOf) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = graph_of(nodes, [("x", ["n", 4]), ("shape", [2])], [("y", ["a", "b"])], types={"shape": TensorProto.INT64})
    with pytest.raises(BuildError, match="input 'shape' holds a shape, not data"):
        tensorrt_rtx.build(request_for(model, "fp32", ("8.6",)), quiet)


def test_a_failure_says_the_vendors_reason_and_what_to_do(request_for: RequestFor, operators: Operators) -> None:
    request = request_for(operators("matmul", "bf16"), "bf16", ("7.5",))
    with pytest.raises(BuildError) as caught:
        tensorrt_rtx.build(request, quiet)
    assert f"TensorRT-RTX {VERSION} built no engine for 7.5: Cannot compile for target(s) sm75" in caught.value.message
    assert caught.value.hint == "compute capability 7.5 has no bf16; use fp16 on this target"
    assert "Error Code 1: Myelin" in caught.value.log
    assert list(request.out.iterdir()) == []


def test_an_unknown_capability_is_refused(request_for: RequestFor, operators: Operators) -> None:
    with pytest.raises(BuildError, match=r"does not build for compute capability 8\.7"):
        tensorrt_rtx.build(request_for(operators("conv", "fp16"), "fp16", ("8.7",)), quiet)


def test_every_option_is_taken(request_for: RequestFor, operators: Operators) -> None:
    options: dict[str, object] = {
        "workspace_mib": 64, "tf32": True, "builder_optimization_level": 1, "max_aux_streams": 1, "max_num_tactics": 4,
        "avg_timing_iterations": 2, "tiling_optimization_level": "fast", "profiling_verbosity": "detailed",
        "sparse_weights": True, "strict_nans": True, "weight_streaming": True,
    }  # fmt: skip
    assert options.keys() == tensorrt_rtx.OPTIONS.keys()
    report = tensorrt_rtx.build(request_for(operators("conv", "fp32"), "fp32", ("8.6",), options=options), quiet)
    assert report.details["tf32"] is True


def test_an_option_of_tensorrt_alone_is_refused(request_for: RequestFor, operators: Operators) -> None:
    request = request_for(operators("conv", "fp32"), "fp32", ("8.6",), options={"version_compatible": True})
    with pytest.raises(TargetError, match="unknown option 'version_compatible' of TensorRT-RTX"):
        tensorrt_rtx.build(request, quiet)


def test_tf32_is_off_unless_asked_for() -> None:
    import tensorrt_rtx as trt

    from engineworks.engines.backends._trt_config import configure
    from engineworks.engines.backends._trt_log import logger_of

    builder = trt.Builder(logger_of(trt).vendor)
    for options, wanted in (({}, False), ({"tf32": True}, True)):
        config = builder.create_builder_config()
        assert config.get_flag(trt.BuilderFlag.TF32)  # the vendor's default
        configure(trt, "test", config, options)
        assert config.get_flag(trt.BuilderFlag.TF32) == wanted


def test_without_a_stream_the_engine_is_written_too(
    request_for: RequestFor, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 10.0 has no IStreamWriter."""
    create = _trt._create_builder

    class Old:
        def __init__(self, *arguments: object) -> None:
            self._builder = create(*arguments)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            if name == "build_serialized_network_to_stream":
                raise AttributeError(name)
            return getattr(self._builder, name)

    monkeypatch.setattr(_trt, "_create_builder", Old)
    request = request_for(operators("conv", "fp16"), "fp16", ("8.6",))
    report = tensorrt_rtx.build(request, quiet)
    assert report.details["engine_bytes"] == (request.out / "engine").stat().st_size


def test_a_full_disk_is_told(
    request_for: RequestFor, operators: Operators, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = request_for(operators("conv", "fp16"), "fp16", ("8.6",))
    (request.out / "engine.partial").symlink_to("/dev/full")
    with pytest.raises(BuildError, match="cannot be written: No space left on device"):
        tensorrt_rtx.build(request, quiet)


FLOATS = ("fp32", "fp16", "bf16")
QUANTIZED = ("int8", "int8_weights", "fp8")
QUANTIZED_TOO = (*QUANTIZED, "int4_weights")
CELLS = [
    *((kind, precision) for kind in ("conv", "matmul") for precision in (*FLOATS, *QUANTIZED)),
    ("matmul", "int4_weights"),
]
MORE_CELLS = [
    *(("gemm", precision) for precision in (*FLOATS, *QUANTIZED)),
    *(("deconv", precision) for precision in FLOATS),
]


def check_cell(
    request_for: RequestFor,
    operators: Operators,
    kind: str,
    precision: str,
    capabilities: tuple[str, ...],
    *,
    around: tuple[str, ...] = ("fp32", "fp16"),
) -> None:
    """Whether the engine is built is what the capability table says, with fp32 and with fp16 around quantized nodes."""
    model = operators(kind, precision)
    for other in around if precision in QUANTIZED_TOO else (precision,):
        variant = to_half(model, "float16").model if other == "fp16" != precision else model
        said = refusal_of(variant, {precision, other}, capabilities)
        try:
            tensorrt_rtx.build(request_for(variant, precision, capabilities), quiet)
            failed = ""
        except BuildError as error:
            failed = str(error)
        assert bool(failed) == bool(said), (kind, precision, other, capabilities, said, failed)


def refusal_of(model: onnx.ModelProto, parts: set[str], capabilities: tuple[str, ...]) -> str | None:
    dequantized = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    operators = {n.op_type for n in model.graph.node}
    quantized = {n.op_type for n in model.graph.node if n.input[0] in dequantized}
    said = (
        why_not("tensorrt_rtx", VERSION, part, capabilities, operators=operators, quantized=quantized)
        for part in sorted(parts)
    )
    return next((sentence for sentence in said if sentence), None)


def test_the_capability_table_is_true_where_capabilities_differ(request_for: RequestFor, operators: Operators) -> None:
    for capabilities in (("7.5",), ("8.6",)):
        for kind, precision in CELLS:
            check_cell(request_for, operators, kind, precision, capabilities, around=("fp32",))
    check_cell(request_for, operators, "matmul", "int8", ("7.5",), around=("fp16",))
    check_cell(request_for, operators, "matmul", "fp32", ("7.5", "8.9"))
    check_cell(request_for, operators, "matmul", "fp8", ("8.9", "12.0"))


@pytest.mark.slow
def test_the_capability_table_is_true_in_every_cell(request_for: RequestFor, operators: Operators) -> None:
    named = CAPABILITIES["tensorrt_rtx"].named[-1].capabilities
    for capabilities in [(c,) for c in named] + [("8.0", "8.6", "8.9", "12.0"), ("8.9", "12.0"), ("7.5", "8.9")]:
        for kind, precision in (*CELLS, *MORE_CELLS):
            check_cell(request_for, operators, kind, precision, capabilities)


def test_a_recurrent_network_has_a_matrix_multiplication_too(request_for: RequestFor, graph_of: GraphOf) -> None:
    """LSTM is compiled to one: on 7.5 the table must know."""
    import numpy as np

    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(1, 32, 8)).astype(np.float32), name) for name in ("w", "r")]
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)]
    model = graph_of(nodes, [("x", [5, "n", 8])], [("y", [5, 1, "n", 8])], weights)
    said = why_not("tensorrt_rtx", VERSION, "fp32", ("7.5",), operators={"LSTM"})
    if said is None:
        tensorrt_rtx.build(request_for(model, "fp32", ("7.5",)), quiet)
    else:
        with pytest.raises(BuildError, match="use fp16 on this target"):
            tensorrt_rtx.build(request_for(model, "fp32", ("7.5",)), quiet)


def test_a_build_that_takes_too_long_is_killed(
    request_for: RequestFor, slow_to_build: onnx.ModelProto, build_job: BuildJob
) -> None:
    request = request_for(slow_to_build, "fp32", ("8.6",))
    start = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"a build did not end within 1\.5 s"):
        run_in_child("engineworks.steps.job:main", build_job("tensorrt_rtx", request), time_limit_s=1.5, what="a build")
    assert time.monotonic() - start < 4
    assert not (request.out / "engine").exists()


BUILD = """
import json, sys
from engineworks.host.child import run_in_child
try:
    run_in_child("engineworks.steps.job:main", json.loads(sys.argv[1]), on_line=lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_in_the_middle_of_a_build_ends_it_and_leaves_nothing(
    request_for: RequestFor, slow_to_build: onnx.ModelProto, build_job: BuildJob
) -> None:
    import json

    request = request_for(slow_to_build, "fp32", ("8.6",))
    parent = subprocess.Popen(
        [sys.executable, "-c", BUILD, json.dumps(build_job("tensorrt_rtx", request))],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    said = iter(parent.stdout.readline, "")
    assert any("Compiler backend is used" in line for line in said), "the build ended before its compiler began"
    time.sleep(0.5)  # well inside the compiler
    start = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(5) == 130
    with pytest.raises(ProcessLookupError):  # until nobody is left in its process group
        while time.monotonic() - start < 5:
            os.killpg(parent.pid, 0)
            time.sleep(0.05)
    assert not (request.out / "engine").exists()
