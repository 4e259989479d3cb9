"""`engineworks sync`: send pending results to MLflow and the store."""

from __future__ import annotations

import typer

from engineworks import errors
from engineworks.commands.options import Json, Quiet
from engineworks.report import terminal
from engineworks.settings import read_settings


def sync(as_json: Json = False, quiet: Quiet = False) -> None:
    """Send pending results to MLflow and the store. The next build does it too.

    Examples:
        engineworks sync
    """
    from engineworks.store.shared import open_store
    from engineworks.tracking.runs import open_tracking
    from engineworks.tracking.sending import send_waiting

    settings = read_settings()
    store = open_store(settings)
    published = store.publish_waiting()
    sent = send_waiting(open_tracking(settings.artifacts, settings.tracking_uri), settings.artifacts)
    if as_json:
        terminal.print_json({**sent.to_json(), "published": published, "outage": store.outage})
    elif not quiet:
        for run in sent.builds.values():
            terminal.echo(f"sent to MLflow: run {run}")
        for message in sent.left:
            terminal.echo(f"still waits: {message}")
        if published:
            terminal.echo(f"published in {settings.store}: {published} results")
        if store.outage:
            terminal.echo(f"still waits: {store.outage}")
        if not (sent.builds or sent.left or published or store.outage):
            terminal.echo("nothing waits to be sent")
    if sent.left or store.outage:
        raise typer.Exit(errors.EXIT_STEP_FAILED)
