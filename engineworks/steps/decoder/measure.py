"""The stored decoder → time to the first token, tokens per second and memory at the named shapes, alone on its
device."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import RunTimes, Serving
from engineworks.engines.decoder.base import DecoderSession, PromptRunner
from engineworks.engines.decoder.open import one_by_one, open_decoder
from engineworks.engines.engine_session import runner_of
from engineworks.engines.verified import VerifiedEngine, verified_engine
from engineworks.errors import RunError
from engineworks.measure.latency import BRIEF, Sampling, measure_latency, percentiles, rounded, sample_runs
from engineworks.measure.latency_report import Latency
from engineworks.measure.statistics import quantile
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.steps.decoder.texts import Tokens, read_texts
from engineworks.steps.device_readings import Device
from engineworks.steps.job import StepJob
from engineworks.steps.measure import AFTER, LOADING
from engineworks.steps.shape_measurements import NO_COPIES

MIB = 2**20

STEPS_ALONE = 20
"""Steps that are timed one stream at a time, the second half counts: a few are enough to tell several times as long."""


def run(job: StepJob) -> None:
    """Write `latency.json` as `steps.measure` does; each shape with the figures of `measure_shape` besides."""
    with verified_engine(job.inputs["build"]) as engine:  # not part of the time to load
        job.write(Latency.from_json(_measure(job, engine), f"{job.id}: {Latency.FILE}"))


def _measure(job: StepJob, engine: VerifiedEngine) -> dict[str, Any]:
    target = job.params["target"]
    runner = runner_of(target)
    for module in backend(target["backend"]).IMPORTS:
        importlib.import_module(module)
    device, long = Device(runner), read_texts(job.path("evaluation")).long
    cache = job.path("cache") if "cache" in job.unkeyed else None
    shapes: dict[str, Any] = {}
    load_ms, notes = 0.0, list[str]()
    for name, asked in sorted(job.params["at"].items(), key=lambda item: _positions(item[1]["dims"])):
        device.take(LOADING)
        start = time.perf_counter()
        try:
            session = _open(job, engine, asked["dims"]["streams"], cache)
        except RunError as error:  # such as a GPU that has no room for so many streams
            error.message = f"{name}: {error.message}"
            raise
        load_ms = load_ms or 1000 * (time.perf_counter() - start)
        with closing(session):
            shapes[name] = measure_shape(session, asked, long, device, name)
            notes += session.notes
        notes += _together_or_not(job, engine, name, asked["dims"], long, shapes[name]["latency_ms_p50"])
        shapes[name] |= _cache_measurements(session.interface, shapes[name], device.meter.total_mib())
        job.echo(
            f"{name}: first token {shapes[name]['first_token_ms']:.2f} ms, "
            f"{shapes[name]['tokens_per_s']:.1f} tokens/s in all"
        )
    sweep = [_point(job, engine, point, long, device) for point in job.params["sweep"]]
    device.take(AFTER)
    return {
        "load_ms": load_ms, "engine_mib": engine.sidecar.bytes / MIB,
        "memory_total_mib": device.meter.total_mib() or None,
        "shapes": {name: shapes[name] for name in job.params["at"]}, "sweep": sweep,
        "serving": job.params["serving"], "disturbed_before": job.params.get("disturbed_before", 0),
        "notes": list(dict.fromkeys(notes)), "facts": {}, "load_complaints": device.complaints(LOADING),
        "device": device.to_json(), "loads": {},
    }  # fmt: skip


def _open(job: StepJob, engine: VerifiedEngine, streams: int, cache: Path | None = None) -> DecoderSession:
    serving = Serving.from_json(job.params["serving"])
    return open_decoder(engine, job.params["target"], streams, serving=serving, cache=cache)


def _together_or_not(
    job: StepJob, engine: VerifiedEngine, name: str, at: Mapping[str, int], long: Tokens, together_ms: float
) -> list[str]:
    """Return what the engine's parts for several streams gain at this shape; nothing where it has none or one stream
    steps alone anyway."""
    single = one_by_one(engine)
    if single is None or at["streams"] == 1:
        return []
    with closing(_open(job, single, at["streams"])) as session:
        alone_ms = median(TimedShape(session, at, long).steps(STEPS_ALONE).host_ms[STEPS_ALONE // 2 :])
    how = "" if together_ms < alone_ms else ": the parts for several streams gain nothing on this device"
    return [f"{name}: a step takes {together_ms:.3g} ms together, {alone_ms:.3g} ms one stream at a time{how}"]


def _point(
    job: StepJob, engine: VerifiedEngine, point: Mapping[str, Any], long: Tokens, device: Device
) -> dict[str, Any]:
    """Measure a pair of the sweep, briefly. One that cannot run, as for lack of memory, is a point with `error`."""
    dims = point["dims"]
    name = f"{dims['streams']} × {dims['prompt']} tokens"
    try:
        session = _open(job, engine, dims["streams"])
    except RunError as error:
        return {**point, "error": error.message}
    with closing(session):
        found = measure_shape(session, point, long, device, name, steps=BRIEF)
    job.echo(f"{name}: first token {found['first_token_ms']:.2f} ms, {found['tokens_per_s']:.1f} tokens/s in all")
    return found


def measure_shape(
    session: PromptRunner, asked: Mapping[str, Any], long: Tokens, device: Device, name: str,
    steps: Sampling | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return latency_ms_* (of one step: a token of every stream), first_token_ms_* (the prompt of every stream, until
    their first tokens are known), tokens_per_s of all streams, prefill_tokens_per_s, and the common figures."""
    begin, at = time.monotonic(), asked["dims"]
    streams = at["streams"]
    timed = TimedShape(session, at, long)
    device.meter.reset()
    first_run_ms = timed.prompts(1).host_ms[0]
    prefill = sample_runs(timed.prompts, BRIEF)
    device.take(name)
    report = measure_latency(timed.steps, streams, steps or Sampling(max_s=3.0, tail=asked["tail"]))
    device.take(name)
    first = percentiles("first_token_ms", prefill.host_ms)
    middle = quantile(sorted(prefill.host_ms), 0.5)
    return {
        **vars(report), **NO_COPIES, **first, "first_token_ms": middle,
        "first_token_samples": rounded(prefill.host_ms),
        "prefill_tokens_per_s": 1000 * streams * at["prompt"] / middle,
        "tokens_per_s": report.throughput_per_s, "tokens_per_s_stream": report.throughput_per_s / streams,
        "first_run_ms": first_run_ms, "streams": [], **asked,
        "memory_mib": device.added_mib(), "complaints": device.complaints(name),
        "notes": list(report.notes), "seconds": round(time.monotonic() - begin, 3), "cost_ratio": None,
    }  # fmt: skip


def _positions(dims: Mapping[str, int]) -> int:
    return dims["streams"] * (dims["prompt"] + dims["new"])


class TimedShape:
    """Times prompts and steps of all streams at one shape: `prompt` tokens each, then `new` tokens, again and again."""

    def __init__(self, session: PromptRunner, at: Mapping[str, int], long: Tokens) -> None:
        self._session, self._new = session, at["new"]
        self._prompts = {s: np.roll(long, s)[: at["prompt"]] for s in range(at["streams"])}
        self._next = np.array([prompt[-1] for prompt in self._prompts.values()])
        self._left = 0

    def prompts(self, runs: int) -> RunTimes:
        times = []
        for _ in range(runs):
            self._session.reset()
            start = time.perf_counter_ns()
            for logits in self._session.last_logits(self._prompts).values():
                logits.argmax()
            times.append((time.perf_counter_ns() - start) / 1e6)
        self._left = self._new
        return RunTimes(tuple(times), on_host=True)

    def steps(self, runs: int) -> RunTimes:
        times = []
        for _ in range(runs):
            if not self._left:
                self.prompts(1)
            start = time.perf_counter_ns()
            self._session.next_step(self._next)
            times.append((time.perf_counter_ns() - start) / 1e6)
            self._left -= 1
        return RunTimes(tuple(times), on_host=True)


def _cache_measurements(interface: DecoderInterface, shape: Mapping[str, Any], total_mib: float) -> dict[str, Any]:
    """Return the cache's bytes per token and stream, and how many streams fit into the memory beside the rest."""
    item = {"float16": 2, "bfloat16": 2}.get(interface.caches[0].dtype, 4)
    per_token = interface.values_per_token * item
    stream_mib = per_token * interface.context / MIB
    rest = max(0.0, shape["memory_mib"] - stream_mib * shape["dims"]["streams"])
    fit = int((total_mib - rest) / stream_mib) if total_mib else None
    return {"cache_bytes_per_token": per_token, "cache_mib_per_stream": stream_mib, "streams_that_fit": fit}
