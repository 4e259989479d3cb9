"""A night's summary → MLflow, a Prefect artifact, and Prometheus if the environment names one."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from engineworks.report.night.page import render_night
from engineworks.report.night.publish import publish_metrics, record_summary
from engineworks.report.night.summary import Summary
from engineworks.settings import Settings
from engineworks.tracking.runs import open_tracking

ARTIFACT = "nightly-summary"
"""Key of the Prefect artifact: its page shows every night."""


@task(name="publish summary", task_run_name="publish summary", cache_policy=NO_CACHE)
def publish_summary(summary: Summary, settings: Settings) -> tuple[str, ...]:
    """Publish the summary. Returns what could not be published, one reason each: it fails no night.

    Raises `TrackingError` without MLflow, after publishing everything else.
    """
    create_markdown_artifact(
        render_night(summary), key=ARTIFACT, description=f"{summary.at:%Y-%m-%d}: {summary.verdict}"
    )
    missed = publish_metrics(summary)
    record_summary(summary, open_tracking(settings.artifacts, settings.tracking_uri))
    return missed
