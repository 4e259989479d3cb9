"""Calibration side by side with ONNX Runtime's own calibrator, on a ResNet-50 with random weights.

    python benchmarks/calibration.py [--samples 512] [--onnxruntime-samples 48] [--batch 1] [--rounds 5]

Every run is a process of its own: same model, same images, same tensors (inputs and outputs of Conv and Gemm), same
threads (one per core). Peak memory is the process's high-water mark, imports and loading included, ours with all
samples and with an eighth of them. Time per sample is that of collecting and of the final thresholds, without loading:
both contenders with as many samples, one after the other, who is first changing from round to round; the median of the
rounds' ratios counts, because a host's speed drifts by more than they differ. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "calibration-cpu.json"
FLAT = 1.08
"""Largest allowed ratio of our peak with all samples to that with an eighth of them: the holes between two trims of the
heap come to some 5 % of it, however many samples there are."""

KINDS = {
    "minmax": ("MinMax", {}), "moving_average": ("MinMax", {"moving_average": True}), "entropy": ("Entropy", {}),
    "mse": ("Entropy", {}), "percentile": ("Percentile", {}),
}  # fmt: skip
"""ONNX Runtime's calibrator for each method, and its options; it has none for the least squared error, which is held
against its other search in a histogram."""

TARGETS = {  # largest allowed ratio of ours to ONNX Runtime's
    method: {
        "peak_memory": 1.2 if kind == "MinMax" else 0.35,
        "seconds_per_sample": 1.0,
        "peak_memory_of_8_times_the_samples": FLAT,
    }
    for method, (kind, _) in KINDS.items()
}


class ResNet50:
    """The graph as torchvision exports it (batch normalization folded into the convolutions), He-initialized."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        tensor = self._relu(self._conv("image", 3, 64, 7, 2, "stem"))
        tensor = self._node("MaxPool", [tensor], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = 64
        for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                tensor = self._bottleneck(tensor, channels, width, stride, f"stage{stage}.{block}")
                channels = 4 * width
        tensor = self._node("Flatten", [self._node("GlobalAveragePool", [tensor], "average")], "features")
        weight = self._weight("head.weight", (1000, channels), 1 / channels)
        self._node("Gemm", [tensor, weight], "logits", transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])
        graph = helper.make_graph(self._nodes, "resnet50", [image], [logits], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    def _bottleneck(self, tensor: str, channels: int, width: int, stride: int, name: str) -> str:
        inner = self._relu(self._conv(tensor, channels, width, 1, 1, f"{name}.reduce"))
        inner = self._relu(self._conv(inner, width, width, 3, stride, f"{name}.middle"))
        inner = self._conv(inner, width, 4 * width, 1, 1, f"{name}.expand", gain=0.5)
        if channels != 4 * width:
            tensor = self._conv(tensor, channels, 4 * width, 1, stride, f"{name}.shortcut", gain=1.0)
        return self._relu(self._node("Add", [inner, tensor], f"{name}.add"))

    def _conv(self, tensor: str, inputs: int, outputs: int, size: int, stride: int, name: str, gain: float = 2) -> str:
        weight = self._weight(f"{name}.weight", (outputs, inputs, size, size), gain / (inputs * size * size))
        bias = self._weight(f"{name}.bias", (outputs,), 0.01)
        return self._node("Conv", [tensor, weight, bias], name, strides=[stride] * 2, pads=[size // 2] * 4)

    def _relu(self, tensor: str) -> str:
        return self._node("Relu", [tensor], f"{tensor}.relu")

    def _weight(self, name: str, shape: tuple[int, ...], variance: float) -> str:
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(variance**0.5)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output


def images(samples: int, batch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Batches of float32 images [batch, 3, 224, 224] with the 1/f spectrum of photographs, of varying contrast."""
    random = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224)[None, :])
    spectrum = np.fft.rfft2(random.standard_normal((8, 3, 224, 224))) / np.maximum(frequency, 1 / 224)
    pool = np.fft.irfft2(spectrum).astype(np.float32)
    pool /= pool.std(axis=(1, 2, 3), keepdims=True)
    for _ in range(0, samples, batch):
        contrast = random.uniform(0.3, 1.5, (batch, 1, 1, 1)).astype(np.float32)
        yield {"image": pool[random.integers(0, len(pool), batch)] * contrast}


class Clock:
    """Wall and processor seconds of loading and of collecting; the latter also where other work slows this one."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def loaded(self) -> None:
        self._loaded, self._cpu = time.perf_counter(), time.process_time()

    def done(self, samples: int) -> dict[str, float]:
        return {
            "load_seconds": self._loaded - self._started,
            "seconds_per_sample": (time.perf_counter() - self._loaded) / samples,
            "cpu_seconds_per_sample": (time.process_time() - self._cpu) / samples,
        }


def run_engineworks(model: Path, method: str, samples: int, batch: int, tensors: list[str]) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    from engineworks.model.calibrate.collect import collect_ranges

    clock = Clock()

    def batches() -> Iterator[dict[str, NDArray[np.float32]]]:
        clock.loaded()
        return images(samples, batch)

    collect_ranges(model, batches, tensors, method=method, samples=samples)  # type: ignore[arg-type]
    return clock.done(samples)


def run_onnxruntime(model: Path, method: str, samples: int, batch: int, tensors: list[str]) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = images(samples, batch)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._batches, None)

    clock = Clock()
    kind, extra = KINDS[method]
    calibrator = create_calibrator(
        model, ["Conv", "Gemm", "MatMul"], str(model.with_name("augmented.onnx")), CalibrationMethod[kind],
        extra_options={"symmetric": True, **extra},
    )  # fmt: skip
    clock.loaded()
    calibrator.collect_data(Reader())
    found = calibrator.compute_data()
    assert set(found.keys()) == set(tensors), "the contenders would not calibrate the same tensors"
    return clock.done(samples)


def peak_memory_mib() -> float:
    """High-water mark of this process. Not ru_maxrss on Linux, which starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


CONTENDERS = {"engineworks": run_engineworks, "onnxruntime": run_onnxruntime}


def run_child(arguments: list[str]) -> None:
    """One contender in this process: print its numbers as JSON on the last line."""
    contender, model, method, samples, batch, tensors = arguments
    found = CONTENDERS[contender](Path(model), method, int(samples), int(batch), json.loads(tensors))
    print(json.dumps({**found, "peak_memory_mib": peak_memory_mib(), "samples": int(samples)}))


def measure(contender: str, model: Path, method: str, samples: int, batch: int, tensors: list[str]) -> dict[str, float]:
    """Numbers of a contender in a new process."""
    arguments = (contender, model, method, samples, batch, json.dumps(tensors))
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(model: Path, method: str, tensors: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Both contenders, and the ratios of their numbers."""
    few = options.onnxruntime_samples
    ours = measure("engineworks", model, method, options.samples, options.batch, tensors)
    eighth = measure("engineworks", model, method, max(options.samples // 8, 1), options.batch, tensors)
    rounds: list[dict[str, dict[str, float]]] = []
    for turn in range(options.rounds):
        order = sorted(CONTENDERS, reverse=bool(turn % 2))
        rounds.append({name: measure(name, model, method, few, options.batch, tensors) for name in order})
    theirs = {key: statistics.median(r["onnxruntime"][key] for r in rounds) for key in rounds[0]["onnxruntime"]}
    same = {key: statistics.median(r["engineworks"][key] for r in rounds) for key in rounds[0]["engineworks"]}
    ratios = {
        "peak_memory": ours["peak_memory_mib"] / theirs["peak_memory_mib"],
        **{
            name: statistics.median(r["engineworks"][name] / r["onnxruntime"][name] for r in rounds)
            for name in ("seconds_per_sample", "cpu_seconds_per_sample")
        },
        "peak_memory_of_8_times_the_samples": ours["peak_memory_mib"] / eighth["peak_memory_mib"],
    }
    found = {"onnxruntime": theirs, "engineworks_same": same, "engineworks_few": eighth, "engineworks": ours}
    print_method(method, found, ratios)
    return {**found, "ratios": ratios, "targets": TARGETS[method]}


def print_method(method: str, found: dict[str, dict[str, float]], ratios: dict[str, float]) -> None:
    for name, run in found.items():
        print(
            f"{method:14} {name:16} {run['samples']:5.0f} samples {run['peak_memory_mib']:6.0f} MiB peak, per sample "
            f"{1000 * run['seconds_per_sample']:6.1f} ms, {1000 * run['cpu_seconds_per_sample']:6.1f} ms of CPU"
        )
    for name, ratio in ratios.items():
        target = TARGETS[method].get(name)
        verdict = f" (at most {target:.2f}: {'met' if ratio <= target else 'MISSED'})" if target else ""
        print(f"{method:14} ratio of {name}: {ratio:.2f}{verdict}", flush=True)


def describe_machine() -> dict[str, object]:
    packages = ("onnxruntime", "onnx", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor_name(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--onnxruntime-samples", type=int, default=48)
    parser.add_argument("--methods", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = ResNet50().build()
        path = Path(folder) / "resnet50.onnx"
        onnx.save(model, str(path))
        counted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        tensors = list(dict.fromkeys(name for node in counted for name in (node.input[0], node.output[0])))
        del model
        results = {method: compare(path, method, tensors, options) for method in options.methods}
    settings = {"batch": options.batch, "rounds": options.rounds, "tensors": len(tensors)}
    record = {"machine": describe_machine(), "settings": settings, "results": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    met = all(r["ratios"][name] <= target for r in results.values() for name, target in r["targets"].items())
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
