"""What `gpu.py` times side by side: our engines, and bare PyTorch and ONNX Runtime on the same model and samples.

Every candidate is timed alike: inputs and outputs stay where it wants them, each run is awaited, the host's clock goes
around launch and wait. Nothing of ours is in the others' loops.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends.base import RunTimes, Serving
from engineworks.engines.engine_session import load_engine

Arrays = Mapping[str, np.ndarray]
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass
class Candidate:
    """time_runs: run so many times → the times. first: milliseconds of loading and of the first run."""

    name: str
    outputs: dict[str, np.ndarray]
    time_runs: Callable[[int], RunTimes]
    close: Callable[[], None]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def engine(name: str, folder: Path, target: Mapping[str, Any], feeds: Arrays, *, graphs: bool) -> Candidate:
    """Our stored engine, by the library's own session."""
    session = load_engine(folder, target, serving=Serving(cuda_graphs=graphs))
    outputs = session.run(feeds)

    def runs(n: int) -> RunTimes:
        return session.time_runs(feeds, n)

    runs(1)  # a CUDA graph is captured now, if it can be
    return Candidate(name, outputs, runs, session.close, tuple(session.notes), dict(session.facts))


def pytorch(name: str, factory: str, feeds: Arrays, *, device: str, half: bool) -> Candidate:
    """The recipe's own module, called eagerly, PyTorch's settings as they come, but for TF32: it is off."""
    import torch

    if str(RECIPES) not in sys.path:
        sys.path.insert(0, str(RECIPES))
    module_name, function = factory.split(":")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = getattr(importlib.import_module(module_name), function)().to(device)
    tensors = {n: torch.from_numpy(a).to(device) for n, a in feeds.items()}
    if half:
        model = model.half()
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    by_name = len(tensors) > 1

    def once() -> Any:
        with torch.inference_mode():
            return model(**tensors) if by_name else model(*tensors.values())

    result = once()
    logits = result.logits if hasattr(result, "logits") else result
    facts = {"torch": torch.__version__, "tf32": False}
    return Candidate(
        name, {"logits": logits.float().cpu().numpy()}, lambda n: _timed(once, wait, n), lambda: None, facts=facts
    )


def onnxruntime(name: str, model: Path, feeds: Arrays, *, device: str) -> Candidate:
    """The same lowered ONNX file in plain ONNX Runtime, its settings as they come; on a GPU with bound memory."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if device == "cpu":
        options.intra_op_num_threads = 1
    settings = {"use_tf32": "0"} if device == "cuda" else {}
    session = ort.InferenceSession(str(model), options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime has no {provider} here")
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    once = _bound(session, names, feeds) if device == "cuda" else lambda: session.run(names, dict(feeds))
    facts = {"onnxruntime": ort.__version__, "provider": provider}
    return Candidate(name, outputs, lambda n: _timed(once, lambda: None, n), lambda: None, facts=facts)


def _bound(session: Any, names: list[str], feeds: Arrays) -> Callable[[], None]:
    import onnxruntime as ort

    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for name in names:
        binding.bind_output(name, "cuda", 0)
    session.run_with_iobinding(binding)
    values = binding.get_outputs()
    binding.clear_binding_outputs()
    for name, value in zip(names, values, strict=True):
        binding.bind_ortvalue_output(name, value)

    def once() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return once


def independent_gpu(name: str, engine_file: Path, module: str, feeds: Arrays, *, graphs: bool) -> Candidate:
    """The same engine by the vendor's Python alone; PyTorch gives memory, stream and events. None of our code runs."""
    import torch

    trt = importlib.import_module(module)
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)  # an engine runs under the switch of its build only
    os.environ |= json.loads((engine_file.parent / "engine.json").read_text())["details"].get("environment", {})
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine_file.read_bytes())
    if hasattr(loaded, "create_runtime_config"):
        config = loaded.create_runtime_config()
        if graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = loaded.create_execution_context(config)
    else:
        context = loaded.create_execution_context()
    stream = torch.cuda.Stream()
    context.set_optimization_profile_async(_first_profile(loaded, feeds), stream.cuda_stream)
    kept = {n: torch.from_numpy(a).cuda() for n, a in feeds.items()}
    for tensor, value in kept.items():
        context.set_input_shape(tensor, tuple(value.shape))
    named = [loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)]
    for tensor in (n for n in named if n not in kept):
        shape = tuple(context.get_tensor_shape(tensor))
        kept[tensor] = torch.empty(shape, dtype=getattr(torch, _TORCH[loaded.get_tensor_dtype(tensor).name])).cuda()
    for tensor, value in kept.items():
        context.set_tensor_address(tensor, value.data_ptr())
    torch.cuda.synchronize()

    def time_runs(runs: int) -> RunTimes:
        host, device = [], []
        for _ in range(runs):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start = time.perf_counter_ns()
            begin.record(stream)
            context.execute_async_v3(stream.cuda_stream)
            end.record(stream)
            end.synchronize()
            host.append((time.perf_counter_ns() - start) / 1e6)
            device.append(begin.elapsed_time(end))
        return RunTimes(tuple(host), tuple(device))

    time_runs(1)
    outputs = {n: kept[n].float().cpu().numpy() for n in named if n not in feeds}
    return Candidate(name, outputs, time_runs, kept.clear)


_TORCH = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


def _first_profile(loaded: Any, feeds: Arrays) -> int:
    def admits(index: int) -> bool:
        ranges = {n: loaded.get_tensor_profile_shape(n, index) for n in feeds}
        return all(
            all(low <= have <= high for low, have, high in zip(ranges[n][0], a.shape, ranges[n][2], strict=True))
            for n, a in feeds.items()
        )

    return next(i for i in range(loaded.num_optimization_profiles) if admits(i))


def _timed(once: Callable[[], object], wait: Callable[[], None], runs: int) -> RunTimes:
    clock, times = time.perf_counter_ns, []
    wait()
    for _ in range(runs):
        start = clock()
        once()
        wait()
        times.append((clock() - start) / 1e6)
    return RunTimes(tuple(times))
