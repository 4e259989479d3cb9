"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engineworks.commands.completion import engine_ids, recipe_files

LARGEST_NUMBER = 1_000_000
"""Of hours 114 years, of samples more than any search looks at."""

OneRecipe = Annotated[Path, typer.Argument(help="Recipe file.", autocompletion=recipe_files)]
OneOrMore = Annotated[list[Path], typer.Argument(help="Recipe files.", autocompletion=recipe_files)]
Only = Annotated[
    str | None,
    typer.Option("--only", help="Glob over engine ids, e.g. '*/int8/*' or '*/*/cpu'.", autocompletion=engine_ids),
]


def finite(value: float) -> float:
    """Refuse 'inf' and 'nan', which are floats to the parser, and more hours than dates have."""
    if not 0 <= value <= LARGEST_NUMBER:
        raise typer.BadParameter(f"{value} is not a number from 0 to {LARGEST_NUMBER:,}")
    return value


Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the result.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
