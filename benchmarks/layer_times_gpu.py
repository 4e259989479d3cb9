"""Where the time of BERT-base and ResNet-50 goes on a GPU, and why a precision is not faster.

    python benchmarks/layer_times_gpu.py [--out FILE] [--only bert] [--folder FOLDER [--build]] [--cpu]

Makes both models from a seed with the shapes of the originals (no file has to travel, no framework is needed), lowers
and builds them (BERT-base fp16, int8, fp8; ResNet-50 fp32, fp16), and writes the times of all layers, what they hold,
and the sentence about each pair of precisions. Engines are measured as in a build, and built with detailed
`profiling_verbosity`, so that the inspector names ONNX nodes. The kernels of each engine are traced by CUPTI too, as
where a runtime's profiler reports nothing. `--build` only builds, beside other work; called again with the same
`--folder`, it goes on from there. `--cpu` tries the script on small models without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engineworks.builds.step import run_step
from engineworks.engines.backends import _trt_layers
from engineworks.errors import EngineworksError
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.host.gpu import first_gpu
from engineworks.host.packages import installed_versions
from engineworks.measure.latency_report import Latency
from engineworks.measure.layers import Layers, by_operator, fused, why_not_faster
from engineworks.plan.plan import plan_recipe
from engineworks.plan.steps import Step
from engineworks.recipe.load import load_recipe
from engineworks.settings import read_settings
from engineworks.steps.job import StepJob
from engineworks.steps.layer_times import time_here, what_to_time
from engineworks.store.shared import open_store

ROOT = Path(__file__).parents[1]
LIBRARIES = ("tensorrt-rtx", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "torch", "cuda-python", "cuda-bindings")

BERT = """\
recipe: bert
model: {{source: {{onnx: bert.onnx}}}}
inputs: {{x: {{dtype: float32, shape: [batch, {length}, {width}]}}}}
outputs: {{y: [batch, {length}, {width}]}}
shapes: {{default: {{batch: [1, 8, 32]}}}}
precisions: [{precisions}]
calibration: {{method: minmax, batch: 4}}
data: {{calibration: {{npz: bert.npz}}, evaluation: {{npz: bert.npz}}}}
accuracy: {{limits: {{fp32: {{cosine: 0.9}}, fp16: {{cosine: 0.9}}, int8: {{cosine: 0.1}}, fp8: {{cosine: 0.1}}}}}}
performance: {{at: {{bulk: {{batch: 32}}, single: {{batch: 1}}}}}}
targets: [{target}]
"""

RESNET = """\
recipe: resnet
model: {{source: {{onnx: resnet.onnx}}}}
inputs: {{x: {{dtype: float32, shape: [batch, 3, {side}, {side}]}}}}
outputs: {{y: [batch, 1000]}}
shapes: {{default: {{batch: [1, 8, 32]}}}}
precisions: [{precisions}]
data: {{evaluation: {{npz: resnet.npz}}}}
accuracy: {{limits: {{fp32: {{cosine: 0.9}}, fp16: {{cosine: 0.9}}}}}}
performance: {{at: {{bulk: {{batch: 32}}, single: {{batch: 1}}}}}}
targets: [{target}]
"""


class Maker:
    """Nodes and random weights of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(20261130)

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.constant(name, self._random.standard_normal(shape).astype(np.float32) * np.float32(scale))

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(self, x: str, name: str, inner: int, outer: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}.w", inner, outer, scale=inner**-0.5)], f"{name}/matmul")
        return self.node("Add", [product, self.weight(f"{name}.b", outer, scale=0.1)], f"{name}/bias")

    def norm(self, x: str, name: str, width: int) -> str:
        scale, shift = (self.constant(f"{name}.{n}", np.full(width, v, np.float32)) for n, v in (("s", 1), ("t", 0)))
        return self.node("LayerNormalization", [x, scale, shift], name, axis=-1)

    def model(self, x: list[Any], y: list[Any], result: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x), ("y", y))]
        graph = helper.make_graph(self.nodes, "g", values[:1], values[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def bert(layers: int, width: int, length: int, heads: int) -> onnx.ModelProto:
    """An encoder: BERT-base is 12 layers of width 768 with 12 heads (Devlin et al. 2019)."""
    made, size = Maker(), width // heads
    split = made.constant("split", np.array([0, length, heads, size]))
    joined = made.constant("joined", np.array([0, length, width]))
    root = made.constant("root", np.float32(size**0.5))
    half, one, two = (made.constant(n, np.float32(v)) for n, v in (("half", 0.5), ("one", 1), ("root2", 2**0.5)))
    x = "x"
    for i in range(layers):
        name = f"layer{i}"
        parts = []
        for n in "qkv":
            rows = made.node("Reshape", [made.linear(x, f"{name}/{n}", width, width), split], f"{name}/{n}/r")
            order = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
            parts.append(made.node("Transpose", [rows], f"{name}/{n}/t", perm=order))
        q, k, v = parts
        scores = made.node("Div", [made.node("MatMul", [q, k], f"{name}/scores"), root], f"{name}/scaled")
        mixed = made.node("MatMul", [made.node("Softmax", [scores], f"{name}/softmax", axis=-1), v], f"{name}/mix")
        back = made.node("Transpose", [mixed], f"{name}/back", perm=[0, 2, 1, 3])
        attended = made.linear(made.node("Reshape", [back, joined], f"{name}/join"), f"{name}/o", width, width)
        x = made.norm(made.node("Add", [x, attended], f"{name}/add1"), f"{name}/norm1", width)
        up = made.linear(x, f"{name}/up", width, 4 * width)
        erf = made.node("Erf", [made.node("Div", [up, two], f"{name}/gelu/div")], f"{name}/gelu/erf")
        bent = made.node("Mul", [up, made.node("Add", [erf, one], f"{name}/gelu/add")], f"{name}/gelu/mul")
        down = made.linear(made.node("Mul", [bent, half], f"{name}/gelu/half"), f"{name}/down", 4 * width, width)
        x = made.norm(made.node("Add", [x, down], f"{name}/add2"), f"{name}/norm2", width)
    return made.model(["batch", length, width], ["batch", length, width], x)


def resnet(blocks: tuple[int, ...], side: int) -> onnx.ModelProto:
    """Bottleneck blocks: ResNet-50 has 3, 4, 6 and 3 of them (He et al. 2016); batch normalization is folded."""
    made = Maker()

    def conv(x: str, name: str, inner: int, outer: int, kernel: int, stride: int = 1) -> str:
        weight = made.weight(f"{name}.w", outer, inner, kernel, kernel, scale=(2 / (inner * kernel**2)) ** 0.5)
        pads = [kernel // 2] * 4
        bias = made.weight(f"{name}.b", outer, scale=0.1)
        return made.node("Conv", [x, weight, bias], name, strides=[stride] * 2, pads=pads)

    x = made.node("Relu", [conv("x", "stem", 3, 64, 7, 2)], "stem/relu")
    x = made.node("MaxPool", [x], "stem/pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inner = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            name, stride = f"stage{stage}/{block}", 2 if stage and not block else 1
            a = made.node("Relu", [conv(x, f"{name}/a", inner, width, 1)], f"{name}/a/relu")
            b = made.node("Relu", [conv(a, f"{name}/b", width, width, 3, stride)], f"{name}/b/relu")
            c = conv(b, f"{name}/c", width, 4 * width, 1)
            short = x if block else conv(x, f"{name}/short", inner, 4 * width, 1, stride)
            x = made.node("Relu", [made.node("Add", [c, short], f"{name}/add")], f"{name}/relu")
            inner = 4 * width
    flat = made.node("Flatten", [made.node("GlobalAveragePool", [x], "pool")], "flat")
    return made.model(["batch", 3, side, side], ["batch", 1000], made.linear(flat, "head", inner, 1000))


def repository(folder: Path, *, cpu: bool) -> None:
    recipes, gpu = folder / "recipes", first_gpu()
    recipes.mkdir(parents=True)
    (folder / ".git").mkdir()
    target, wide = ("cpu" if cpu else "gpu"), not cpu
    lines = ["targets:", "  cpu: {backend: onnxruntime, pool: cpu}"]
    if gpu:
        lines.append(
            f"  gpu: {{backend: tensorrt_rtx, compute_capability: [{gpu.compute_capability}], pool: gpu, "
            "options: {profiling_verbosity: detailed}}"
        )
    (recipes / "_targets.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    layers, width, length, heads = (12, 768, 128, 12) if wide else (2, 64, 16, 4)
    blocks, side = ((3, 4, 6, 3), 224) if wide else ((1, 1), 32)
    onnx.save(bert(layers, width, length, heads), recipes / "bert.onnx")
    onnx.save(resnet(blocks, side), recipes / "resnet.onnx")
    random = np.random.default_rng(1)
    np.savez(recipes / "bert.npz", x=random.standard_normal((32, length, width)).astype(np.float32))
    np.savez(recipes / "resnet.npz", x=random.standard_normal((32, 3, side, side)).astype(np.float32))
    precisions = "fp16, int8, fp8" if wide else "fp32, int8"
    bert_text = BERT.format(length=length, width=width, precisions=precisions, target=target)
    (recipes / "bert.yaml").write_text(bert_text, encoding="utf-8")
    text = RESNET.format(side=side, precisions="fp32, fp16", target=target)
    (recipes / "resnet.yaml").write_text(text, encoding="utf-8")


class Recipe:
    """A planned recipe, whose engines are built, measured and profiled one after the other."""

    def __init__(self, path: Path) -> None:
        self.store = open_store(read_settings())
        self.plan = plan_recipe(load_recipe(path), self.store, FileDigests(None))

    def built(self) -> None:
        """Build all engines."""
        for engine in self.plan.engines:
            try:
                self._run(engine.steps["build"])
            except EngineworksError as error:
                print(f"  {engine.id}: {error.message}", flush=True)

    def measured(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each engine's layers and latencies as a build measures them, and its kernels, by precision. A precision that
        fails is a reason."""
        for refused in self.plan.refused:
            yield refused.id, {"error": refused.message}
        for engine in self.plan.engines:
            start = time.perf_counter()
            try:
                self._run(engine.steps["measure"])
                found = self._found(self.plan.steps[engine.steps["measure"]])
            except Exception:  # noqa: BLE001 - each part survives the failure of another
                yield engine.precision, {"error": traceback.format_exc()[-2000:]}
                continue
            print(f"  {engine.id}: {found['p50_ms']}", flush=True)
            yield engine.precision, {"seconds": round(time.perf_counter() - start, 1), **found}

    def _run(self, key: str) -> None:
        for step in self.plan.needed([key]):
            print(f"{step.id} …", flush=True)
            run_step(step, self.store, default_pool(), echo=print)

    def _found(self, measure: Step) -> dict[str, Any]:
        artifact = self.store.require(measure.key)
        layers, shapes = Layers.read(artifact.path), artifact.read(Latency).shapes
        return {
            "p50_ms": {name: values.latency_ms_p50 for name, values in shapes.items()},
            "layers": layers.to_json(), "total_ms": layers.total_ms, "fused": len(fused(layers)),
            "operators": [vars(operator) for operator in by_operator(layers)],
            "mapped": sum(bool(layer.nodes) for layer in layers.layers), "kernels": self._kernels(measure, layers.runs),
        }  # fmt: skip

    def _kernels(self, measure: Step, runs: int) -> dict[str, Any]:
        inputs = {role: self.store.require(key).path for role, key in measure.inputs.items()}
        with tempfile.TemporaryDirectory() as out, patch.object(_trt_layers, "time_by_profiler", return_value={}):
            job = StepJob(measure.id, measure.params, inputs, measure.unkeyed, Path(out), print)
            kernels = time_here(what_to_time(job, runs))
        longest = sorted(kernels.layers, key=lambda layer: layer.ms, reverse=True)[:10]
        return {
            "source": kernels.source, "kernels": len(kernels.layers), "total_ms": kernels.total_ms,
            "longest": [{"kernel": layer.kernel, "ms": layer.ms, "nodes": list(layer.nodes)} for layer in longest],
        }  # fmt: skip


def messages(found: dict[str, dict[str, Any]]) -> list[str]:
    timed = {name: Layers.from_json(f["layers"]) for name, f in found.items() if "layers" in f}
    return [why_not_faster(a, timed[a], b, timed[b]) for a, b in combinations(timed, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("bert", "resnet"))
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--folder", type=Path, help="where models and engines are made, and kept")
    parser.add_argument("--build", action="store_true", help="build the engines and end")
    arguments = parser.parse_args()
    gpu = first_gpu()
    if gpu is None and not arguments.cpu:
        sys.exit("there is no NVIDIA GPU here; --cpu tries the script")
    report: dict[str, Any] = {
        "date": date.today().isoformat(), "python": platform.python_version(),
        "gpu": gpu.to_json() if gpu else None, "versions": installed_versions(LIBRARIES), "models": {},
    }  # fmt: skip
    out = (arguments.out or ROOT / "benchmarks/results" / f"layers-{'cpu' if arguments.cpu else 'gpu'}.json").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary) / "repository").resolve()
        if not folder.exists():
            repository(folder, cpu=arguments.cpu)
        os.environ["ENGINEWORKS_ARTIFACTS"] = f"{folder}/artifacts"
        os.chdir(folder)
        names = [arguments.only] if arguments.only else ["resnet", "bert"]  # fp32 first: see `_trt_tf32`
        if arguments.build:
            for name in names:
                Recipe(Path(f"recipes/{name}.yaml")).built()
            return
        for name in names:
            model: dict[str, Any] = {"engines": {}, "sentences": []}
            report["models"][name] = model
            try:
                for precision, found in Recipe(Path(f"recipes/{name}.yaml")).measured():
                    model["engines"][precision] = found
                    model["sentences"] = messages(model["engines"])
                    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            except Exception:  # noqa: BLE001 - each part survives the failure of another
                model["error"] = traceback.format_exc()[-2000:]
            print("\n".join(model["sentences"]), flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}", flush=True)


if __name__ == "__main__":
    main()
