"""A baseline for the engines: load time, latency and memory at the named shapes, measured as theirs, alone on its
device.

Then its outputs on all evaluation samples are compared with the fp32 reference, because a fast but wrong peer is no
baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Session
from engineworks.engines.peers import peer
from engineworks.engines.peers.base import Origin, PeerModel
from engineworks.errors import RunError
from engineworks.measure.accuracy import OutputComparison
from engineworks.model.export.interface import interface_from_json
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.plan.kinds import LATENCY_FILE
from engineworks.recipe.batch import output_axes
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.device_readings import DeviceReadings
from engineworks.steps.measure import NamedShapes
from engineworks.steps.reference import read_reference
from engineworks.steps.step_job import StepJob
from engineworks.tracking.sources import load_pytorch


def run(job: StepJob) -> None:
    """Write `latency.json` with `shapes` as in `measure`, and: import_ms (only the framework, in no other metric),
    load_ms (from the imported framework to a ready session), outputs (accuracy), facts, notes, device."""
    chosen = peer(job.params["peer"])
    import_ms = _ms(chosen.open_library)
    meter, readings = chosen.memory_meter(), DeviceReadings(chosen.device_watch())
    meter.reset()
    before_mib = meter.peak_mib()
    start = time.perf_counter()
    session = chosen.load(_model(job))
    load_ms = 1000 * (time.perf_counter() - start)
    try:
        measured = NamedShapes(job, session, meter, before_mib, readings).measure()
        outputs = _accuracy(job, session)
    finally:
        session.close()
    job.write_json(
        LATENCY_FILE,
        {
            "import_ms": import_ms, "load_ms": load_ms, "shapes": {name: measured[name] for name in job.params["at"]},
            "outputs": outputs, "facts": dict(session.facts), "notes": list(session.notes),
            "device": readings.to_json(),
        },
    )  # fmt: skip


def _ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def _model(job: StepJob) -> PeerModel:
    precision, params = job.params["precision"], job.params
    if "model" in job.inputs:
        return PeerModel(precision, onnx=job.inputs["model"] / MODEL_FILE)
    origin = Origin(
        kind=params["source"],
        path=job.path("source"),
        folder=job.path("folder"),
        files=tuple(Path(file) for file in job.unkeyed["files"]),
        factory=params["factory"],
        task=params["task"],
        interface=interface_from_json(params["interface"]),
        open_logged=load_pytorch,
    )
    return PeerModel(precision, origin=origin)


def _accuracy(job: StepJob, session: Session) -> dict[str, Any]:
    """Return the accuracy on all evaluation samples, in the batches of the reference."""
    samples = samples_from_json(job.paths("evaluation"), job.params["samples"])
    axes = output_axes(samples.specs, session.outputs)
    comparisons = {spec.name: OutputComparison(axes[spec.name]) for spec in session.outputs}
    runs = samples.batches(job.params["batches"])
    for feeds, wanted in zip(runs, read_reference(job.inputs["reference"]), strict=True):
        got = session.run(feeds)
        for name, comparison in comparisons.items():
            try:
                comparison.add(got[name], wanted[name])
            except (ValueError, KeyError) as error:
                raise RunError(f"output '{name}' cannot be compared with the reference: {error}") from None
    return {name: comparison.result().to_json() for name, comparison in comparisons.items()}
