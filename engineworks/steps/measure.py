"""The stored engine → load time, latency and memory at the recipe's named shapes and batches, alone on its device."""

from __future__ import annotations

import importlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import Serving, Session
from engineworks.engines.engine_session import load_verified, runner_of
from engineworks.engines.verified import VerifiedEngine, verified_engine
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.measure.latency import LAZY_KERNELS, Sampling, never
from engineworks.measure.latency_report import Latency
from engineworks.recipe.batch import samples_per_run
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.device_readings import Device
from engineworks.steps.job import StepJob
from engineworks.steps.layer_times import write_layers
from engineworks.steps.shape_measurements import measure_shape
from engineworks.tensors import TensorSpec, spec_from_json

LOADING, AFTER = "while loading", "at the end"
"""Keys of device readings among the shapes; names of shapes hold no space."""


def run(job: StepJob) -> None:
    """Write `latency.json`: load_ms, engine_mib, memory_total_mib; `shapes` by name and `sweep` by batch, each with the
    metrics of `measure_shape`, memory_mib and the device's complaints.

    Also `serving`, and the session's notes and facts; load_complaints; `device` with every reading and the complaints
    of all shapes; `loads`, with and without the device's cache where it has one; `disturbed_before`, the earlier noisy
    measurements.

    `layers.json`: time per layer at the first named shape (`measure.layers`).
    """
    with verified_engine(job.inputs["build"]) as engine:  # not part of the time to load
        with tempfile.TemporaryDirectory(prefix="cache-") as new:
            report = _measure(job, engine, Path(new) if _cache(job) else None)
        job.write(Latency.from_json(report | {"loads": _loads(job, engine)}, f"{job.id}: {Latency.FILE}"))
    if job.params["at"]:
        write_layers(job, report["shapes"][next(iter(job.params["at"]))]["latency_ms_p50"])


def _measure(job: StepJob, engine: VerifiedEngine, cache: Path | None) -> dict[str, Any]:
    """Measure all but `loads`. cache: a new one, so that nothing depends on earlier sessions."""
    target = job.params["target"]
    runner = runner_of(target)
    for module in backend(target["backend"]).IMPORTS:  # new process: loading starts after these imports
        importlib.import_module(module)
    device = Device(runner)
    device.take(LOADING)
    start = time.perf_counter()
    session = _load(job, engine, cache)
    load_ms = 1000 * (time.perf_counter() - start)
    device.take(LOADING)
    with closing(session):
        measured = NamedShapes(job, session, device).measure()
        report = {
            "load_ms": load_ms,
            "engine_mib": engine.sidecar.bytes / 2**20,
            "memory_total_mib": device.meter.total_mib() or None,
            "shapes": {name: measured[name] for name in job.params["at"]},
            "sweep": [measured[_batch_name(point)] for point in job.params["sweep"]],
            "serving": job.params["serving"],
            "disturbed_before": job.params.get("disturbed_before", 0),
            "notes": list(session.notes),
            "facts": dict(session.facts),
        }
    load_complaints = device.complaints(LOADING)
    device.take(AFTER)
    return report | {"load_complaints": load_complaints, "device": device.to_json()}


def _cache(job: StepJob) -> Path | None:
    cache = job.unkeyed.get("cache")
    return Path(cache) if cache else None


def _load(job: StepJob, engine: VerifiedEngine, cache: Path | None) -> Session:
    serving = Serving.from_json(job.params["serving"])
    return load_verified(engine, job.params["target"], serving=serving, cache=cache)


def _loads(job: StepJob, engine: VerifiedEngine) -> dict[str, dict[str, float]]:
    """Measure loading with and without the device's cache, at the first named shape; {} without a cache."""
    cache, at = _cache(job), next(iter(job.params["at"].values()), None)
    if cache is None or at is None:
        return {}
    specs = tuple(spec_from_json(s) for s in job.params["inputs"])
    feeds = feeds_at(specs, samples_from_json(job.paths("evaluation"), job.params["samples"]), at["dims"])
    return measure_loads(partial(_load, job, engine), feeds, cache)


def _batch_name(point: Mapping[str, Any]) -> str:
    """Return a name with a space, which no named shape has."""
    return f"batch {point['batch']}"


class NamedShapes:
    """All shapes of one session, small ones first, because a large shape's memory may never be freed.

    Reads `at`, `sweep`, `streams`, `inputs` and `samples` of the job.
    """

    def __init__(self, job: StepJob, session: Session, device: Device) -> None:
        self._job, self._session, self._device = job, session, device
        self._specs = tuple(spec_from_json(s) for s in job.params["inputs"])
        self._samples = samples_from_json(job.paths("evaluation"), job.params["samples"])
        self._done: dict[str, tuple[str, dict[str, Any]]] = {}

    def measure(self) -> dict[str, dict[str, Any]]:
        """Measure the named shapes by name, and the sweep's by `_batch_name`; equal shapes are measured once."""
        sweep = {_batch_name(point): point for point in self._job.params["sweep"]}
        wanted = [*self._job.params["at"].items(), *sweep.items()]
        measured = {}
        for name, at in sorted(wanted, key=lambda item: _elements(self._specs, item[1]["dims"])):
            measured[name] = self._sweep_point(name, at) if name in sweep else self._named(name, at)
        return measured

    def _named(self, name: str, at: Mapping[str, Any]) -> dict[str, Any]:
        values = {**self._values(name, at), **at}
        self._done[repr(sorted(at["dims"].items()))] = (name, values)
        self._job.echo(f"{name}: p50 {values['latency_ms_p50']:.4f} ms over {values['runs']} runs")
        return values

    def _sweep_point(self, name: str, at: Mapping[str, Any]) -> dict[str, Any]:
        """Measure a sweep's batch. One that cannot run, for example for lack of memory, is a point with `error`."""
        shape, values = self._done.get(repr(sorted(at["dims"].items())), ("", {}))
        if values:
            return {**{k: v for k, v in values.items() if not k.endswith("samples")}, **at, "shape": shape}
        try:
            values = self._values(name, at)
        except RunError as error:
            self._job.echo(f"batch {at['batch']}: {error.message}")
            return {**at, "error": error.message}
        self._job.echo(f"batch {at['batch']}: {values['throughput_per_s']:.0f} samples/s")
        return {**values, **at}

    def _values(self, name: str, at: Mapping[str, Any]) -> dict[str, Any]:
        """Measure one shape. The sweep's runs are one at a time only."""
        feeds = feeds_at(self._specs, self._samples, at["dims"])
        self._device.meter.reset()
        values = measure_shape(
            self._session,
            feeds,
            samples_per_run(self._specs, at["dims"]),
            sampling=sampling_of(self._session.facts, tail=at["tail"]),
            streams=() if "batch" in at else self._job.params["streams"],
            look=partial(self._device.take, name),
            peak_mib=self._device.meter.peak_mib,
            at_work=BackgroundWork() if is_lazy(self._session.facts) else never,
        )
        memory_mib = self._device.added_mib(values.pop("peak_mib"))
        return {**values, "memory_mib": memory_mib, "complaints": self._device.complaints(name)}


def sampling_of(facts: Mapping[str, object], *, tail: bool) -> Sampling:
    """Return how long to sample a session with such facts: long enough for specialized kernels that come later."""
    return replace(LAZY_KERNELS if is_lazy(facts) else Sampling(), tail=tail)


def is_lazy(facts: Mapping[str, object]) -> bool:
    """Return whether a session with such facts gets better kernels while it runs."""
    return facts.get("kernels") == "lazy"


def _elements(specs: Sequence[TensorSpec], dims: Mapping[str, int]) -> int:
    return sum(math.prod(spec.concrete(dims)) for spec in specs)


AT_WORK = 0.25
"""Minimum share of one core that counts as work. A compiler takes a core or more, a waiting thread some percent."""


class BackgroundWork:
    """Tells whether other threads of this process worked since the last call: TensorRT-RTX compiles specialized kernels
    in some. Only for the measuring thread."""

    def __init__(self) -> None:
        self._wall, self._others = time.monotonic(), _others_s()

    def __call__(self) -> bool:
        wall, others = time.monotonic(), _others_s()
        share = (others - self._others) / max(wall - self._wall, 1e-9)
        self._wall, self._others = wall, others
        return share >= AT_WORK


def _others_s() -> float:
    """Return the processor seconds of all threads of this process except this one."""
    return time.process_time() - time.thread_time()


Load = Callable[[Path | None], Session]
"""The cache's folder, or None for a load without it → a session."""


def measure_loads(load: Load, feeds: dict[str, Array], cache: Path) -> dict[str, dict[str, float]]:
    """Measure `without_cache` and `with_cache`, each load_ms and first_run_ms (the first run at this shape, with
    compilation), in ms.

    feeds: one run's inputs by name, with the shapes and dtypes of the engine's inputs. Libraries are loaded already:
    both are the costs of a process's second engine.
    """
    without = _timed(load, feeds, None)
    _timed(load, feeds, cache)  # fills the cache as a session of this shape alone would
    return {"without_cache": without, "with_cache": _timed(load, feeds, cache)}


def _timed(load: Load, feeds: dict[str, Array], cache: Path | None) -> dict[str, float]:
    start = time.perf_counter()
    session = load(cache)
    loaded = time.perf_counter()
    with closing(session):
        session.run(feeds)
        ran = time.perf_counter()
    return {"load_ms": 1000 * (loaded - start), "first_run_ms": 1000 * (ran - loaded)}
