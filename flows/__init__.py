"""Prefect flows: order, fan-out, retries and where a step runs; what a step does is in `engineworks`."""

from __future__ import annotations

from engineworks.host.collector import collect_apart

collect_apart()  # in every process that runs a flow, threads of Prefect and of MLflow parse at the same time
