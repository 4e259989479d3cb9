"""Publishes a night's summary outside Prefect: to MLflow, and to Prometheus by a file or a push gateway."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from engineworks.errors import EngineworksError
from engineworks.report.night.metrics import push_metrics, write_metrics
from engineworks.report.night.page import render_night
from engineworks.report.night.summary import NIGHT_JSON, NIGHT_PAGE, Summary
from engineworks.tracking.runs import Tracking

TEXTFILE, GATEWAY = "ENGINEWORKS_METRICS_FILE", "ENGINEWORKS_PUSH_GATEWAY"
"""Environment: a *.prom file in the textfile collector's folder; host:port or URL of a push gateway."""


def record_summary(summary: Summary, tracking: Tracking) -> str:
    """A run of its own in MLflow, which the next night is compared with; returns its id. Raises `TrackingError`."""
    texts = {NIGHT_JSON: summary.to_json_text(), NIGHT_PAGE: render_night(summary)}
    tags = {"engineworks.verdict": summary.verdict, "mlflow.note.content": render_night(summary)}
    return tracking.record_night(summary.metrics(), tags, texts)


def publish_metrics(summary: Summary, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Write and push where the environment names a place; returns a message per failure."""
    env = os.environ if environ is None else environ
    ways: dict[str, Callable[[str], None]] = {
        TEXTFILE: lambda place: write_metrics(summary, Path(place)),
        GATEWAY: lambda place: push_metrics(summary, place),
    }
    missed = []
    for name, publish in ways.items():
        if place := env.get(name):
            try:
                publish(place)
            except EngineworksError as error:
                missed.append(str(error))
    return tuple(missed)
