"""A peer of the engines: load time, latency and memory at the recipe's named shapes, measured as theirs, alone on its
device; then its outputs on all evaluation samples against the fp32 reference. A fast wrong peer is no peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.backends.base import Session
from engineworks.errors import RunError
from engineworks.measure.accuracy import Array, OutputComparison
from engineworks.measure.latency import Sampling, measure_latency
from engineworks.model.export import interface_from_json
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.peers import peer
from engineworks.peers.base import Origin, PeerModel
from engineworks.samples import samples_from_json, samples_per_run
from engineworks.steps import StepJob
from engineworks.steps.compare import output_axes
from engineworks.steps.measure import LATENCY_FILE, feeds_at
from engineworks.steps.reference import read_reference
from engineworks.tensors import spec_from_json


def run(job: StepJob) -> None:
    """`latency.json` as `measure` writes it, with: import_ms (the framework alone, in no other figure), load_ms (from
    the imported framework to a session that is ready), first_run_ms per shape, outputs (accuracy), facts and notes."""
    chosen = peer(job.params["peer"])
    import_ms = _ms(chosen.open_library)
    meter = chosen.memory_meter()
    meter.reset()
    before_mib = meter.peak_mib()
    start = time.perf_counter()
    session = chosen.load(_model(job))
    load_ms = 1000 * (time.perf_counter() - start)
    try:
        shapes = {}
        for name, at in job.params["at"].items():
            meter.reset()
            figures = _figures(job, session, at)
            shapes[name] = {**figures, "memory_mib": round(meter.peak_mib() - before_mib, 2), **at}
            job.say(f"{name}: p50 {figures['latency_ms_p50']:.4f} ms over {figures['runs']} runs")
        outputs = _accuracy(job, session)
    finally:
        session.close()
    job.write_json(
        LATENCY_FILE,
        {
            "import_ms": import_ms, "load_ms": load_ms, "shapes": shapes, "outputs": outputs,
            "facts": dict(session.facts), "notes": list(session.notes),
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
        files=tuple(Path(file) for file in job.aside["files"]),
        factory=params["factory"],
        task=params["task"],
        interface=interface_from_json(params["interface"]),
    )
    return PeerModel(precision, origin=origin)


def _figures(job: StepJob, session: Session, at: Mapping[str, Any]) -> dict[str, Any]:
    """One shape: the very first run with all that it sets up, then as many as `measure` takes."""
    specs = tuple(spec_from_json(s) for s in job.params["inputs"])
    feeds = feeds_at(specs, samples_from_json(job.path("evaluation"), job.params["samples"]), at["dims"])
    first_run_ms = _ms(partial(session.run, feeds))
    batch = samples_per_run(specs, at["dims"])
    report = measure_latency(partial(_host_times, session, feeds), batch, Sampling(tail=at["tail"]))
    device_ms = sorted(session.time_runs(feeds, DEVICE_RUNS).device_ms)
    device_ms_p50 = device_ms[len(device_ms) // 2] if device_ms else None
    return {**report.to_json(), "first_run_ms": first_run_ms, "device_ms_p50": device_ms_p50}


DEVICE_RUNS = 51
"""Runs for the device's own median, after those by the host's clock."""


def _host_times(session: Session, feeds: Mapping[str, Array], runs: int) -> list[float]:
    return list(session.time_runs(feeds, runs).host_ms)


def _accuracy(job: StepJob, session: Session) -> dict[str, Any]:
    """All evaluation samples, in the batches of the reference."""
    samples = samples_from_json(job.path("evaluation"), job.params["samples"])
    axes = output_axes(samples.specs, session.outputs)
    found = {spec.name: OutputComparison(axes[spec.name]) for spec in session.outputs}
    runs = samples.batches(job.params["batches"])
    for feeds, wanted in zip(runs, read_reference(job.inputs["reference"]), strict=True):
        got = session.run(feeds)
        for name, comparison in found.items():
            try:
                comparison.add(got[name], wanted[name])
            except (ValueError, KeyError) as error:
                raise RunError(f"output '{name}' can not be compared with the reference: {error}") from None
    return {name: comparison.result().to_json() for name, comparison in found.items()}
