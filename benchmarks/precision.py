"""INT8 side by side: our placement of Q/DQ, ONNX Runtime's quantize_static and NVIDIA ModelOpt's, on the same samples.

    python benchmarks/precision.py [--cases digits,fashion,...] [--methods minmax,entropy] [--evaluation 2000]

Needs the recipes' data (`make fetch`), and for ModelOpt's rows torch, nvidia-modelopt, lief and onnxslim. Every
contender gets the folded fp32 model and the recipe's own calibration samples, per channel and symmetric as TensorRT
wants it, and leaves fp32 around what it quantizes, so that placement and ranges alone differ. Results are outputs of
ONNX Runtime on the CPU with all rewriting off: each node computes what the graph says, on every processor alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from precision_cases import LARGEST_EVALUATION, RECIPES, Arrays, Case, load_case

RESULT = Path(__file__).parent / "results" / "precision-cpu.json"
METHODS = ("minmax", "entropy")
OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def quantize_ours(case: Case, method: str, out: Path, keep: tuple[str, ...] = (), kind: str = "int8") -> None:
    import onnx

    from engineworks.model.calibrate.collect import collect_ranges
    from engineworks.model.lower.quantize import quantize, raise_opset_for, tensors_to_calibrate

    globs = {kind: ("*",)}
    model = raise_opset_for(onnx.load(str(case.model)), globs)
    ranges = None
    if not kind.endswith("_weights"):
        tensors = tensors_to_calibrate(model, keep)
        ranges = collect_ranges(case.model, case.calibration, tensors, method=method)  # type: ignore[arg-type]
    onnx.save(quantize(model, ranges, globs=globs, keep=keep).model, str(out))


def quantize_ours_as_the_recipe_says(case: Case, method: str, out: Path) -> None:
    quantize_ours(case, method, out, case.keep)


class Reader:
    """Calibration samples as ONNX Runtime and ModelOpt ask for them."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.rewind()

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)

    def get_first(self) -> Arrays:
        return next(self._case.calibration())

    def rewind(self) -> None:
        self._batches = self._case.calibration()

    def __iter__(self) -> Iterator[Arrays]:
        return self._case.calibration()


def quantize_by_onnxruntime(case: Case, method: str, out: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    kind = CalibrationMethod[{"minmax": "MinMax", "entropy": "Entropy"}[method]]
    quantize_static(
        str(case.model), str(out), Reader(case), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=kind,
        op_types_to_quantize=OPERATORS,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip


def quantize_by_modelopt(case: Case, method: str, out: Path, unquantized: str = "fp32") -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(case.model), quantize_mode="int8", calibration_data_reader=Reader(case), output_path=str(out),
        calibration_method={"minmax": "max", "entropy": "entropy"}[method], calibration_eps=["cpu"],
        high_precision_dtype=unquantized, log_level="ERROR",
    )  # fmt: skip


def quantize_ours_to(kind: str) -> Callable[[Case, str, Path], None]:
    return lambda case, method, out: quantize_ours(case, method, out, kind=kind)


OTHER_FORMATS = {f"engineworks {kind}": quantize_ours_to(kind) for kind in ("fp8", "int8_weights", "int4_weights")}
"""Once each: the method of calibration matters to int8 alone."""

CONTENDERS: Mapping[str, Callable[[Case, str, Path], None]] = {
    "engineworks": quantize_ours,
    "engineworks, recipe's keep": quantize_ours_as_the_recipe_says,
    "onnxruntime": quantize_by_onnxruntime,
    "modelopt": quantize_by_modelopt,
    **OTHER_FORMATS,
}


def outputs_of(model: Path, batches: Iterator[Arrays]) -> Arrays:
    """All outputs, samples stacked; ONNX Runtime runs the graph as it is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    parts = [session.run(names, batch) for batch in batches]
    return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}


def values(case: Case, model: Path, reference: Arrays) -> dict[str, Any]:
    """Accuracy against labels and against the fp32 outputs, and the size of the file."""
    import onnx

    outputs = outputs_of(model, case.evaluation())
    name, exact = next(iter(reference.items()))
    found, wanted = outputs[name].astype(np.float64), exact.astype(np.float64)
    error = float(np.square(found - wanted).sum())
    graph = onnx.load(str(model), load_external_data=False).graph
    dequantized = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    return {
        "metric": case.metric(outputs) if case.metric else float((found.argmax(1) == wanted.argmax(1)).mean()),
        "cosine": float((found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)),
        "sqnr_db": float(10 * np.log10(np.square(wanted).sum() / error)) if error else None,
        "samples_judged": len(wanted),
        "bytes": model.stat().st_size,
        "quantized": sum(n.op_type in OPERATORS and bool(dequantized & set(n.input)) for n in graph.node),
        "quantizable": sum(n.op_type in OPERATORS for n in graph.node),
    }


def run_case(name: str, methods: list[str], contenders: list[str], folder: Path, largest: int) -> dict[str, Any]:
    case = load_case(name, folder, largest)
    reference = outputs_of(case.model, case.evaluation())
    fp32 = values(case, case.model, reference)
    print(f"{name}: fp32 {case.metric_name} {fp32['metric']:.4f}, {fp32['bytes'] / 2**20:.1f} MiB", flush=True)
    rows: dict[str, Any] = {}
    for method in methods:
        for contender in contenders:
            if (contender == "modelopt" and not has_modelopt()) or (contender.endswith("keep") and not case.keep):
                continue
            if contender in OTHER_FORMATS and method != methods[0]:
                continue
            out = folder / f"{name}-{method}-{contender.split(',')[0]}-{len(rows)}-{os.getpid()}.onnx"
            started = time.perf_counter()
            quantize_in_a_child(name, method, contender, out, folder)
            found = {**values(case, out, reference), "seconds": round(time.perf_counter() - started, 1)}
            rows[f"{contender} {method}"] = found
            print(
                f"  {method:8} {contender:27} {case.metric_name} {found['metric']:.4f}, cosine {found['cosine']:.5f}, "
                f"{found['bytes'] / 2**20:.2f} MiB, {found['quantized']} of {found['quantizable']} nodes, "
                f"{found['seconds']:.0f} s",
                flush=True,
            )
    return {"metric": case.metric_name, "samples": case.samples, "fp32": fp32, "int8": rows}


def quantize_in_a_child(*arguments: str | Path) -> None:
    """Each in a process of its own: ModelOpt patches ONNX Runtime's calibrators where it runs."""
    command = [sys.executable, __file__, "--quantize", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments[:3]))} failed:\n{done.stderr[-2000:]}")


def has_modelopt() -> bool:
    return importlib.util.find_spec("modelopt") is not None


def versions() -> dict[str, str]:
    found = {}
    for package in ("onnxruntime", "onnx", "numpy", "nvidia-modelopt", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> int:
    if sys.argv[1:2] == ["--quantize"]:
        name, method, contender, out, kept = sys.argv[2:]
        CONTENDERS[contender](load_case(name, Path(kept)), method, Path(out))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default=",".join((*RECIPES, "resnet50")))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--contenders", default="|".join(CONTENDERS), help="names with | between them")
    parser.add_argument("--evaluation", type=int, default=LARGEST_EVALUATION, help="samples that are judged, at most")
    parser.add_argument("--folder", type=Path, help="keep the models here; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.cases.split(","):
            found = run_case(
                name, options.methods.split(","), options.contenders.split("|"), folder, options.evaluation
            )
            record(options.out, name, found)
    return 0


def record(path: Path, name: str, found: dict[str, Any]) -> None:
    """Add the rows of a case to the file; rows that were measured before and not now stay."""
    document = json.loads(path.read_text()) if path.is_file() else {"cases": {}}
    before = document["cases"].get(name, {}).get("int8", {})
    document["cases"][name] = {**found, "int8": {**before, **found["int8"]}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions(), "cases": document["cases"]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
