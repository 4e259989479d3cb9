"""`engineworks manual`: the generated parts of docs/. Hidden: for contributors to Engineworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.report import terminal


def manual(folder: Annotated[Path, typer.Argument(help="Folder of the pages.")] = Path("docs")) -> None:
    """Write the generated parts of the documentation again.

    Examples:
        engineworks manual docs
    """
    from engineworks.commands.manual.write import write_manual

    written = write_manual(folder)
    for path in written:
        terminal.echo(f"{path}: written")
    if not written:
        terminal.echo("every page is up to date")
