"""A measured engine's time per layer, and the nodes of the lowered ONNX that each layer holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import TimedLayer
from engineworks.engines.engine_session import time_layers
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.verified import verified_engine
from engineworks.errors import EngineworksError
from engineworks.host.child import run_in_child
from engineworks.host.lazy import onnx
from engineworks.measure.layers import Layer, Layers
from engineworks.model.graphs import names_read
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.job import StepJob
from engineworks.tensors import spec_from_json

RUNS = 20
"""Runs that a layer's time is the mean of; long ones are profiled less often."""

PROFILE = "engineworks.steps.layer_times:main"

LEAST_RUNS = 3

OWN_LAYOUT = "_nchwc"

START_S, SECONDS_PER_MIB, SLOWER = 60.0, 0.3, 50.0
"""A profiler is stopped after the time to start and import, to load and compile an engine, and for its runs, each
SLOWER times as long as without a profiler."""

SECONDS = 2.0
"""About how long the runs may take."""


def time_limit_s(mib: float, runs: int, run_ms: float) -> float:
    """Seconds after which the profiler of an engine of this size is stopped."""
    return START_S + SECONDS_PER_MIB * mib + SLOWER * runs * run_ms / 1000


def write_layers(job: StepJob, run_ms: float) -> None:
    """Write `layers.json` of the first named shape. run_ms: the median run there.

    A runtime that tells no times of layers is a reason in the file, and no failure of the measurement. A vendor's
    profiler may end its process, so engines on a GPU are profiled in another one.
    """
    runs = max(LEAST_RUNS, min(RUNS, int(SECONDS * 1000 / max(run_ms, 0.01))))
    payload = what_to_time(job, runs)
    limit_s = time_limit_s(Sidecar.read(job.inputs["build"]).bytes / 2**20, runs, run_ms)
    try:
        if job.params["target"]["compute_capability"]:
            answer = run_in_child(
                PROFILE, payload, what="profiling", fresh=True, time_limit_s=limit_s, on_line=job.echo
            )
            layers = Layers.from_json(answer)
        else:
            layers = time_here(payload)
    except EngineworksError as error:
        layers = Layers(payload["shape"], why=error.message)
    job.write(layers)


def what_to_time(job: StepJob, runs: int) -> dict[str, Any]:
    """The engine, its data and the shape, as JSON for `main` in a child process and for `time_here`."""
    shape, at = next(iter(job.params["at"].items()))
    return {
        "build": str(job.inputs["build"]), "lower": str(job.inputs["lower"]), "target": job.params["target"],
        "inputs": job.params["inputs"], "samples": job.params["samples"], "dims": at["dims"], "shape": shape,
        "data": [str(path) for path in job.paths("evaluation")],
        "runs": runs, "cache": job.unkeyed.get("cache"),
    }  # fmt: skip


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Time the layers in this child process and return them as JSON. Raises `RunError`."""
    return time_here(payload).to_json()


def time_here(payload: Mapping[str, Any]) -> Layers:
    """Time the layers in this process and map them to nodes. payload: of `what_to_time`. Raises `RunError`."""
    specs = tuple(spec_from_json(s) for s in payload["inputs"])
    feeds = feeds_at(specs, samples_from_json(payload["data"], payload["samples"]), payload["dims"])
    cache = Path(payload["cache"]) if payload.get("cache") else None  # `measure` has filled it at this shape
    with verified_engine(Path(payload["build"])) as engine:
        source, timed = time_layers(engine, payload["target"], feeds, payload["runs"], cache)
    layers = tuple(mapped(timed, Path(payload["lower"]) / MODEL_FILE))
    return Layers(payload["shape"], payload["runs"], source, layers)


def mapped(timed: Sequence[TimedLayer], lowered: Path) -> Iterator[Layer]:
    """The layers, in the order of a run, with the nodes of the lowered model that each holds, by tensors or by names.

    A node is in one layer only. A tensor that the runtime made up (in another layout, say) stands for the result of the
    node that its layer is named after.
    """
    graph = load_model(lowered, weights=False).graph
    makers = {name: node for node in graph.node for name in node.output if name}
    by_name = {node.name: node for node in graph.node if node.name}
    places = {id(node): place for place, node in enumerate(graph.node)}
    meant: dict[str, str] = {}
    held: set[int] = set()
    for layer in timed:
        named = sorted(_named(layer, by_name, makers), key=lambda node: places[id(node)])
        results = [name for name in layer.outputs if name in makers] or [n for x in named[-1:] for n in x.output if n]
        between = _between(results, {meant.get(n, n) for n in layer.inputs}, makers, held) if layer.outputs else []
        for made, real in zip(layer.outputs, results or layer.inputs[: len(layer.outputs)], strict=False):
            meant[made] = meant.get(real, real)
        nodes = between or [node for node in named if id(node) not in held]
        held |= {id(node) for node in nodes}
        ops = tuple(dict.fromkeys(node.op_type for node in nodes))
        names = tuple(node.name or node.output[0] for node in nodes)
        yield Layer(layer.name, layer.kind, layer.ms, names, ops, layer.kernel)


def _between(
    results: Sequence[str], inputs: Collection[str], makers: Mapping[str, onnx.NodeProto], held: Collection[int]
) -> list[onnx.NodeProto]:
    """The nodes that make the results of the inputs and of what earlier layers made."""
    found: dict[int, onnx.NodeProto] = {}
    pending = list(results)
    while pending:
        node = makers[pending.pop()]
        if id(node) not in found and id(node) not in held:
            found[id(node)] = node
            pending.extend(n for n in names_read(node) if n in makers and n not in inputs)
    return list(reversed(found.values()))


def _named(
    layer: TimedLayer, by_name: Mapping[str, onnx.NodeProto], makers: Mapping[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The nodes whose names the runtime tells, or that the layer's own name holds. ONNX Runtime names layers in its own
    layout after their result."""
    exact = [by_name[name] for name in (*layer.names, layer.name) if name in by_name]
    exact = exact or [makers[name] for name in [layer.name.removesuffix(OWN_LAYOUT)] if name in makers]
    if exact:
        return exact
    text, found = layer.name, list[Any]()
    for name in sorted(by_name, key=len, reverse=True):
        if len(name) > 3 and name in text:
            found.append(by_name[name])
            text = text.replace(name, " ")
    return found
