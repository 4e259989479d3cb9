"""ONNX Runtime on the CPU: the `cpu` target.

Its engine is the graph as ONNX Runtime optimizes it at level EXTENDED, saved as ONNX. EXTENDED is the last level whose
result does not depend on the processor. LAYOUT and ALL rewrite convolutions to the NCHWc layout of the local vector
width, and ONNX Runtime warns against moving such a file; a test looks for those nodes. Loading runs the other
optimizations for the present processor. `model.ort` handles crashes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.engines.backends._ort_session import OrtSession, profile_nodes, run_once_per_profile, specs
from engineworks.engines.backends.base import (
    ENGINE_FILE,
    PLAIN,
    BuildMemory,
    BuildReport,
    BuildRequest,
    Option,
    Serving,
    TimedLayer,
    Traits,
    TritonBackend,
    check_options,
)
from engineworks.engines.capabilities import CAPABILITIES, why_not, why_not_target
from engineworks.errors import BuildError, RunError
from engineworks.host import cpu, cpu_watch
from engineworks.host.lazy import ort
from engineworks.host.memory import ResidentMemory
from engineworks.host.packages import installed_versions
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, load_model, model_files
from engineworks.model.ort import (
    FORMS,
    LEVELS,
    NO_EXACT_KERNEL,
    Form,
    after_crashes,
    current,
    exact_options,
    form_of,
    lacks_exact_kernel,
    ort_errors,
    rounds_activations,
    sign,
    what_failed,
)
from engineworks.tensors import TensorSpec

TITLE = CAPABILITIES["onnxruntime"].title
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
NEEDS_GPU_TO_BUILD = False
IMPORTS = ("onnxruntime", "onnx")

ATTEMPTS = len(FORMS)

UNFUSED = Form("basic", "basic")
"""The form that computes quantized nodes as Q/DQ in floating point."""

TRAITS = Traits(
    build_memory=BuildMemory(150.0, 3.5),
    triton=TritonBackend(
        "onnxruntime",
        ("numpy", "pydantic", "onnxruntime"),
        file="model.onnx",
        options={"threads": "intra_op_thread_count", "inter_op_threads": "inter_op_thread_count"},
    ),
    on_gpu=False,
    unquantized="fp32",
    ort_integer_kernels=True,
    contrib_operators=True,
    quiet_options={"spinning": False},
    relative_times={"fp32": 1.0, "int8": 1.05, "int8_weights": 1.1, "int4_weights": 1.2, "w4a8": 0.5, "fp16": 2.0},
)
"""Memory: measured (results/build-memory-cpu.json). The CPU has few fp16 kernels: ONNX Runtime casts back and forth,
and recognizes no int8 convolution behind fp16 scales. Digits: 2.8 ms with fp16 for unquantized nodes, 1.7 ms with fp32.
Only some processors are faster in int8, so fp32 comes first until the precisions are measured."""

OPTIONS: Mapping[str, Option] = {
    "threads": Option(int, "threads within an operator; 0 or nothing: one for each core that may be used"),
    "inter_op_threads": Option(int, "operators that run at once; 1 unless said otherwise"),
    "spinning": Option(bool, "whether idle threads wait actively: true unless said otherwise"),
}

WEIGHTS_FILE = ENGINE_FILE + ".data"
"""Weights of an engine whose model holds more than EXTERNAL_ABOVE_BYTES: a protobuf message holds less than 2 GiB."""

SMALLEST_EXTERNAL_BYTES = 1024
"""Smaller weights stay in the engine file: shapes and axes must be readable without the weights file."""


def versions() -> Mapping[str, str]:
    """Return the installed distribution and its version; empty where there is none."""
    return {name: version for name, version in installed_versions(DISTRIBUTIONS).items() if version is not None}


def why_not_build(compute_capabilities: Sequence[str]) -> str | None:
    """Return why this host cannot build for the target: it is not the CPU, or ONNX Runtime is missing."""
    installed = next(iter(versions().values()), None)
    if installed is None:
        return "ONNX Runtime is not installed; pip install onnxruntime"
    return why_not_target("onnxruntime", installed, compute_capabilities)


why_not_run, hardware, memory_meter, device_watch = why_not_build, cpu.describe, ResidentMemory, cpu_watch.LoadWatch


def build(request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """Call `_build`, and again without integer kernels where none is exact on this processor."""
    try:
        return _build(request, log)
    except (BuildError, RunError) as error:
        if current() != FORMS[0] or not lacks_exact_kernel(f"{error} {error.log}"):
            raise
        log(f"{TITLE} has no exact int8 kernel for this model here: {error.message}")
    with after_crashes(FORMS.index(UNFUSED)):
        return _build(request, log)


def _build(request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """Optimize the model and save it as `engine`, weights above 256 MiB in `engine.data` beside it. Then run it once at
    the shapes of every profile: a crash of ONNX Runtime leads to another build.

    One engine serves all shapes; profiles do not change it. ONNX Runtime logs to standard error, which the child
    process forwards. Raises `BuildError`, and `TargetError` for an unknown option.
    """
    check_options(TITLE, request.options, OPTIONS)
    start, form = time.perf_counter(), current()
    log(f"{TITLE} {ort.__version__}, {form.description()}, {request.model.name}")
    partial = request.out / (ENGINE_FILE + ".partial")
    options = session_options(request.options, int8_activations="w4a8" in request.computes)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[form.saved])
    options.optimized_model_filepath = str(partial)
    options.log_severity_level = 1
    if sum(f.stat().st_size for f in model_files(request.model)) > EXTERNAL_ABOVE_BYTES:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS_FILE)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST_EXTERNAL_BYTES)
        )
    try:
        session = ort.InferenceSession(
            str(request.model), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(form.without)
        )
    except ort_errors() as error:
        raise BuildError(
            f"{request.model.name}: {TITLE} {ort.__version__} {what_failed(error, request.model)}",
            hint=next((s for part in request.parts if (s := why_not("onnxruntime", ort.__version__, part, ()))), ""),
            log=str(error),
        ) from None
    if form != FORMS[0]:
        sign(partial, form)
    os.replace(partial, request.out / ENGINE_FILE)
    report = _report(request, form, session, time.perf_counter() - start)
    del session
    quiet = {**request.options, **TRAITS.quiet_options}  # other steps run at the same time
    run_once_per_profile(load(request.out / ENGINE_FILE, quiet), request.profiles, log, raised=NO_EXACT_KERNEL)
    return report


def _report(request: BuildRequest, form: Form, session: Any, seconds: float) -> BuildReport:
    engine, weights = request.out / ENGINE_FILE, request.out / WEIGHTS_FILE
    details: dict[str, object] = {"optimization_level": form.saved, "engine_bytes": engine.stat().st_size}
    if weights.exists():
        details["weights_bytes"] = weights.stat().st_size
    if form != FORMS[0]:
        details |= {"load_level": form.loaded, "crashes": list(request.crashes), "notes": [crash_note(form)]}
    return BuildReport(
        file=ENGINE_FILE,
        inputs=specs(session.get_inputs()),
        outputs=specs(session.get_outputs()),
        seconds=seconds,
        versions=versions(),
        details=details,
    )


def crash_note(form: Form) -> str:
    """Return the report's note on an engine that is not in the first form."""
    return f"{TITLE} failed with its usual optimizations; the engine is {form.description()}, which may be slower"


def load(
    engine: Path,
    options: Mapping[str, object],
    *,
    serving: Serving = PLAIN,
    cache: Path | None = None,
    known: Sequence[TensorSpec] = (),
) -> OrtSession:
    """Load an engine, or any ONNX model, for the CPU. `model.ort` limits the optimization level where the build found a
    limit. `cache` and `known` are not used.

    Raises `RunError`, and `TargetError` for an unknown option.
    """
    check_options(TITLE, options, OPTIONS)
    form = form_of(engine)
    notes = ["a CPU has no CUDA graphs: runs without"] if serving.cuda_graphs else []
    if form != FORMS[0]:
        notes.append(crash_note(form))
    return _session(engine, session_options(options), LEVELS[form.loaded], notes)


def load_with_int8_activations(model: Path) -> OrtSession:
    """Load a lowered model as w4a8's engine computes: activations are rounded to int8. Raises `RunError`."""
    return _session(model, session_options({"spinning": False}, int8_activations=True), LEVELS[FORMS[0].loaded])


def _session(
    model: Path, asked: Any, level: str, notes: Sequence[str] = (), *, graph: bytes | None = None
) -> OrtSession:  # fmt: skip
    asked.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    try:
        session = ort.InferenceSession(graph or str(model), asked, providers=["CPUExecutionProvider"])
    except ort_errors() as error:
        raise RunError(f"{model}: {TITLE} {ort.__version__} {what_failed(error, model)}", log=str(error)) from None
    return OrtSession(session, tuple(notes))


def layer_times(
    engine: Path, options: Mapping[str, object], feeds: Mapping[str, Any], runs: int, known: Sequence[TensorSpec],
    cache: Path | None = None,
) -> tuple[str, list[TimedLayer]]:  # fmt: skip
    """Time every node as `base.LayerTimer` asks, at the level at which the engine is loaded. Raises `RunError`."""
    asked = session_options(options)
    asked.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[form_of(engine).loaded])
    return f"{TITLE}'s profile", profile_nodes(engine, asked, feeds, runs)


def load_as_written(model: Path, *, graph: bytes | None = None, profile: Path | None = None) -> OrtSession:
    """Load a model without optimizations: every node runs separately in the order of the graph.

    graph: another graph for the same file's weights. profile: path prefix of the profile of the first runs, until
    `end_profile`. Raises `RunError`.
    """
    options = session_options({"spinning": False})  # other steps run at the same time
    if profile is not None or not rounds_activations(load_model(model, weights=False)):
        options.add_session_config_entry("session.disable_prepacking", "1")  # copies, which a profile omits
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    return _session(model, options, "ORT_DISABLE_ALL", graph=graph)


def session_options(options: Mapping[str, object], *, int8_activations: bool = False) -> Any:
    """Convert a target's options to ONNX Runtime's; its log shows errors only. int8_activations: an engine that is made
    with them rounds activations before products with int4 weights."""
    session_config = exact_options(integer_kernels=True, int8_activations=int8_activations)
    session_config.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[current().loaded])
    session_config.intra_op_num_threads = options.get("threads") or cpu.usable_cores()
    session_config.inter_op_num_threads = options.get("inter_op_threads") or 1
    if not options.get("spinning", True):
        session_config.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_config.log_severity_level = 3
    return session_config
