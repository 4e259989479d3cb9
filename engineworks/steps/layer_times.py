"""A measured engine's time per layer, and the nodes of the lowered ONNX that each layer holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.engines.layer_times import TimedLayer, time_layers
from engineworks.engines.verified import verified_engine
from engineworks.errors import EngineworksError
from engineworks.host.child import run_in_child
from engineworks.measure.layers import Layer, Layers
from engineworks.model.graphs import names_read
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.plan.kinds import LAYERS_FILE
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.step_job import StepJob
from engineworks.tensors import spec_from_json

if TYPE_CHECKING:
    import onnx

RUNS = 20
"""Runs that a layer's time is the mean of; long ones are profiled less often."""

PROFILE = "engineworks.steps.layer_times:main"

LEAST_RUNS = 3

LIMIT_S = 300.0
"""Seconds after which a profiler is stopped."""

SECONDS = 2.0
"""About how long profiling may take."""


def write_layers(job: StepJob, run_ms: float) -> None:
    """Write `layers.json` of the first named shape. run_ms: the median run there.

    A runtime that tells no times of layers is a reason in the file, and no failure of the measurement. A vendor's
    profiler may end its process, so engines on a GPU are profiled in another one.
    """
    shape, at = next(iter(job.params["at"].items()))
    payload = {
        "build": str(job.inputs["build"]), "lower": str(job.inputs["lower"]), "target": job.params["target"],
        "inputs": job.params["inputs"], "samples": job.params["samples"], "dims": at["dims"], "shape": shape,
        "data": [str(path) for path in job.paths("evaluation")],
        "runs": max(LEAST_RUNS, min(RUNS, int(SECONDS * 1000 / max(run_ms, 0.01)))),
    }  # fmt: skip
    try:
        if job.params["target"]["compute_capability"]:
            layers = run_in_child(PROFILE, payload, what="profiling", fresh=True, time_limit_s=LIMIT_S, on_line=job.say)
        else:
            layers = main(payload)
    except EngineworksError as error:
        layers = Layers(shape, why=error.message).to_json()
    job.write_json(LAYERS_FILE, {k: v for k, v in layers.items() if k != "memory_mib_peak"})


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Time the layers and return them as JSON (`Layers`). Raises `RunError`."""
    specs = tuple(spec_from_json(s) for s in payload["inputs"])
    feeds = feeds_at(specs, samples_from_json(payload["data"], payload["samples"]), payload["dims"])
    with verified_engine(Path(payload["build"])) as engine:
        source, timed = time_layers(engine, payload["target"], feeds, payload["runs"])
    layers = tuple(mapped(timed, Path(payload["lower"]) / MODEL_FILE))
    return Layers(payload["shape"], payload["runs"], source, layers).to_json()


def mapped(timed: Sequence[TimedLayer], lowered: Path) -> Iterator[Layer]:
    """The layers with the nodes of the lowered model that each holds, by tensors or by names."""
    graph = load_model(lowered, weights=False).graph
    makers = {name: node for node in graph.node for name in node.output if name}
    by_name = {node.name: node for node in graph.node if node.name}
    for layer in timed:
        nodes = _between(layer, makers) or _named(layer, by_name)
        ops = tuple(dict.fromkeys(node.op_type for node in nodes))
        names = tuple(node.name or node.output[0] for node in nodes)
        yield Layer(layer.name, layer.kind, layer.ms, names, ops, layer.kernel)


def _between(layer: TimedLayer, makers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that make the layer's results of what it reads; none where the runtime made up its own tensors."""
    found: dict[int, onnx.NodeProto] = {}
    pending = [name for name in layer.outputs if name in makers]
    while pending:
        node = makers[pending.pop()]
        if id(node) not in found:
            found[id(node)] = node
            pending.extend(n for n in names_read(node) if n in makers and n not in layer.inputs)
    return list(reversed(found.values()))


def _named(layer: TimedLayer, by_name: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes whose names the runtime tells, or that the layer's own name holds."""
    exact = [by_name[name] for name in layer.names if name in by_name]
    if exact:
        return exact
    text, found = layer.name, list[Any]()
    for name in sorted(by_name, key=len, reverse=True):
        if len(name) > 3 and name in text:
            found.append(by_name[name])
            text = text.replace(name, " ")
    return found
