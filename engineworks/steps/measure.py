"""The stored engine → load time, latency and memory at the recipe's named shapes, alone on its device."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from engineworks.backends.base import Session
from engineworks.engine_files import check_engine
from engineworks.measure.accuracy import Array
from engineworks.measure.latency import Sampling, measure_latency
from engineworks.measure.memory import peak_mib, reset_peak, resident_mib
from engineworks.samples import SampleFile, batch_axes, samples_from_json, samples_per_run
from engineworks.steps import StepJob
from engineworks.steps.engine_session import load_engine
from engineworks.tensors import TensorSpec, spec_from_json

LATENCY_FILE = "latency.json"


def run(job: StepJob) -> None:
    specs = tuple(spec_from_json(s) for s in job.params["inputs"])
    samples = samples_from_json(job.path("evaluation"), job.params["samples"])
    check_engine(job.inputs["build"])
    reset_peak()
    before = resident_mib()
    start = time.perf_counter()
    session = load_engine(job.inputs["build"], job.params["target"], checked=True)
    load_ms = 1000 * (time.perf_counter() - start)
    shapes: dict[str, Any] = {}
    for name, at in job.params["at"].items():
        feeds = feeds_at(specs, samples, at["dims"])
        reset_peak()
        batch = samples_per_run(specs, at["dims"])
        report = measure_latency(partial(_host_times, session, feeds), batch, Sampling(tail=at["tail"]))
        shapes[name] = {**report.to_json(), "memory_mib": round(peak_mib() - before, 2), **at}
        job.say(f"{name}: p50 {report.latency_ms_p50:.4f} ms over {report.runs} runs")
    session.close()
    job.write_json(LATENCY_FILE, {"load_ms": load_ms, "shapes": shapes})


def _host_times(session: Session, feeds: Mapping[str, Array], runs: int) -> list[float]:
    return list(session.time_runs(feeds, runs).host_ms)


def feeds_at(specs: tuple[TensorSpec, ...], samples: SampleFile, dims: Mapping[str, int]) -> dict[str, Array]:
    """Feeds of exactly this shape, made of real samples: repeated where they are too few or short, cut where too long.

    Real values keep token ids within the vocabulary, and data-dependent kernels at their usual speed.
    """
    axes = batch_axes(specs)
    batch = samples_per_run(specs, dims)
    one = next(samples.batches([1 if None in axes.values() else min(batch, samples.count)]))
    return {spec.name: _fit(one[spec.name], spec.concrete(dims)) for spec in specs}


def _fit(array: Array, shape: tuple[int, ...]) -> Array:
    for axis, length in enumerate(shape):
        have = array.shape[axis]
        if have == 0 or length == 0:
            array = np.zeros((*array.shape[:axis], length, *array.shape[axis + 1 :]), array.dtype)
        elif have != length:
            tiled = np.concatenate([array] * math.ceil(length / have), axis=axis)
            array = np.take(tiled, range(length), axis=axis)
    return np.asarray(array, order="C")
