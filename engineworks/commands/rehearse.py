"""`engineworks rehearse`: what other versions of packages would change, before they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.options import Json, OneOrMore, Only, Quiet, Verbose, any_of
from engineworks.errors import EXIT_GATE_FAILED
from engineworks.report import terminal
from engineworks.settings import read_settings


def rehearse(
    recipes: OneOrMore,
    with_: Annotated[list[str], typer.Option("--with", help="NAME==VERSION of a package; repeated: several.")],
    only: Only = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build with other package versions, and compare with the present ones.

    Exits 1 if anything is worse. Champions are not touched.

    Examples:
        engineworks rehearse recipes/digits.yaml --with onnxruntime==1.30.0
    """
    from engineworks.builds.progress import listener
    from engineworks.builds.rehearsal import rehearse as run
    from engineworks.report.progress_text import progress
    from engineworks.report.scorecard import write_scorecard

    settings = read_settings()

    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        found = run([Path(p) for p in recipes], with_, settings, listener().echo, only=any_of(only))
    page = write_scorecard(found)
    if as_json:
        terminal.print_json(found.to_json())
    else:
        rows = [(c.engine, c.present, c.rehearsed, "; ".join(c.notes) or "as before") for c in found.changes]
        terminal.print_table(("engine", "present", ", ".join(found.requirements), "change"), rows)
        terminal.echo(f"scorecard: {page}")
    if found.worse:
        raise typer.Exit(EXIT_GATE_FAILED)
