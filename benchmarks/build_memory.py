"""How much memory a build takes, by backend and size of the model: what `builds/memory_guard.py` estimates with.

Every build runs in a fresh child; the figure is the peak of its resident memory. The model is a chain of square
MatMuls, nearly all of it weights. Run: python benchmarks/build_memory.py [--mib 16 128 512] [--backends onnxruntime …]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import EngineworksError
from engineworks.host.child import ChildPool

WIDTH = 2048
CAPABILITIES = {"onnxruntime": [], "tensorrt_rtx": ["8.9"]}
RESULTS = Path(__file__).parent / "results" / "build-memory-cpu.json"


def write_model(path: Path, mib: int, dtype: str) -> float:
    """A model of about `mib` MiB; returns its size."""
    numbers = np.dtype(dtype)
    count = max(1, round(mib * 2**20 / (WIDTH * WIDTH * numbers.itemsize)))
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((random.random((WIDTH, WIDTH), np.float32) / WIDTH).astype(numbers), f"w{i}")
        for i in range(count)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"m{i}") for i in range(count)]
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    ends = [helper.make_tensor_value_info(f"x{i}", kind, ["batch", WIDTH]) for i in (0, count)]
    graph = helper.make_graph(nodes, "chain", [ends[0]], [ends[1]], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path.stat().st_size / 2**20


def measure(name: str, mib: int, dtype: str) -> dict[str, Any]:
    """One build; sizes and peak in MiB."""
    with tempfile.TemporaryDirectory(prefix="engineworks-") as folder, ChildPool() as pool:
        lower, out = Path(folder, "lower"), Path(folder, "out")
        lower.mkdir()
        out.mkdir()
        size = write_model(lower / "model.onnx", mib, dtype)
        target = {"backend": name, "compute_capability": CAPABILITIES[name], "options": {}}
        ends = {"min": [1, WIDTH], "opt": [4, WIDTH], "max": [16, WIDTH]}
        shapes = {"name": "default", "inputs": {"x0": ends}}
        params = {"target": target, "profiles": [shapes], "precision": "fp32" if dtype == "float32" else "fp16"}
        payload = {
            "kind": "build", "id": f"chain/{dtype}/{name}", "params": params, "inputs": {"lower": str(lower)},
            "unkeyed": {}, "out": str(out),
        }  # fmt: skip
        peaks: list[float] = []
        pool.run("engineworks.steps.job:main", payload, fresh=True, on_peak=peaks.append)
    return {"backend": name, "dtype": dtype, "model_mib": round(size, 1), "peak_mib": round(max(peaks))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--backends", nargs="+", default=list(CAPABILITIES))
    given = parser.parse_args()
    rows = []
    for name in given.backends:
        for dtype in ("float32", "float16"):
            for mib in given.mib:
                try:
                    rows.append(measure(name, mib, dtype))
                except EngineworksError as error:
                    rows.append({"backend": name, "dtype": dtype, "model_mib": mib, "error": str(error)})
                print(json.dumps(rows[-1]), flush=True)
    versions = {library: version(library) for library in ("onnx", *(n.replace("_", "-") for n in given.backends))}
    RESULTS.write_text(json.dumps({"versions": versions, "builds": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
