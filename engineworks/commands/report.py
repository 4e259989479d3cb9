"""`engineworks report`: the page of a recorded build."""

from __future__ import annotations

from typing import Annotated

import typer

from engineworks.commands.completion import recorded_names
from engineworks.commands.options import Json
from engineworks.report import terminal
from engineworks.settings import read_settings


def report(
    run: Annotated[
        str,
        typer.Argument(
            help="Run id of a build or an engine; or a recipe's name: its newest build.", autocompletion=recorded_names
        ),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page as Markdown, for a pull request.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write the page of a recorded build again, and print its path.

    Examples:
        engineworks report digits
        engineworks report digits --markdown
    """
    from engineworks.builds.from_mlflow import read_build
    from engineworks.builds.recorded import build_of, find_run, read_json, recorded
    from engineworks.report.gather import gather_background
    from engineworks.report.write import MARKDOWN_FILE, write_report
    from engineworks.tracking.records import PLAN_FILE

    settings = read_settings()
    tracking = recorded(settings)
    build = build_of(tracking, find_run(tracking, run))
    result = read_build(tracking, build)
    background = gather_background(result, read_json(tracking, build.run_id, PLAN_FILE) or {}, tracking)
    page = write_report(result, settings.runs / build.run_id, background)
    twin = page.with_name(MARKDOWN_FILE)
    if as_json:
        terminal.print_json({"run": build.run_id, "html": str(page), "markdown": str(twin)})
    elif markdown:
        terminal.echo(twin.read_text(encoding="utf-8").rstrip("\n"))
    else:
        terminal.echo(str(page))
    if show:
        typer.launch(page.as_uri())
