"""A loaded TensorRT or TensorRT-RTX engine: satisfies `base.Session`. Runs need no framework."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engineworks.engines.backends._feeds import checked_feeds, narrowed_feeds
from engineworks.engines.backends._trt_dialect import Dialect, scratch_bytes
from engineworks.engines.backends._trt_lane import Lane
from engineworks.engines.backends._trt_log import RunErrors
from engineworks.engines.backends._trt_tensors import engine_profiles, engine_tensors, given_names
from engineworks.engines.backends.base import RunTimes, TimedLayer
from engineworks.errors import RunError
from engineworks.host.lazy import Array, Arrays
from engineworks.tensors import NARROWED, TensorSpec


class TrtSession:
    """Deserialized once, with one execution context; `throughput` creates more while it runs. Not thread-safe."""

    def __init__(
        self,
        trt: Any,
        loaded: tuple[Any, Any],
        dialect: Dialect,
        errors: RunErrors,
        *,
        graphs: bool,
        known: Sequence[TensorSpec],
    ) -> None:
        """loaded: the vendor's runtime, which must outlive everything else, and the engine. known: the tensors with
        their dimension names, and the inputs with the model's dtypes."""
        self._trt, self._dialect, self._errors, self._graphs = trt, dialect, errors, graphs
        self._runtime, engine = loaded
        self._engine: Any = engine
        self._tensors = engine_tensors(trt, engine, known)
        self._profiles = engine_profiles(engine, self._tensors)
        self.outputs = tuple(t.spec for t in self._tensors if not t.is_input)
        specs = {t.name: t.spec for t in self._tensors if t.is_input}
        self._names = given_names(specs, [spec.name for spec in self.outputs])
        self.inputs = tuple(replace(specs[engine_name], name=name) for name, engine_name in self._names.items())
        declared = {spec.name: spec.dtype for spec in known}
        self._wider = [spec for spec in self.inputs if (spec.dtype, declared.get(spec.name)) in NARROWED]
        self._converted: dict[str, None] = {}
        self._lane: Lane | None = self._new_lane()
        self._free = weakref.finalize(self, self._lane.close)  # CUDA's memory has no owner but its lane
        self._free.atexit = False  # CUDA may be gone by then, and the process takes all with it

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._converted, *self._dialect.notes(), *(self._lane.notes if self._lane else ()))

    @property
    def facts(self) -> Mapping[str, object]:
        graphs = self._lane.graphed if self._lane else False
        scratch = scratch_bytes(self._engine) if self._engine is not None else 0
        return {**self._dialect.facts(), "cuda_graphs": graphs, "scratch_mib": round(scratch / 2**20, 2)}

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run once. feeds: one array per input, in the engine's or the model's wider dtype. Returns all outputs by
        name, in the engine's dtypes. Raises `RunError`."""
        with self._at_work() as lane:
            lane.run(self._arrays(feeds))
            return lane.fetch()

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs in ms after one untimed run. host: from the call to the end of the wait; device: by CUDA
        events. Copies use page-locked memory. Raises `RunError`."""
        host, device = [0.0] * runs, [0.0] * runs
        with self._at_work() as lane:
            lane.run(self._arrays(feeds))
            run = lane.timed_run(copies=copies)
            for i in range(runs):
                host[i], device[i] = run()
        return RunTimes(tuple(host), tuple(device))

    def layer_times(self, feeds: Arrays, runs: int) -> tuple[str, list[TimedLayer]]:
        """Time every layer, without CUDA graphs: by the runtime's profiler, else by its kernels. Raises `RunError`."""
        from engineworks.engines.backends import _trt_layers

        with self._at_work() as lane:
            lane.place(self._arrays(feeds))
            lane.copy_in()
            spent = _trt_layers.time_by_profiler(self._trt, lane.context, lane.plain_run, runs)
            if spent:
                return "the runtime's profiler", _trt_layers.layers_of(self._trt, self._engine, spent)
            return "kernels traced by CUPTI", _trt_layers.time_by_kernels(lane.plain_run, runs)

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        """Return runs per second of `streams` contexts, each with a stream and one run in flight, fed by one thread.
        Inputs and outputs stay on the GPU. Raises `RunError`."""
        arrays = self._arrays(feeds)
        with self._at_work() as first:
            lanes, more = [first], list[Lane]()
            try:
                for _ in range(streams - 1):
                    more.append(self._new_lane())
                lanes += more
                for lane in lanes:
                    lane.place(arrays)
                    lane.copy_in()
                    lane.launch()
                    lane.wait()
                return _race(lanes, seconds)
            finally:
                for lane in more:
                    lane.close()

    def close(self) -> None:
        """Free all GPU memory and save the runtime cache. A second call does nothing.

        A session that is dropped instead, as MLflow drops its models, frees its memory too.
        """
        if self._lane is not None:
            self._dialect.save()
            self._free()
            self._lane = self._engine = self._runtime = None

    def _arrays(self, feeds: Arrays) -> dict[str, Array]:
        """Return the checked feeds in the engine's dtypes, by the engine's names of its inputs."""
        own = narrowed_feeds(self._wider, feeds)
        self._converted |= {
            f"input '{name}' is {given.dtype.name} in the model, {own[name].dtype.name} in the engine: converted "
            "before each run": None
            for name, given in feeds.items()
            if own[name] is not given
        }
        return {self._names[name]: array for name, array in checked_feeds(self.inputs, own).items()}

    def _new_lane(self) -> Lane:
        return Lane(self._trt, self._dialect, self._tensors, self._profiles, self._errors, graphs=self._graphs)

    @contextmanager
    def _at_work(self) -> Iterator[Lane]:
        if self._lane is None:
            raise RunError("this session was closed; load the engine again")
        self._errors.clear()
        yield self._lane


def _race(lanes: Sequence[Lane], seconds: float) -> float:
    done, start = 0, time.perf_counter()
    for lane in lanes:
        lane.launch()
    while time.perf_counter() - start < seconds:
        for lane in lanes:
            if lane.stream.done():
                done += 1
                lane.launch()
    for lane in lanes:
        lane.wait()
    return (done + len(lanes)) / (time.perf_counter() - start)
