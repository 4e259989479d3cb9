"""`engineworks keygen`: a key pair to sign passports with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.options import Json
from engineworks.report import terminal


def keygen(
    folder: Annotated[Path, typer.Argument(help="Folder to write the two files into.")],
    name: Annotated[str, typer.Option("--name", help="Name of the files: NAME.key and NAME.pub.")] = "engineworks",
    as_json: Json = False,
) -> None:
    """Make an ed25519 key pair to sign and verify engines.

    Examples:
        engineworks keygen ~/.engineworks
    """
    from engineworks.engines.signing import write_key_pair

    private, public, key_id = write_key_pair(folder, name)
    if as_json:
        terminal.print_json({"private": str(private), "public": str(public), "key_id": key_id})
        return
    terminal.echo(f"key {key_id}")
    terminal.echo(f"to sign:   export ENGINEWORKS_SIGNING_KEY={private}  (keep it secret)")
    terminal.echo(f"to verify: export ENGINEWORKS_TRUSTED_KEYS={public}")
