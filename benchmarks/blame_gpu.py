"""Does `blame` find a real fault of a GPU's builder by itself? Known work-rounds are off.

    python benchmarks/blame_gpu.py [--out FILE] [--cpu]

Three models of 30 to 60 nodes, whose int8 products have scales per channel and fp16 around them. TensorRT-RTX 1.6.1
gets their large sums wrong. Each is blamed twice: without work-rounds (ENGINEWORKS_WORKAROUNDS=off), where the engine
alone has to be found wrong at a product, and with them, where nothing may be found. Every bundle is run as anyone would
run it. Writes one JSON with the GPU and the versions. `--cpu` tries the script without a GPU: no fault is to be found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engineworks.host.gpu import first_gpu
from engineworks.host.packages import installed_versions

ROOT = Path(__file__).parents[1]
WIDTH, ROWS = 768, 64
LIBRARIES = ("tensorrt-rtx", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "cuda-python", "cuda-bindings")

RECIPE = """\
recipe: {name}
model: {{source: {{onnx: {name}.onnx}}}}
inputs: {{x: {{dtype: float32, shape: [batch, {width}]}}}}
outputs: {{y: [batch, 16]}}
shapes: {{default: {{batch: [1, 8, 64]}}}}
precisions: [int8]
calibration: {{method: minmax, unquantized: fp16}}
data:
  calibration: {{npz: data.npz}}
  evaluation: {{npz: data.npz}}
accuracy: {{metric: cosine, limits: {{int8: {{cosine: 0.98}}}}}}
targets: [{target}]
"""


def model(blocks: int, *, before: str) -> onnx.ModelProto:
    """x f32[batch, 768] → y f32[batch, 16]: residual blocks with two products each. before: the operator whose results
    the products read."""
    random, nodes, weights = np.random.default_rng(blocks), list[onnx.NodeProto](), list[onnx.TensorProto]()

    def weight(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(kind: str, inputs: list[str], name: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name))
        return name

    x = "x"
    for i in range(blocks):
        spread = np.geomspace(0.1, 10, WIDTH)
        first, second = (random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH) for _ in range(2))
        ones = weight(f"b{i}.scale", np.ones(WIDTH))
        normal = node(before, [x, ones] if before == "LayerNormalization" else [x], f"b{i}/{before.lower()}")
        wide = node("MatMul", [normal, weight(f"b{i}.w", first * spread)], f"b{i}/up")
        bent = node("Tanh", [wide], f"b{i}/bend")
        back = node("MatMul", [bent, weight(f"b{i}.v", second)], f"b{i}/down")
        x = node("Add", [x, back], f"b{i}/add")
    head = weight("head.w", random.standard_normal((WIDTH, 16)) / np.sqrt(WIDTH))
    nodes.append(helper.make_node("MatMul", [x, head], ["y"], name="head"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    "norm": lambda: model(6, before="LayerNormalization"),
    "tanh": lambda: model(6, before="Tanh"),
    "deep": lambda: model(11, before="LayerNormalization"),
}


def repository(folder: Path, target: str) -> None:
    recipes = folder / "recipes"
    recipes.mkdir()
    (folder / ".git").mkdir()
    gpu = first_gpu()
    lines = ["targets:", "  cpu: {backend: onnxruntime, pool: cpu}"]
    if gpu:
        lines.append(f"  gpu: {{backend: tensorrt_rtx, compute_capability: [{gpu.compute_capability}], pool: gpu}}")
    (recipes / "_targets.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = np.random.default_rng(0).uniform(-4, 4, (ROWS, WIDTH)).astype(np.float32)
    np.savez(recipes / "data.npz", x=data)
    for name, make in CASES.items():
        onnx.save(make(), recipes / f"{name}.onnx")
        text = RECIPE.format(name=name, width=WIDTH, target=target)
        (recipes / f"{name}.yaml").write_text(text, encoding="utf-8")


def blamed(folder: Path, engine: str, workarounds: str) -> dict[str, Any]:
    """What the command says, how long it took, and what its bundle says."""
    print(f"{engine}, work-rounds {workarounds} …", flush=True)
    start = time.perf_counter()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environ |= {"ENGINEWORKS_WORKAROUNDS": workarounds, "ENGINEWORKS_ARTIFACTS": f"artifacts-{workarounds}"}
    command = [sys.executable, "-c", "from engineworks.cli import main; main()", "blame", engine, "--json"]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200, check=False)
    seconds = round(time.perf_counter() - start, 1)
    if not done.stdout.startswith("{"):
        return {"seconds": seconds, "exit": done.returncode, "error": (done.stderr or done.stdout)[-2000:]}
    found = json.loads(done.stdout)
    print(f"  {seconds} s, {found['builds']} builds: {found['message']}", flush=True)
    return {"seconds": seconds, "exit": done.returncode, **found, "run.py": bundle(found["bundle"])}


def bundle(folder: str) -> dict[str, Any] | None:
    if not folder:
        return None
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=False)
    print("  " + (done.stdout + done.stderr).strip()[-300:], flush=True)
    script = Path(folder, "run.py").read_text(encoding="utf-8")
    return {"exit": done.returncode, "said": (done.stdout + done.stderr)[-1500:], "lines": len(script.splitlines())}


def parts(folder: Path, target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in CASES:
        for workarounds in ("off", "on"):
            try:
                found = blamed(folder, f"{name}/int8/{target}", workarounds)
            except Exception:  # noqa: BLE001 - each part survives the failure of another
                found = {"error": traceback.format_exc()[-2000:]}
            yield f"{name}, work-rounds {workarounds}", found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    gpu = first_gpu()
    if gpu is None and not arguments.cpu:
        sys.exit("there is no NVIDIA GPU here; --cpu tries the script")
    report: dict[str, Any] = {
        "date": date.today().isoformat(), "python": platform.python_version(),
        "gpu": gpu.to_json() if gpu else None, "versions": installed_versions(LIBRARIES), "parts": {},
    }  # fmt: skip
    out = arguments.out or ROOT / "benchmarks/results" / f"blame-{'gpu' if gpu else 'cpu'}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        repository(Path(folder), "cpu" if arguments.cpu else "gpu")
        for name, found in parts(Path(folder), "cpu" if arguments.cpu else "gpu"):
            report["parts"][name] = found
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}", flush=True)


if __name__ == "__main__":
    main()
