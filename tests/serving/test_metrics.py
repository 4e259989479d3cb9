"""Triton's metrics: the page of a 24.10 server, and what follows from two readings."""

from __future__ import annotations

import os

import pytest

from engineworks.serving import metrics
from engineworks.serving.metrics import read_metrics, scrape, watching

PAGE = """# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="net",version="1"}} {requests}
nv_inference_request_success{{model="other",version="1"}} 7
nv_inference_request_failure{{model="net",reason="OTHER",version="1"}} 1
nv_inference_request_failure{{model="net",reason="REJECTED",version="1"}} 2
nv_inference_queue_duration_us{{model="net",version="1"}} {queue}
nv_inference_request_summary_us{{model="net",version="1",quantile="0.5"}} 631
nv_inference_request_summary_us{{model="net",version="1",quantile="0.99"}} 948
nv_gpu_utilization{{gpu_uuid="GPU-1"}} {busy}
nv_gpu_memory_used_bytes{{gpu_uuid="GPU-1"}} 2097152
nv_cpu_utilization Nan
not a metric
"""


def test_a_page_is_summed_by_metric_for_the_model_alone() -> None:
    found = read_metrics(PAGE.format(requests=300, queue=7315, busy=0.5), "net")
    assert found["nv_inference_request_success"] == 300
    assert found["nv_inference_request_failure"] == 3
    assert found["nv_inference_request_summary_us"] == 948
    assert "not" not in found


def test_the_run_is_what_grew_between_its_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [PAGE.format(requests=300, queue=0, busy=0), PAGE.format(requests=500, queue=400_000, busy=1)]
    monkeypatch.setattr(metrics, "scrape", lambda _: pages.pop(0))
    monkeypatch.setattr(metrics, "EVERY_S", 60.0)
    with watching("127.0.0.1:8002", "net", lambda: [os.getpid()]) as watched:
        pass
    found = watched.summary()
    assert (found["readings"], found["requests"], found["failures"]) == (2, 200, 0)
    assert (found["queue_ms"], found["p99_ms"], found["gpu_busy"], found["gpu_mib"]) == (2.0, 0.948, 0.5, 2.0)
    assert found["memory_mib"] > 1
    assert found["compute_ms"] is None


@pytest.mark.parametrize("address", ["", "127.0.0.1:1", "127.0.0.1:none"])
def test_a_server_without_metrics_tells_nothing(address: str) -> None:
    assert scrape(address) == ""
    with watching(address, "net") as watched:
        pass
    assert {v for k, v in watched.summary().items() if k != "readings"} == {None}
