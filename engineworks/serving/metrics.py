"""Triton's Prometheus metrics, scraped while requests are answered.

Names: triton-inference-server/server, docs/user_guide/metrics.md. Counters are of one model, in microseconds where
their names end in `_us`; GPU utilization is 0 to 1.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from engineworks.host.memory import proportional_kib
from engineworks.host.triton import http_get

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
