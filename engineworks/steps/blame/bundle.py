"""A folder that shows a fault without Engineworks: model.onnx, inputs.npz, expected.npz, run.py and versions.txt."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from engineworks.engines.backends import backend
from engineworks.host.packages import installed_versions
from engineworks.model.onnx_files import MODEL_FILE, save_model
from engineworks.model.ort import EXACT_ACTIVATIONS, EXACT_PRODUCTS
from engineworks.steps.blame.probe import shape_range
from engineworks.steps.blame.search import Found
from engineworks.tensors import InputRange

_COMPARE = """
wrong = False
for name, array in got.items():
    want, array = expected[name].astype(np.float64), array.astype(np.float64)
    finite, error = np.isfinite(want), np.inf
    if array.shape == want.shape and (np.isfinite(array) == finite).all():
        array, want = (np.where(finite, a, 0).reshape(len(a) if a.ndim > 1 else 1, -1) for a in (array, want))
        noise, size = np.linalg.norm(array - want, axis=1), np.linalg.norm(want, axis=1)
        error = (noise / np.maximum(size, max((size**2).mean() ** 0.5, 1e-30))).max()
    wrong |= error > {allowed:g}
    print(f"{{name}}: {{list(array.shape)}}, error of its worst row {{error:.3g}}, right up to {allowed:g}")
sys.exit("the fault shows" if wrong else 0)
"""

_ORT = '''"""{what}

ORT_DISABLE_TELEMETRY=1 python run.py; needs: {needs}
"""
import sys
import numpy as np
import onnxruntime as ort

def load(file, level, save=""):
    options = ort.SessionOptions()
    for entry in {entries}:
        options.add_session_config_entry(*entry)
    options.graph_optimization_level, options.optimized_model_filepath = level, save
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

inputs, expected = dict(np.load("inputs.npz")), dict(np.load("expected.npz"))
levels = ort.GraphOptimizationLevel
{load}
got = {{output.name: value for output, value in zip(session.get_outputs(), session.run(None, inputs))}}'''

_OPTIMIZED = """load("model.onnx", levels.ORT_ENABLE_EXTENDED, "optimized.onnx")
session = load("optimized.onnx", levels.ORT_ENABLE_ALL)"""

_LARGE = ("session.optimized_model_external_initializers_file_name", "optimized.onnx.data")
"""ONNX Runtime writes a model of more than 2 GiB with its weights in another file only."""

_AS_WRITTEN = """session = load("model.onnx", levels.ORT_DISABLE_ALL)"""

_TRT = '''"""{what}

python run.py, on a GPU; needs: {needs}
"""
import sys

import numpy as np
import {module} as trt
from cuda.bindings import runtime as cuda

inputs, expected = dict(np.load("inputs.npz")), dict(np.load("expected.npz"))
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
network = builder.create_network({flags})
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file("model.onnx"):
    sys.exit(f"it cannot be parsed: {{parser.get_error(0)}}")
config = builder.create_builder_config()
config.clear_flag(trt.BuilderFlag.TF32)
{profile}plan = builder.build_serialized_network(network, config)
engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
context, got, places = engine.create_execution_context(), {{}}, {{}}
for name in inputs:
    context.set_input_shape(name, inputs[name].shape)
for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
    dtype, shape = trt.nptype(engine.get_tensor_dtype(name)), tuple(context.get_tensor_shape(name))
    array = np.ascontiguousarray(inputs[name].astype(dtype)) if name in inputs else np.empty(shape, dtype)
    places[name] = cuda.cudaMalloc(max(1, array.nbytes))[1]
    cuda.cudaMemcpy(places[name], array.ctypes.data, array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
    context.set_tensor_address(name, places[name])
    got |= {{name: array}} if name not in inputs else {{}}
context.execute_async_v3(0)
cuda.cudaDeviceSynchronize()
for name, array in got.items():
    cuda.cudaMemcpy(array.ctypes.data, places[name], array.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
'''


_PROFILE = """profile = builder.create_optimization_profile()
for name, (least, best, most) in {ranges}.items():
    profile.set_shape(name, least, best, most)
config.add_optimization_profile(profile)
"""


def write_bundle(found: Found, target: Mapping[str, Any], what: str, allowed: float, out: Path) -> Path:
    """Write the part that an engine gets wrong. allowed: the error of a right engine. Returns the folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_model(found.model(), out / MODEL_FILE)
    np.savez_compressed(out / "inputs.npz", **found.feeds())
    np.savez_compressed(out / "expected.npz", **found.wanted())
    feeds = found.feeds()
    ranges = {name: shape_range(feeds[name].shape, best) for name, best in found.shapes().items()}
    write_script(out, target, what, allowed, ranges=ranges)
    return out


def write_script(
    out: Path, target: Mapping[str, Any], what: str, allowed: float, *, as_written: bool = False,
    ranges: Mapping[str, InputRange] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write run.py and versions.txt. as_written: ONNX Runtime alone, without optimizations, shows the fault. ranges:
    of inputs with dynamic shapes."""
    name = "onnxruntime" if as_written else str(target["backend"])
    versions = {**backend(name).versions(), **installed_versions(("numpy", "onnx"))}
    needs = " ".join(f"{package}=={version}" for package, version in versions.items() if package != "onnx")
    if name == "onnxruntime":
        load = _AS_WRITTEN if as_written else _OPTIMIZED
        data = (out / f"{MODEL_FILE}.data").exists()
        entries = (EXACT_ACTIVATIONS, EXACT_PRODUCTS, *([_LARGE] if data else []))
        text = _ORT.format(what=what, needs=needs, entries=entries, load=load)
    else:
        shapes = {name: (r.min, r.opt, r.max) for name, r in ranges.items()}
        profile = _PROFILE.format(ranges=shapes) if shapes else ""
        flags = 0 if name == "tensorrt_rtx" else "1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)"
        text = _TRT.format(what=what, needs=f"{needs} cuda-python", module=name, flags=flags, profile=profile)
    (out / "run.py").write_text(text + _COMPARE.format(allowed=allowed), encoding="utf-8")
    facts = {**versions, **backend(name).hardware()}
    lines = (f"{key}: {value}\n" for key, value in facts.items())
    (out / "versions.txt").write_text("".join(lines), encoding="utf-8")
