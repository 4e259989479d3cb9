"""Weight-only engines of the CPU at ONNX Runtime's accuracy levels: what rounding activations too gains and costs.

    python benchmarks/weight_only.py

One matrix product, 768 × 3072, its weights lowered by us, run three ways: MatMulNBits at level 4 (ONNX Runtime's own:
activations rounded to int8), at level 1 (fp32 activations: our engines), and without the fusion; fp32 beside them.
Prints one JSON line per case: the median time of each way as a ratio to level 1, interleaved, on one thread, and
cosines to the fp32 product, with plain activations and with outliers: one in 64 channels 300 times as large, its
weights 300 times as small.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.lower.quantize import name_nodes, quantize, raise_opset_for

ROWS, INNER, OUTER = (1, 16, 256), 768, 3072
ROUNDS, LEAST_S = 15, 0.02
WAYS = {"level 4": ("4", True), "level 1": ("1", True), "not fused": ("1", False)}


def main() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.05, (INNER, OUTER)).astype(np.float32)
    weight[::64] /= 300
    for precision in ("int8_weights", "int4_weights"):
        sessions = {way: session(lowered(weight, precision), *how) for way, how in WAYS.items()}
        sessions["fp32"] = session(product(weight), "1", True)
        for rows in ROWS:
            x = random.normal(size=(rows, INNER)).astype(np.float32)
            outliers = x.copy()
            outliers[:, ::64] *= 300
            times = by_turns(sessions, x)
            print(json.dumps({
                "precision": precision, "rows": rows,
                "time": {way: round(t / times["level 1"], 2) for way, t in times.items()},
                "cosine": {way: cosine(s, x, weight) for way, s in sessions.items()},
                "cosine_outliers": {way: cosine(s, outliers, weight) for way, s in sessions.items()},
            }))  # fmt: skip


def lowered(weight: NDArray[np.float32], precision: str) -> onnx.ModelProto:
    globs = {precision: ("*",)}
    return quantize(name_nodes(raise_opset_for(product(weight), globs)), None, globs=globs).model


def product(weight: NDArray[np.float32]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", k]) for n, k in (("x", INNER), ("y", OUTER))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def session(model: onnx.ModelProto, level: str, fused: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_turns(sessions: dict[str, Any], x: NDArray[np.float32]) -> dict[str, float]:
    """Median seconds of one run of each session."""
    found: dict[str, list[float]] = {way: [] for way in sessions}
    for _ in range(ROUNDS):
        for way, one in sessions.items():
            runs, start = 0, time.perf_counter()
            while time.perf_counter() - start < LEAST_S:
                one.run(None, {"x": x})
                runs += 1
            found[way].append((time.perf_counter() - start) / runs)
    return {way: statistics.median(times) for way, times in found.items()}


def cosine(one: Any, x: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    got, expected = (a.astype(np.float64).ravel() for a in (one.run(None, {"x": x})[0], x @ weight))
    return round(float(got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)), 5)


if __name__ == "__main__":
    main()
