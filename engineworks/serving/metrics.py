"""What is watched while requests are answered: Triton's Prometheus metrics, and what other programs take of the
processor.

Names: triton-inference-server/server, docs/user_guide/metrics.md. Counters are of one model, in microseconds where
their names end in `_us`; GPU utilization is 0 to 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.host.memory import proportional_kib
from engineworks.host.triton import http_get
from engineworks.measure.gates.serving import MOST_OTHERS

EVERY_S = 0.5
"""Seconds between two readings."""

LARGEST_BYTES = 2**22

REQUESTS, FAILURES = "nv_inference_request_success", "nv_inference_request_failure"
QUEUE_US, COMPUTE_US = "nv_inference_queue_duration_us", "nv_inference_compute_infer_duration_us"
EXECUTIONS, SUMMARY_US = "nv_inference_exec_count", "nv_inference_request_summary_us"
GPU_BUSY, GPU_BYTES = "nv_gpu_utilization", "nv_gpu_memory_used_bytes"

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? ([^ ]+)(?: \d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Reading = Mapping[str, float]


def read_metrics(text: str, model: str) -> dict[str, float]:
    """Return the sum of each metric over its series: of the model's alone where they name models, and of the 99%
    quantile alone where they name quantiles."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            labels = dict(_LABEL.findall(match[2] or ""))
            if labels.get("model", model) == model and labels.get("quantile", "0.99") == "0.99":
                with contextlib.suppress(ValueError):
                    found[match[1]] = found.get(match[1], 0.0) + float(match[3])
    return found


def scrape(address: str) -> str:
    """Return the page of metrics at host:port, '' where there is none."""
    return http_get(address, "/metrics", most_bytes=LARGEST_BYTES).decode(errors="replace")


class Watched:
    """Readings of a server, and what follows from them."""

    def __init__(self, address: str, model: str, pids: Callable[[], Iterable[int]]) -> None:
        self._address, self._model, self._pids = address, model, pids
        self._readings: list[Reading] = []
        self._memory_kib, self._start = 0.0, time.monotonic()

    def read(self) -> None:
        self._readings.append(read_metrics(scrape(self._address), self._model) if self._address else {})
        self._memory_kib = max(self._memory_kib, sum(map(proportional_kib, self._pids())))

    def summary(self) -> dict[str, Any]:
        """Return readings, requests, failures, executions, requests_per_s, a request's milliseconds in the queue and in
        the model, Triton's own p99_ms of the last minute, the share of time that the GPU was busy (mean), its memory
        and that of the servers' processes (largest, MiB). None for what the server does not tell."""
        first, last = self._readings[0], self._readings[-1]
        seconds = max(time.monotonic() - self._start, 1e-9)

        def grown(name: str) -> float | None:
            return last[name] - first.get(name, 0.0) if name in last else None

        def each_ms(name: str) -> float | None:
            took = grown(name)
            return took / requests / 1000 if took is not None and requests else None

        requests = grown(REQUESTS)
        busy = [reading[GPU_BUSY] for reading in self._readings if GPU_BUSY in reading]
        gpu = [reading[GPU_BYTES] for reading in self._readings if GPU_BYTES in reading]
        return {
            "readings": len(self._readings), "requests": requests, "failures": grown(FAILURES),
            "executions": grown(EXECUTIONS), "requests_per_s": None if requests is None else requests / seconds,
            "queue_ms": each_ms(QUEUE_US), "compute_ms": each_ms(COMPUTE_US),
            "p99_ms": last[SUMMARY_US] / 1000 if SUMMARY_US in last else None,
            "gpu_busy": sum(busy) / len(busy) if busy else None,
            "gpu_mib": max(gpu) / 2**20 if gpu else None,
            "memory_mib": self._memory_kib / 1024 or None,
        }  # fmt: skip


@contextlib.contextmanager
def watching(address: str, model: str, pids: Callable[[], Iterable[int]] = tuple) -> Iterator[Watched]:
    """Read the metrics at once, every `EVERY_S` and at the end. address: host:port, '' where the server has none. pids:
    the server's processes."""
    watched, stop = Watched(address, model, pids), threading.Event()
    watched.read()

    def work() -> None:
        while not stop.wait(EVERY_S):
            watched.read()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join()
        watched.read()


Ticks = Mapping[str, object]


class OtherWork:
    """The part of all cores that neither this process nor the given ones use. Satisfies `interleave.Watch`.

    pids: returns the servers' processes, which come and go with their models.
    """

    def __init__(self, pids: Callable[[], Iterable[int]] = tuple) -> None:
        self._pids = pids
        self._first = self.sample()

    def sample(self) -> Ticks:
        """Return the host's busy and idle ticks, and those of this process and the servers."""
        busy, idle = _host()
        return {"busy": busy, "idle": idle, "own": _used([os.getpid(), *self._pids()])}

    def share(self) -> float:
        """Return the share since this object was made, 0 to 1."""
        return _share(self._first, self.sample())

    def complaints(self, readings: Sequence[Ticks]) -> list[str]:
        share = _share(readings[0], readings[-1])
        return [f"other programs took {100 * share:.0f}% of the processor"] if share > MOST_OTHERS else []


def _share(first: Ticks, last: Ticks) -> float:
    busy, idle, own = (float(str(last[k])) - float(str(first[k])) for k in ("busy", "idle", "own"))
    total = busy + idle
    return max(0.0, min(1.0, (busy - max(0.0, own)) / total)) if total > 0 else 0.0


def _used(pids: Iterable[int]) -> float:
    """Ticks that the processes have used (proc(5), fields 14 and 15 of stat)."""
    ticks = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
            fields = stat.rpartition(")")[2].split()
            ticks += float(fields[11]) + float(fields[12])
    return ticks


def _host() -> tuple[float, float]:
    """Busy and idle ticks of all cores (proc(5), the first line of stat)."""
    with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123
        values = [float(v) for v in file.readline().split()[1:9]]
    idle = values[3] + values[4]
    return sum(values) - idle, idle
