"""recipes/digits.yaml by the bare tools: the same models, engines, comparisons and timings, without store, records,
flows, children, proofs or checks. One process, one thread of work, as a script of one's own would do it.

    python benchmarks/bare_digits.py OUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from polygraphy.backend.onnx import fold_constants

from engineworks.engines.backends.base import RunTimes
from engineworks.measure.latency import Sampling, measure_latency

RECIPES = Path(__file__).parents[1] / "recipes"
TARGETS = {"rtx20": ["SM75"], "a100": ["SM80"], "rtx30": ["SM86"], "rtx40": ["SM89"], "rtx50": ["SM120"],
           "portable": ["SM80", "SM86", "SM89", "SM120"]}  # fmt: skip


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter({"image": images[i : i + 8]} for i in range(0, len(images), 8))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def lower(out: Path) -> dict[str, Path]:
    calibration = np.load(RECIPES / "data/digits_calib.npz")["x"]
    folded = onnx.shape_inference.infer_shapes(fold_constants(onnx.load(RECIPES / "models/digits_cnn.onnx")))
    models = {p: out / f"{p}.onnx" for p in ("fp32", "fp16", "int8")}
    onnx.save(folded, models["fp32"])
    onnx.save(convert_float_to_float16(folded, keep_io_types=True), models["fp16"])
    quantize_static(
        models["fp32"], models["int8"], Reader(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.Entropy,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip
    return models


def build_rtx(models: dict[str, Path], out: Path) -> int:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    built = 0
    for precision, model in models.items():
        for target, names in TARGETS.items():
            if target == "rtx20" and precision != "fp16":
                continue
            builder = trt.Builder(logger)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, logger)
            assert parser.parse_from_file(str(model))
            config = builder.create_builder_config()
            profile = builder.create_optimization_profile()
            profile.set_shape("image", (1, 1, 8, 8), (8, 1, 8, 8), (64, 1, 8, 8))
            config.add_optimization_profile(profile)
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
            plan = builder.build_serialized_network(network, config)
            assert plan is not None
            (out / f"{precision}-{target}.plan").write_bytes(plan)
            built += 1
    return built


def session(model: Path, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def evaluate(s: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    sizes, done = [1, 8, 64], 0
    parts: list[np.ndarray] = []
    while done < len(images):
        size = sizes[len(parts) % 3]
        parts.append(s.run(None, {"image": images[done : done + size]})[0])
        done += size
    return np.concatenate(parts)


def measure(s: ort.InferenceSession, images: np.ndarray) -> float:
    def time_runs(runs: int) -> RunTimes:
        taken = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            s.run(None, {"image": images})
            taken.append((time.perf_counter_ns() - start) / 1e6)
        return RunTimes(tuple(taken))

    return measure_latency(time_runs, len(images), Sampling()).latency_ms_p50


def main(out: Path) -> None:
    models = lower(out)
    test = np.load(RECIPES / "data/digits_test.npz")
    reference = evaluate(session(models["fp32"]), test["x"])
    report: dict[str, object] = {"rtx_engines": build_rtx(models, out)}
    for precision, model in models.items():
        engine = out / f"{precision}-cpu.onnx"
        session(model, engine)
        loaded = session(engine)
        logits = evaluate(loaded, test["x"])
        cosine = float((logits * reference).sum() / np.linalg.norm(logits) / np.linalg.norm(reference))
        report[precision] = {
            "top1": float((logits.argmax(1) == test["y"]).mean()), "cosine": cosine,
            "max_abs": float(np.abs(logits - reference).max()),
            "p50_ms": [measure(loaded, test["x"][:1]), measure(loaded, test["x"][:64])],
        }  # fmt: skip
    (out / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
