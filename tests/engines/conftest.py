"""Tiny networks of one kind of operator each, in every precision, with real weights from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends.base import BuildRequest
from engineworks.tensors import InputRange, Profile

FLOATS = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
SHAPES: dict[str, tuple[list[Any], list[Any], tuple[int, ...]]] = {
    "conv": (["n", 16, 8, 8], ["n", 32, 8, 8], (32, 16, 3, 3)),
    "deconv": (["n", 16, 8, 8], ["n", 32, 10, 10], (16, 32, 3, 3)),
    "matmul": (["n", 4, 128], ["n", 4, 64], (128, 64)),
    "gemm": (["n", 128], ["n", 64], (128, 64)),
}
NODES = {"conv": "Conv", "deconv": "ConvTranspose", "matmul": "MatMul", "gemm": "Gemm"}


def one_operator(kind: str, precision: str) -> onnx.ModelProto:
    """x f32 → one operator in the precision, fp32 around it → y f32; the node is called like its kind."""
    x, y, shape = SHAPES[kind]
    weights = np.random.default_rng(0).normal(0, 0.2, shape).astype(np.float32)
    dtype, array_dtype = FLOATS.get(precision, FLOATS["fp32"])
    nodes = [helper.make_node("Cast", ["x"], ["x_cast"], to=dtype)]
    initializers = []
    data = "x_cast"
    if precision in FLOATS:
        initializers.append(numpy_helper.from_array(weights.astype(array_dtype), "w"))
    else:
        more, initializers = _weights_quantized(weights, precision, per_channel_axis=0 if kind == "conv" else 1)
        nodes += more
        if precision in ("int8", "fp8"):
            nodes += [
                helper.make_node("QuantizeLinear", [data, "x_scale", "x_zero"], ["xq"]),
                helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
            ]
            zero_type = TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT8E4M3FN
            initializers += [
                helper.make_tensor("x_scale", TensorProto.FLOAT, [], [0.03]),
                helper.make_tensor("x_zero", zero_type, [], [0]),
            ]
            data = "xd"
    pads = {"pads": [1] * 4} if kind == "conv" else {}
    nodes += [
        helper.make_node(NODES[kind], [data, "w"], ["y_cast"], name=kind, **pads),
        helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT),
    ]
    return model_of(nodes, [("x", x)], [("y", y)], initializers)


def _weights_quantized(
    weights: np.ndarray[Any, Any], precision: str, per_channel_axis: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    if precision == "fp8":
        return (
            [helper.make_node("DequantizeLinear", ["wq", "w_scale"], ["w"])],
            [
                numpy_helper.from_array(weights.astype(ml_dtypes.float8_e4m3fn), "wq"),
                helper.make_tensor("w_scale", TensorProto.FLOAT, [], [1.0]),
            ],
        )
    if precision == "int4_weights":
        values = np.clip(np.round(weights * 10), -8, 7).astype(int).flatten().tolist()
        scales = np.full((weights.shape[0] // 64, weights.shape[1]), 0.1, np.float32)
        return (
            [helper.make_node("DequantizeLinear", ["wq", "w_scale"], ["w"], axis=0, block_size=64)],
            [
                helper.make_tensor("wq", TensorProto.INT4, weights.shape, values),
                numpy_helper.from_array(scales, "w_scale"),
            ],
        )
    scales = np.full(weights.shape[per_channel_axis], np.abs(weights).max() / 127, np.float32)
    return (
        [helper.make_node("DequantizeLinear", ["wq", "w_scale"], ["w"], axis=per_channel_axis)],
        [
            numpy_helper.from_array(np.round(weights / scales[0]).astype(np.int8), "wq"),
            numpy_helper.from_array(scales, "w_scale"),
        ],
    )


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list[Any]]],
    outputs: list[tuple[str, list[Any]]],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    types: dict[str, int] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model of opset 21, IR 10; float32 where `types` says nothing else."""

    def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], initializers or [])
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def many_convolutions(count: int) -> onnx.ModelProto:
    """A chain that takes TensorRT-RTX about 10 ms a layer to build."""
    random = np.random.default_rng(0)
    nodes, initializers, before, channels = [], [], "x", 16
    for i in range(count):
        out = 16 + 8 * (i % 7)
        weights = random.normal(0, 0.1, (out, channels, 3, 3)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weights, f"w{i}"))
        nodes.append(helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        before, channels = f"r{i}", out
    nodes.append(helper.make_node("Identity", [before], ["y"]))
    return model_of(nodes, [("x", ["n", 16, 16, 16])], [("y", ["n", channels, 16, 16])], initializers)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model under a folder of its own."""
    count: Iterator[int] = iter(range(1_000_000))

    def save_model(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        folder = tmp_path / f"model{next(count)}"
        folder.mkdir()
        onnx.save(model, str(folder / name))
        return folder / name

    return save_model


@pytest.fixture
def request_for(tmp_path: Path, save: Callable[..., Path]) -> Callable[..., BuildRequest]:
    """A request to build a model whose only dynamic dimension is 'n', into a new folder."""
    count: Iterator[int] = iter(range(1_000_000))

    def make(
        model: onnx.ModelProto | Path,
        precision: str = "fp32",
        capabilities: tuple[str, ...] = (),
        *,
        profiles: tuple[Profile, ...] | None = None,
        options: dict[str, object] | None = None,
    ) -> BuildRequest:
        path = model if isinstance(model, Path) else save(model)
        if profiles is None:
            graph = onnx.load(str(path), load_external_data=False).graph
            shapes = {i.name: [d.dim_value or None for d in i.type.tensor_type.shape.dim] for i in graph.input}
            ranges = {
                name: InputRange(*(tuple(d or length for d in shape) for length in (1, 4, 8)))
                for name, shape in shapes.items()
            }
            profiles = (Profile("default", ranges),)
        out = tmp_path / f"out{next(count)}"
        out.mkdir()
        return BuildRequest(path, out, precision, profiles, capabilities, options or {})

    return make


@pytest.fixture
def operators() -> Callable[[str, str], onnx.ModelProto]:
    return one_operator


@pytest.fixture
def graph_of() -> Callable[..., onnx.ModelProto]:
    return model_of


@pytest.fixture
def slow_to_build() -> onnx.ModelProto:
    return many_convolutions(800)


@pytest.fixture
def build_job() -> Callable[[str, BuildRequest], dict[str, Any]]:
    """A request as the job of a build step, the way a plan's step is run in a child."""

    def job(backend: str, request: BuildRequest) -> dict[str, Any]:
        (request.out / "lowered").mkdir()
        (request.out / "lowered" / "model.onnx").symlink_to(request.model)
        target = {
            "backend": backend,
            "compute_capability": list(request.compute_capabilities),
            "options": dict(request.options),
        }
        params = {"precision": request.precision, "target": target, "profiles": [p.to_json() for p in request.profiles]}
        inputs = {"lower": str(request.out / "lowered")}
        return {
            "kind": "build",
            "id": "a build",
            "params": params,
            "inputs": inputs,
            "unkeyed": {},
            "out": str(request.out),
        }

    return job


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """TensorRT-RTX's tests on a GPU go first: CUDA reads NVIDIA_TF32_OVERRIDE once per process, on its first use."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/engines/test_trt_gpu.py"))
