"""Prefect flows: order, fan-out, retries and where a step runs; `engineworks` implements the steps."""

from __future__ import annotations

from engineworks.host.collector import collect_apart

collect_apart()  # threads of Prefect and of MLflow parse at the same time in every process that runs a flow
