"""`engineworks verify`: are these the bytes that were built, and did someone we trust say so?"""

from __future__ import annotations

from typing import Annotated

import typer

from engineworks import terminal
from engineworks.commands.completion import engine_ids
from engineworks.commands.options import Json, Quiet
from engineworks.settings import read_settings


def verify(
    what: Annotated[
        str,
        typer.Argument(help="An engine's id, its file or folder, a package, or a passport.", autocompletion=engine_ids),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check digests and signature. Examples: engineworks verify digits/int8/cpu; engineworks verify models/"""
    from engineworks.release.verify import verify_anything

    passports = verify_anything(what, read_settings())
    if as_json:
        terminal.print_json({"engines": [{**p.body, "signed_by": p.signed_by or None} for p in passports]})
    elif not quiet:
        for passport in passports:
            terminal.say(passport.sentence())
