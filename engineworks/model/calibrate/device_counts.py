"""Extremes and histograms of tensors on ONNX Runtime's device: two small ONNX graphs, run by the same provider.

On an H100 a tensor of 3 million values took 0.3 to 0.5 ms. Copying it to the host took 2 ms, and counting it there 15
ms. There is no custom kernel and nothing to compile. The CPU provider runs the same graphs, so that tests compare them
with `BinCounter`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.host.lazy import onnx, ort
from engineworks.model.calibrate.histograms import BLOCK
from engineworks.model.ort import exact_options

ROWS = 1024
"""Number of histograms filled in parallel and then added. With one, atomic additions of equal values (the zeros of a
ReLU) wait for each other, and 3 million take half a minute."""

COUNTED: Mapping[str, str] = {"tensor(float)": "float32", "tensor(float16)": "float16"}
"""Types that the graphs take, by their ONNX Runtime and numpy names; others are counted on the host."""

_OPSET, _IR_VERSION = 18, 9


class DeviceCounter:
    """Sessions of the graphs, one for each type, opened when needed. device: as in ONNX Runtime, "cuda"."""

    def __init__(self, bins: int, providers: Sequence[Any], device: str) -> None:
        self._bins, self._providers, self._device = bins, list(providers), device
        self._sessions: dict[tuple[str, str], ort.InferenceSession] = {}

    def extremes(self, tensor: ort.OrtValue, dtype: str) -> tuple[float, float]:
        """Return the smallest and largest value of a tensor [any shape]; NaN in both if one is NaN."""
        low, high, zero = (float(scalar) for scalar in self._run("extremes", dtype, tensor, {}))
        if math.isnan(zero) and math.isfinite(low) and math.isfinite(high):
            return math.nan, math.nan
        return low, high

    def count(self, tensor: ort.OrtValue, dtype: str, size: int, exponent: int, every: int = 1) -> NDArray[np.int64]:
        """Count as `BinCounter.count` does: int64[bins] of the tensor's `size` values, or of one block of `BLOCK` in
        `every`."""
        block = 1 if every == 1 else BLOCK
        blocks = size // block
        padding = -(-(-blocks // every) * block) % ROWS
        arrays = {
            "factor": np.float32(math.ldexp(self._bins, -exponent)),
            "to": np.array([blocks * block], np.int64),
            "blocks": np.array([-1, block], np.int64),
            "every": np.array([every], np.int64),
            "padding": np.array([0, padding], np.int64),
        }
        counts: NDArray[np.int64] = self._run("counts", dtype, tensor, arrays)[0].astype(np.int64)
        counts[0] -= padding  # zeros that fill the last row
        return counts

    def _session(self, kind: str, dtype: str) -> ort.InferenceSession:
        if (kind, dtype) not in self._sessions:
            graph = _extremes(dtype) if kind == "extremes" else _counts(dtype, self._bins)
            options = exact_options()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            made = ort.InferenceSession(graph.SerializeToString(), options, providers=self._providers)
            self._sessions[kind, dtype] = made
        return self._sessions[kind, dtype]

    def _run(self, kind: str, dtype: str, tensor: ort.OrtValue, arrays: Mapping[str, Any]) -> list[NDArray[Any]]:
        session = self._session(kind, dtype)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", tensor)
        for name, array in arrays.items():
            binding.bind_cpu_input(name, np.asarray(array))
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        results: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return results


def _extremes(dtype: str) -> onnx.ModelProto:
    """Make the graph x → least, most: scalars; and the sum of 0 · x, which is NaN if a value is not finite."""
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
        make("ReduceMin", ["f"], ["least"], keepdims=0),
        make("ReduceMax", ["f"], ["most"], keepdims=0),
        make("Mul", ["f", "zero"], ["nothing"]),
        make("ReduceSum", ["nothing"], ["finite"], keepdims=0),
    ]
    constants = {"zero": np.array(0, np.float32)}
    return _model(nodes, {"x": dtype}, {"least": "float32", "most": "float32", "finite": "float32"}, constants)


def _counts(dtype: str, bins: int) -> onnx.ModelProto:
    """Make the graph x; to, every i64[1]; blocks, padding i64[2]; factor f32[] → f64[bins]: how many |x| · factor round
    down to each bin.

    Sums of a row are exact in fp32 up to 2^24, and a row holds one value in 1024.
    """
    make = onnx.helper.make_node
    nodes = [
        make("Reshape", ["x", "flat"], ["all"]),
        make("Slice", ["all", "from", "to"], ["whole"]),
        make("Reshape", ["whole", "blocks"], ["lines"]),
        make("Slice", ["lines", "from", "end", "axis", "every"], ["some"]),
        make("Reshape", ["some", "flat"], ["counted"]),
        make("Cast", ["counted"], ["f"], to=onnx.TensorProto.FLOAT),
        make("Pad", ["f", "padding"], ["padded"]),
        make("Reshape", ["padded", "rows"], ["table"]),
        make("Mul", ["table", "factor"], ["scaled"]),
        make("Abs", ["scaled"], ["magnitudes"]),
        make("Cast", ["magnitudes"], ["bins"], to=onnx.TensorProto.INT64),
        make("Shape", ["bins"], ["shape"]),
        make("Expand", ["one", "shape"], ["ones"]),
        make("ConstantOfShape", ["tables"], ["empty"]),
        make("ScatterElements", ["empty", "bins", "ones"], ["filled"], axis=1, reduction="add"),
        make("Cast", ["filled"], ["exact"], to=onnx.TensorProto.DOUBLE),
        make("ReduceSum", ["exact", "axis"], ["counts"], keepdims=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "flat": np.array([-1], np.int64),
        "from": np.array([0], np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "axis": np.array([0], np.int64),
        "rows": np.array([ROWS, -1], np.int64),
        "one": np.ones((1, 1), np.float32),
        "tables": np.array([ROWS, bins], np.int64),
    }
    inputs = {"x": dtype, "factor": "float32"} | dict.fromkeys(("to", "blocks", "every", "padding"), "int64")
    return _model(nodes, inputs, {"counts": "float64"}, constants)


_RANKS = {"factor": 0, "to": 1, "blocks": 1, "every": 1, "padding": 1}


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    constants: Mapping[str, NDArray[Any]],
) -> onnx.ModelProto:
    def value(name: str, dtype: str) -> onnx.ValueInfoProto:
        shape = [None] * _RANKS[name] if name in _RANKS else None
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    stored = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    taken, given = ([value(name, dtype) for name, dtype in tensors.items()] for tensors in (inputs, outputs))
    graph = onnx.helper.make_graph(list(nodes), "counts", taken, given, stored)
    opset = onnx.helper.make_opsetid("", _OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
