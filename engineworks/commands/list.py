"""`engineworks list`: recipes, targets, engines and champions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.completion import one_of
from engineworks.commands.options import Json
from engineworks.errors import InputError, did_you_mean
from engineworks.report import terminal
from engineworks.settings import read_settings


def list_things(
    what: Annotated[
        str | None,
        typer.Argument(
            help="recipes, targets, engines or champions; default: all.",
            autocompletion=one_of("recipes", "targets", "engines", "champions"),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show recipes, targets, engines and champions with their ages.

    Examples:
        engineworks list
        engineworks list engines
    """
    from engineworks.commands.listing import KINDS, make_listing

    if what is not None and what not in KINDS:
        raise InputError(f"'{what}' cannot be listed", hint=did_you_mean(what, KINDS))
    folder = Path("recipes") if Path("recipes").is_dir() else Path()
    settings = read_settings()
    brief = what is None and not as_json
    listings = [make_listing(kind, settings, folder, brief=brief) for kind in ((what,) if what else KINDS)]
    if as_json:
        terminal.print_json({listing.kind: listing.to_json() for listing in listings})
        return
    for listing in listings:
        if listing.rows:
            terminal.print_table(listing.headings, listing.rows, optional=listing.optional)
        elif not listing.note:
            terminal.echo(f"no {listing.kind}")
        if listing.note:
            terminal.echo(listing.note)
