"""Load on a served model by MLPerf's load generator (`mlcommons-loadgen`), over gRPC.

LoadGen decides when a request is sent: in its Server scenario at random (Poisson arrivals at a rate), in Offline all at
once. It also judges whether the percentile is known well enough ("early stopping").
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from engineworks.errors import InputError
from engineworks.measure.statistics import quantile
from engineworks.serving.answers import Question
from engineworks.serving.client import Client

Scenario = Literal["server", "offline"]

SEED = 0x5EED
"""Of LoadGen's schedule: the same in every run, so that two settings get the same arrivals."""

MOST_IN_FLIGHT = 2048
"""Requests without an answer at which sending waits: an overloaded server must not exhaust this host."""


@dataclass(frozen=True)
class Offer:
    """What is asked of a model: queries a second for some seconds, and the limit of their 99% latency in ms."""

    qps: float
    p99_ms: float
    seconds: float
    scenario: Scenario = "server"


def require_loadgen() -> None:
    """Raises `InputError` where LoadGen is not installed."""
    if find_spec("mlperf_loadgen") is None:
        raise InputError("MLPerf's load generator is not installed", hint="pip install 'engineworks[serving]'")


def offer_load(address: str, model: str, asked: Sequence[Question], offer: Offer) -> dict[str, Any]:
    """Offer the load; returns latencies in ms, rates per second, LoadGen's own result, errors, and the batches that the
    server ran ("batches": how many executions by size).

    asked: the queries, one of them at a time, each of one row.
    """
    require_loadgen()
    with Client(address, "grpc") as client:
        before = _batches(client, model)
        run = _Run(client, model, asked)
        summary = run.follow(offer)
        after = _batches(client, model)
    latencies = sorted(run.latencies_ms)
    batches = {size: count - before.get(size, 0) for size, count in after.items() if count > before.get(size, 0)}
    return {
        "scenario": offer.scenario, "qps": offer.qps, "limit_p99_ms": offer.p99_ms, "seconds": round(run.seconds, 3),
        "queries": len(latencies), "errors": run.errors, "first_error": run.first_error,
        "completed_per_s": len(latencies) / run.seconds if run.seconds else 0.0,
        **{f"latency_ms_p{int(100 * q)}": quantile(latencies, q) if latencies else None for q in (0.5, 0.9, 0.99)},
        "loadgen": summary, "batches": {str(size): count for size, count in sorted(batches.items())},
    }  # fmt: skip


class _Run:
    """One run of LoadGen: it calls `_issue` from its own thread, and answers arrive in gRPC's."""

    def __init__(self, client: Client, model: str, asked: Sequence[Question]) -> None:
        self._client, self._model = client, model
        self._inputs = [client.inputs(question.feeds) for question in asked]
        self._room = threading.Semaphore(MOST_IN_FLIGHT)
        self._lock = threading.Lock()
        self.latencies_ms: list[float] = []
        self.errors, self.first_error, self.seconds = 0, "", 0.0

    def follow(self, offer: Offer) -> dict[str, Any]:
        import mlperf_loadgen as loadgen

        settings, logs = loadgen.TestSettings(), loadgen.LogSettings()
        server = offer.scenario == "server"
        settings.scenario = loadgen.TestScenario.Server if server else loadgen.TestScenario.Offline
        settings.mode = loadgen.TestMode.PerformanceOnly
        settings.min_duration_ms = int(1000 * offer.seconds)
        settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = SEED
        if server:
            settings.server_target_qps = offer.qps
            settings.server_target_latency_ns = int(1e6 * offer.p99_ms)
            settings.server_target_latency_percentile = 0.99
            settings.min_query_count = 1
        else:
            settings.offline_expected_qps = offer.qps
            settings.min_query_count = 1
        with tempfile.TemporaryDirectory(prefix="engineworks-loadgen-") as folder:
            logs.log_output.outdir, logs.log_output.copy_summary_to_stdout, logs.enable_trace = folder, False, False
            under_test = loadgen.ConstructSUT(partial(self._issue, loadgen), lambda: None)
            count = len(self._inputs)
            library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
            start = time.perf_counter()
            loadgen.StartTestWithLogSettings(under_test, library, settings, logs)
            self.seconds = time.perf_counter() - start
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(under_test)
            return loadgen_result(Path(folder, "mlperf_log_summary.txt").read_text(encoding="utf-8"))

    def _issue(self, loadgen: Any, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._room.acquire()
            done = partial(self._done, loadgen, sample.id, time.perf_counter())
            self._client.send(self._model, self._inputs[sample.index], done)

    def _done(self, loadgen: Any, query: int, sent: float, result: Any, error: Any) -> None:
        latency_ms = 1000 * (time.perf_counter() - sent)
        with self._lock:
            if error is None:
                self.latencies_ms.append(latency_ms)
            else:
                self.errors, self.first_error = self.errors + 1, self.first_error or str(error)
        self._room.release()
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, 0, 0)])


def loadgen_result(summary: str) -> dict[str, Any]:
    """Return LoadGen's verdict ("VALID" or "INVALID"), its reasons, and the early-stopping estimate of the percentile
    in ms, from its summary."""
    result = re.search(r"^Result is : (\w+)", summary, re.MULTILINE)
    reasons = re.findall(r"^ ?\* (.+)$", summary, re.MULTILINE)
    estimate = re.search(r"Early stopping 99th percentile estimate: (\d+)", summary)
    enough = re.search(r"Early Stopping Result:\n \* (.+)", summary)
    return {
        "result": result[1] if result else "none", "reasons": reasons,
        "p99_estimate_ms": int(estimate[1]) / 1e6 if estimate else None,
        "early_stopping": enough[1] if enough else "",
    }  # fmt: skip


def _batches(client: Client, model: str) -> Mapping[int, int]:
    """Return how many executions of each batch size the server has counted."""
    stats = client.statistics(model).get("batch_stats", ())
    return {int(entry["batch_size"]): int(entry["compute_infer"].get("count", 0)) for entry in stats}
