"""Publishes a night's summary outside Prefect: to MLflow, and to Prometheus by a file or a push gateway.

Metrics follow Prometheus' naming practices: base units, one prefix, the unit in the name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.errors import EngineworksError, InputError, StoreError
from engineworks.report.night.page import render_night
from engineworks.report.night.summary import NIGHT_JSON, NIGHT_PAGE, Summary
from engineworks.tracking.runs import Tracking

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


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


JOB = "engineworks_nightly"
PUSH_S = 10.0
"""Seconds that a push gateway may take."""

ENGINE = ("recipe", "precision", "target")


FIGURES = {
    "latency_ms_p50": ("engine_latency_p50_seconds", "Median at the first named shape.", 1e-3),
    "throughput_per_s": ("engine_samples_per_second", "At the first named shape.", 1.0),
    "metric": ("engine_task_metric", "The recipe's metric on the evaluation data.", 1.0),
    "bytes": ("engine_size_bytes", "Size of the engine.", 1.0),
    "served_ready_s": ("served_ready_seconds", "From the load until the served package answers.", 1.0),
    "served_per_s": ("served_requests_per_second", "Answered under the load, or the largest rate found.", 1.0),
    "served_p99_ms": ("served_latency_p99_seconds", "99% latency of served answers.", 1e-3),
    "served_gpu_busy": ("served_gpu_busy_ratio", "Share of time that the GPU was busy under the load.", 1.0),
    "served_gpu_mib": ("served_gpu_memory_bytes", "GPU memory under the load.", 2.0**20),
    "served_memory_mib": ("served_memory_bytes", "Memory of the server's processes under the load.", 2.0**20),
}
"""Metrics of engines and their served packages: name, words and scale by the key in a night."""


def write_metrics(night: Summary, file: Path) -> None:
    """Replace `file` at once, as the textfile collector wants it (its name must end in .prom).

    Raises `InputError` for another name, `StoreError` where it cannot be written.
    """
    if file.suffix != ".prom":
        raise InputError(f"{file}: the textfile collector reads *.prom alone", hint="name it engineworks.prom")
    registry = night_registry(night)
    from prometheus_client import write_to_textfile

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(file), registry)
    except OSError as error:
        raise StoreError(f"metrics cannot be written to {file}: {error.strerror}") from error


def push_metrics(night: Summary, gateway: str) -> None:
    """Replace what the push gateway (host:port or URL) has of this job. Raises `StoreError` where that fails."""
    registry = night_registry(night)
    from prometheus_client import push_to_gateway

    try:
        push_to_gateway(gateway, job=JOB, registry=registry, timeout=PUSH_S)
    except OSError as error:  # urllib's errors are some
        raise StoreError(f"the push gateway {gateway} did not take the metrics: {error}") from error


def night_registry(night: Summary) -> CollectorRegistry:
    """A registry of its own, so that nothing of this process is in it."""
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise InputError("prometheus-client is not installed", hint="pip install 'engineworks[prometheus]'") from None
    registry = CollectorRegistry()
    _add_night(registry, night)
    _add_recipes(registry, night)
    _add_engines(registry, night)
    return registry


def _gauge(registry: CollectorRegistry, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Any:
    from prometheus_client import Gauge

    return Gauge(f"engineworks_{name}", documentation, labels, registry=registry)


def _add_night(registry: CollectorRegistry, night: Summary) -> None:
    _gauge(registry, "night_end_timestamp_seconds", "When the last night ended.").set(night.at.timestamp())
    _gauge(registry, "night_duration_seconds", "What the last night took.").set(night.seconds)
    _gauge(registry, "night_changes", "What is not as it was the night before.").set(len(night.changes or ()))
    engines = _gauge(registry, "engines", "Engines by what their night ended in.", ("verdict",))
    for verdict in ("pass", "fail", "failed", "inconclusive", "unmeasured", "refused"):
        engines.labels(verdict).set(night.counts.get(verdict, 0))
    _gauge(registry, "engines_not_in_night", "Engines that the last night left out.").set(len(night.not_part))


def _add_recipes(registry: CollectorRegistry, night: Summary) -> None:
    took = _gauge(registry, "recipe_duration_seconds", "What the build of a recipe took.", ("recipe",))
    steps = _gauge(registry, "recipe_steps", "Steps of a recipe by how they went.", ("recipe", "how"))
    error = _gauge(registry, "recipe_without_result", "1 where a recipe has no result.", ("recipe",))
    part = _gauge(registry, "recipe_in_night", "0 where the last night left a recipe out: as it was last.", ("recipe",))
    for recipe in night.absent:  # leaving a recipe out fixes nothing
        part.labels(recipe["recipe"]).set(0)
        error.labels(recipe["recipe"]).set(bool(recipe["error"]))
    for recipe in night.recipes:
        part.labels(recipe["recipe"]).set(1)
        took.labels(recipe["recipe"]).set(recipe["seconds"])
        error.labels(recipe["recipe"]).set(bool(recipe["error"]))
        for how in ("run", "reused", "failed"):
            steps.labels(recipe["recipe"], how).set(recipe["steps"].get(how, 0))
    kinds = _gauge(
        registry, "step_duration_seconds", "Time of the steps that ran, by recipe and step.", ("recipe", "step")
    )
    for step in night.rebuilt:
        kinds.labels(step["id"].partition("/")[0], step["id"].rpartition("/")[2]).inc(step["seconds"])


def _add_engines(registry: CollectorRegistry, night: Summary) -> None:
    documentation = "1 for the verdict that the engine has, or had last where it is not part of the night."
    verdict = _gauge(registry, "engine_verdict", documentation, (*ENGINE, "verdict"))
    values = {key: (_gauge(registry, name, words, ENGINE), scale) for key, (name, words, scale) in FIGURES.items()}
    for engine in (*night.not_part, *night.engines):
        names = engine["id"].split("/")
        verdict.labels(*names, engine["verdict"]).set(1)
        for key, (gauge, scale) in values.items():
            if engine.get(key) is not None:  # nights before 0.1.0 have no served figures
                gauge.labels(*names).set(engine[key] * scale)
