"""TensorRT and TensorRT-RTX: one build for two vendor modules. Every network is strongly typed, because the graph holds
the precision.

The interface names were checked in the bindings of TensorRT 10.0.1, 10.13.3, 10.16.1, 11.0.0 and 11.4.0. Those were
imported over stub libraries, because the real ones are not available here. TensorRT-RTX 1.4 to 1.7 was run.
Differences:

- STRONGLY_TYPED is flag 1 in TensorRT 10; in 11 and RTX every network is strongly typed and it means nothing.
- Only RTX names compute capabilities.
- 10.0 lacks `build_serialized_network_to_stream`, `max_num_tactics` and `tiling_optimization_level`.
- RTX has no library for version compatible engines.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engineworks.engines.backends._trt_config import (
    add_profiles,
    configure,
    keep_timing_cache,
    name_capabilities,
    shrink_workspace,
    use_timing_cache,
)
from engineworks.engines.backends._trt_log import Logger, builder_message, logger_of
from engineworks.engines.backends._trt_parse import (
    Interface,
    interface_of,
    network_names,
    parse,
    read_interface,
    written_out,
)
from engineworks.engines.backends._trt_tensors import named_spec
from engineworks.engines.backends._trt_tf32 import environment, switched
from engineworks.engines.backends.base import ENGINE_FILE, BuildReport, BuildRequest, Option, check_options
from engineworks.engines.backends.plan_header import HEADER_BYTES, PlanHeader, read_plan_header
from engineworks.engines.capabilities import PORTABLE_ONLY, why_not
from engineworks.errors import BuildError, RunError, TargetError, UnsupportedError
from engineworks.host.gpu import first_gpu
from engineworks.host.lazy import onnx
from engineworks.host.packages import installed_versions
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class Vendor:
    """One vendor module. name: the backend's. module: the import name. rtx: whether it names compute capabilities,
    builds without a GPU, and writes the header that `plan_header` reads."""

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    options: Mapping[str, Option]
    rtx: bool

    def versions(self) -> Mapping[str, str]:
        """Return the installed distribution and its version; empty where there is none."""
        versions = installed_versions(self.distributions)
        return dict([(name, version) for name, version in versions.items() if version is not None][:1])

    def load(self) -> Any:
        """Import the vendor's module. Raises `TargetError` where that fails."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: one of its libraries or CUDA's is missing
            raise TargetError(
                f"{self.title} cannot be imported: {error}", hint=f"pip install {self.distributions[0]}"
            ) from None


def build(vendor: Vendor, request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """Write `engine` under `request.out`. Raises `UnsupportedError` where the vendor does not support the model,
    `BuildError`, and `TargetError` for an unknown option."""
    check_options(vendor.title, request.options, vendor.options)
    start = time.perf_counter()
    trt = vendor.load()
    title = f"{vendor.title} {trt.__version__}"
    log(f"{title}, {request.model.name} in {request.precision} for {', '.join(request.compute_capabilities) or 'here'}")
    model = read_interface(request.model)
    job = _Job(vendor, trt, title, request, model, log)
    try:
        report = _build(job, None)
    except BuildError as error:
        plain = written_out(request.model) if "Attention (node" in error.message else None
        if plain is None:
            raise
        log(f"{error}; once more with every Attention written out as smaller operators")
        try:
            report = _build(replace(job, model=interface_of(plain)), plain)
        except BuildError:
            raise error from None
        report["attention"] = "written out as smaller operators"
    inputs, outputs = report.pop("inputs"), report.pop("outputs")
    changed = _changed_types(model, inputs, outputs)
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if spec.name in changed:
                log(f"{kind} '{spec.name}' is {spec.dtype} in the engine, {changed[spec.name]} in the model")
    report |= {"model_types": changed} if changed else {}
    return BuildReport(ENGINE_FILE, inputs, outputs, time.perf_counter() - start, vendor.versions(), report)


def _changed_types(model: Interface, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the model's dtypes, by name, of inputs and outputs whose dtype the vendor changed."""
    of_model = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    return {
        spec.name: of_model[spec.name]
        for spec in (*inputs, *outputs)
        if of_model.get(spec.name, spec.dtype) != spec.dtype
    }


@dataclass(frozen=True)
class _Job:
    """Values that stay the same while one engine is built."""

    vendor: Vendor
    trt: Any
    title: str
    request: BuildRequest
    model: Interface
    log: Callable[[str], None]


def _build(job: _Job, plain: onnx.ModelProto | None) -> dict[str, Any]:
    """Build the engine of the request's file, or of `plain`. Returns its details, `inputs` and `outputs`."""
    vendor, trt, title, request, model = job.vendor, job.trt, job.title, job.request, job.model
    wanted = environment(request.precision, rtx=vendor.rtx, tf32=bool(request.options.get("tf32")))
    with switched(wanted), logger_of(trt).sending(job.log) as logger:
        builder = _create_builder(trt, title, logger)
        network, _parser = parse(trt, title, builder, logger, request.model, model, plain)  # parser owns weights
        config = builder.create_builder_config()
        configure(trt, title, config, request.options)
        add_profiles(builder, config, network, request.profiles, model.inputs, network_names(network))
        if vendor.rtx:
            name_capabilities(trt, title, config, request.compute_capabilities)
        timings = use_timing_cache(config, request.cache) if request.cache and not vendor.rtx else None
        partial = request.out / (ENGINE_FILE + ".partial")
        built, less_mib = _write_or_retry(trt, builder, network, config, partial, logger, job.log)
        if not built:
            raise _failure(job, logger, less_mib)
        if timings is not None and request.cache:
            keep_timing_cache(timings, request.cache)
        inputs, outputs = _specs(network, model)
    os.replace(partial, request.out / ENGINE_FILE)
    details = _details(vendor, title, request) | ({"environment": dict(wanted)} if wanted else {})
    if less_mib is not None:
        details["workspace_mib_after_out_of_memory"] = less_mib
    return details | {"inputs": inputs, "outputs": outputs}


def _create_builder(trt: Any, title: str, logger: Logger) -> Any:
    try:
        return trt.Builder(logger.vendor)
    except TypeError:  # pybind raises it for a null pointer
        raise BuildError(f"{title} did not start: {logger.reason()}", log=logger.text()) from None


def _write_or_retry(
    trt: Any, builder: Any, network: Any, config: Any, path: Path, logger: Logger, log: Callable[[str], None]
) -> tuple[bool, int | None]:
    """Return whether a plan was built, and the workspace (MiB) of a second try if the first ran out of memory."""
    if _write(trt, builder, network, config, path):
        return True, None
    less_mib = shrink_workspace(trt, config, _free_mib()) if logger.out_of_memory() else None
    if less_mib is None:
        return False, None
    log(f"out of memory: once more with a workspace of {less_mib} MiB")
    return _write(trt, builder, network, config, path), less_mib


def _write(trt: Any, builder: Any, network: Any, config: Any, path: Path) -> bool:
    """Build and write the plan; False if nothing was built. Streams where possible, so that memory holds the plan
    once."""
    with path.open("wb") as file:
        if not hasattr(builder, "build_serialized_network_to_stream"):
            plan = builder.build_serialized_network(network, config)
            return plan is not None and file.write(plan) > 0

        class Writer(trt.IStreamWriter):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)
                self.failed: OSError | None = None

            def write(self, data: bytes) -> int:
                try:
                    return file.write(data)
                except OSError as error:  # no exception may pass through the vendor's C++
                    self.failed = error
                    return 0

        writer = Writer()
        built = bool(builder.build_serialized_network_to_stream(network, config, writer))
    if writer.failed is not None:
        raise BuildError(f"{path}: the engine cannot be written: {writer.failed.strerror}")
    return built


def _free_mib() -> float | None:
    """Return free GPU memory in MiB; None where no GPU answers."""
    from engineworks.engines.backends._cuda import memory_mib

    try:
        return memory_mib()[0] if first_gpu() else None
    except RunError:
        return None


INTERNAL_CHECK = re.compile(r"\bCHECK\(|Exception: \S+\.(cpp|h):\d+")
"""A vendor's reason that names only a line of its own source."""


def _failure(job: _Job, logger: Logger, less_mib: int | None) -> BuildError:
    """Return the error to raise. less_mib: workspace of the second try, if the first ran out of memory."""
    vendor, title, request, model = job.vendor, job.title, job.request, job.model
    (request.out / (ENGINE_FILE + ".partial")).unlink(missing_ok=True)
    where, reason = ", ".join(request.compute_capabilities), logger.reason()
    if logger.out_of_memory():
        tries = "" if less_mib is None else f", in the usual workspace and in one of {less_mib} MiB"
        return BuildError(
            f"{request.model.name}: {title} ran out of memory while building for {where}{tries}: {reason}",
            hint="free memory, take smaller shapes, or give the target options: {workspace_mib: …}",
            log=logger.text(),
        )
    version = next(iter(vendor.versions().values()), None)
    refused = (
        why_not(
            vendor.name, version, part, request.compute_capabilities, operators=model.uses, quantized=model.quantized
        )
        for part in request.parts
    )
    known = next((message for message in refused if message), None)
    built_none = f"{request.model.name}: {title} built no engine for {where}"
    explained = builder_message(reason, model.graph)
    if known and INTERNAL_CHECK.search(reason) and not explained.known:
        return UnsupportedError(f"{built_none}: {known}", log=logger.text())
    kind = UnsupportedError if known or explained.known else BuildError
    return kind(f"{built_none}: {explained.text}", hint=known or explained.hint, log=logger.text())


def _specs(network: Any, model: Interface) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs with the engine's dtypes and the model's names."""
    named = {spec.name: spec for spec in (*model.inputs, *model.outputs)}
    inputs = [(name, network.get_input(i)) for i, name in enumerate(network_names(network))]
    outputs = [(tensor.name, tensor) for tensor in map(network.get_output, range(network.num_outputs))]

    def specs(tensors: Sequence[tuple[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(named_spec(name, tensor.dtype.name, tensor.shape, named) for name, tensor in tensors)

    return specs(inputs), specs(outputs)


def _details(vendor: Vendor, title: str, request: BuildRequest) -> dict[str, object]:
    engine = request.out / ENGINE_FILE
    details: dict[str, object] = {
        "engine_bytes": engine.stat().st_size,
        "tf32": bool(request.options.get("tf32", False)),
    }
    if vendor.rtx:
        with engine.open("rb") as file:
            header = read_plan_header(file.read(HEADER_BYTES))
        check_header(title, request.compute_capabilities, header, engine.stat().st_size)
        details["header"] = header.to_json()
    return details


def check_header(title: str, asked: Sequence[str], header: PlanHeader, engine_bytes: int) -> None:
    """Check that the plan is complete and as requested: the vendor silently ignores some mistakes."""
    if header.plan_bytes != engine_bytes:
        raise BuildError(
            f"{title} wrote {engine_bytes} bytes of an engine of {header.plan_bytes}", hint="is a disk full?"
        )
    served = set(header.compute_capabilities) | (set(PORTABLE_ONLY) if header.later else set())
    if not set(asked) <= served:
        raise BuildError(f"{title} built for {', '.join(sorted(served))}, asked for was {', '.join(asked)}")
