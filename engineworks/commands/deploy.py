"""`engineworks deploy`: work pools, deployments and automations of nightly builds on a Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.options import Json, Quiet
from engineworks.report import terminal


def deploy(
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder of the recipes and of _targets.yaml.")] = Path(
        "recipes"
    ),
    cron: Annotated[str, typer.Option("--cron", help="When the nightly starts, in UTC.")] = "0 2 * * *",
    pools_only: Annotated[bool, typer.Option("--pools-only", help="Work pools alone; then: prefect deploy --all.")] = (
        False
    ),
    notify: Annotated[
        str,
        typer.Option(
            "--notify",
            metavar="BLOCK",
            help="Tell of failed nights by this notification block, e.g. slack-webhook/team.",
        ),
    ] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create or update work pools, deployments and automations on a Prefect server.

    The server is the one that PREFECT_API_URL names.

    Examples:
        engineworks deploy
        engineworks deploy --notify slack-webhook/team
    """
    from importlib.metadata import entry_points

    from engineworks.errors import InputError
    from engineworks.recipe.load import load_targets

    entries = list(entry_points(group="engineworks.flows", name="deploy"))
    if not entries:
        raise InputError("the flows are not installed", hint="run 'make setup', or pip install -e .")
    lines = entries[0].load()(load_targets(recipes), Path.cwd(), cron=cron, pools_only=pools_only, notify=notify)
    if as_json:
        terminal.print_json({"made": lines})
    elif not quiet:
        for line in lines:
            terminal.echo(line)
