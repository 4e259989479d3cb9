"""A baseline for the engines: load time, latency and memory at the named shapes, measured as theirs, alone on its
device.

Then its outputs on all evaluation samples are compared with the fp32 reference, because a fast but wrong peer is no
baseline. A peer that runs the recipe's own source runs a user's code: in a sandbox, which gives back numbers and
outputs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Session
from engineworks.engines.peers import peer
from engineworks.engines.peers.base import Origin, Peer, PeerModel
from engineworks.errors import RunError
from engineworks.host.sandbox import Sandbox
from engineworks.host.sandbox.serve import Emit
from engineworks.host.sandbox.wire import Array, require_finite
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.latency_report import PeerLatency
from engineworks.model.export.interface import interface_from_json
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.recipe.batch import output_axes
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.steps.device_readings import Device
from engineworks.steps.job import StepJob, echo
from engineworks.steps.measure import NamedShapes
from engineworks.steps.reference import OUTPUTS_FILE, read_reference
from engineworks.tensors import TensorSpec
from engineworks.tracking.sources import load_pytorch

FUNCTION = "engineworks.steps.peer:measure_in_sandbox"

Report = dict[str, Any]
Outputs = Mapping[str, Array]


def run(job: StepJob) -> None:
    """Write `latency.json` with `shapes` as in `measure`, and: import_ms (only the framework, in no other metric),
    load_ms (from the imported framework to a ready session), outputs (accuracy), facts, notes, device."""
    samples = samples_from_json(job.paths("evaluation"), job.params["samples"])
    if "model" in job.inputs:
        model = PeerModel(job.params["precision"], onnx=job.inputs["model"] / MODEL_FILE)
        feeds = _feeds(job, samples)
        with _measured(job, peer(job.params["peer"]), model) as (session, report):
            outputs = _accuracy(job, samples, session.outputs, lambda _: session.run(next(feeds)))
    else:
        report, outputs = _from_sandbox(job, samples)
    job.write(PeerLatency.from_json(report | {"outputs": outputs}, f"{job.id}: {PeerLatency.FILE}"))


def _feeds(job: StepJob, samples: SampleFile) -> Iterator[dict[str, Array]]:
    """Yield the evaluation samples in the batches of the reference."""
    return samples.batches(job.params["batches"])


@contextmanager
def _measured(job: StepJob, chosen: Peer, model: PeerModel) -> Iterator[tuple[Session, Report]]:
    """Yield a loaded session and its measurements."""
    begin = time.perf_counter()
    chosen.open_library()
    import_ms = 1000 * (time.perf_counter() - begin)
    device = Device(chosen)
    start = time.perf_counter()
    session = chosen.load(model)
    load_ms = 1000 * (time.perf_counter() - start)
    with closing(session):
        measured = NamedShapes(job, session, device).measure()
        report = {
            "import_ms": import_ms, "load_ms": load_ms, "shapes": {name: measured[name] for name in job.params["at"]},
            "facts": dict(session.facts), "notes": list(session.notes), "device": device.to_json(),
        }  # fmt: skip
        yield session, report


def _from_sandbox(job: StepJob, samples: SampleFile) -> tuple[Report, dict[str, Any]]:
    """Measure in a sandbox; compare its outputs here. Raises as the peer and `Sandbox.ask`."""
    interface = interface_from_json(job.params["interface"])
    specs = [TensorSpec(name, "", tuple(shape)) for name, shape in interface.outputs.items()]
    evaluation = [str(path) for path in job.paths("evaluation")]
    request = {"id": job.id, "params": dict(job.params), "unkeyed": {**job.unkeyed, "evaluation": evaluation}}
    room = 2 * (job.inputs["reference"] / OUTPUTS_FILE).stat().st_size + (1 << 20)  # fp32's, at twice its width
    what = f"the baseline {peer(job.params['peer']).TITLE}"
    with (
        Sandbox(FUNCTION, what=what, echo=job.echo, error=RunError, time_limit_s=job.seconds_left()) as sandbox,
        sandbox.ask(request, max_bytes=room, scratch=job.out) as answer,
    ):
        report: Report = answer.value["value"]
        require_finite(report)
        names = [spec.name for spec in specs]
        return report, _accuracy(
            job, samples, specs, lambda run: {name: answer.array(f"{run}/{name}") for name in names}
        )


def measure_in_sandbox(request: Mapping[str, Any], _: Outputs, emit: Emit) -> Report:
    """Measure the recipe's own source in this process, a sandbox; emit its outputs as `<run>/<output>`."""
    params, places = request["params"], request["unkeyed"]
    job = StepJob(request["id"], params, {}, places, Path(tempfile.mkdtemp()), echo)
    origin = Origin(
        kind=params["source"],
        path=job.path("source"),
        folder=job.path("folder"),
        files=tuple(Path(file) for file in places["files"]),
        factory=params["factory"],
        task=params["task"],
        interface=interface_from_json(params["interface"]),
        open_logged=load_pytorch,
    )
    samples = samples_from_json(job.paths("evaluation"), params["samples"])
    model = PeerModel(params["precision"], origin=origin)
    with _measured(job, peer(params["peer"]), model) as (session, report):
        for run, feeds in enumerate(_feeds(job, samples)):
            for name, array in session.run(feeds).items():
                emit(f"{run}/{name}", array)
    return report


def _accuracy(
    job: StepJob, samples: SampleFile, outputs: Sequence[TensorSpec], outputs_of: Callable[[int], Outputs]
) -> dict[str, Any]:
    """Return the accuracy on all evaluation samples. outputs_of: the peer's outputs of a run, by name; called in the
    order of the reference's batches."""
    axes = output_axes(samples.specs, outputs)
    comparisons = {spec.name: OutputComparison(axes[spec.name]) for spec in outputs}
    for run, wanted in enumerate(read_reference(job.inputs["reference"])):
        got = outputs_of(run)
        for name, comparison in comparisons.items():
            try:
                comparison.add(got[name], wanted[name])
            except (ValueError, KeyError) as error:
                raise RunError(f"output '{name}' cannot be compared with the reference: {error}") from None
    return {name: comparison.result().to_json() for name, comparison in comparisons.items()}
