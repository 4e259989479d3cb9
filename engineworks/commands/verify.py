"""`engineworks verify`: check that the bytes are those that were built, and that a trusted key signed them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.completion import engine_ids
from engineworks.commands.options import Json, Quiet
from engineworks.report import terminal
from engineworks.settings import read_settings


def verify(
    what: Annotated[
        str,
        typer.Argument(help="An engine's id, its file or folder, a package, or a passport.", autocompletion=engine_ids),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check digests and signatures of engines.

    Examples:
        engineworks verify digits/int8/cpu
        engineworks verify models/
    """
    from engineworks.commands.verification import verify_anything
    from engineworks.plan.champion_lookup import which_engine

    settings = read_settings()
    passports = verify_anything(what, settings)
    which = "" if Path(what).exists() else which_engine(what, passports[0].sha256, settings)
    if as_json:
        more = {"which": which} if which else {}
        terminal.print_json({"engines": [{**p.body, "signed_by": p.signed_by or None, **more} for p in passports]})
    elif not quiet:
        for passport in passports:
            terminal.echo(passport.summary())
        if which:
            terminal.echo(f"this is {which}")
