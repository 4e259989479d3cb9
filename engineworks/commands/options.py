"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from engineworks.commands.completion import engine_ids, recipe_files
from engineworks.errors import InputError

LARGEST_NUMBER = 1_000_000
"""As hours 114 years; as samples more than any search reads."""

OneRecipe = Annotated[Path, typer.Argument(help="Recipe file.", autocompletion=recipe_files)]
OneOrMore = Annotated[list[Path], typer.Argument(help="Recipe files.", autocompletion=recipe_files)]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", help="Glob over engine ids, e.g. '*/int8/*'; repeated: any of them.", autocompletion=engine_ids
    ),
]


def any_of(only: list[str] | None) -> str | None:
    """Join the globs of repeated options into the text that `engineworks.recipe.selection` takes."""
    return ",".join(only) if only else None


def finite_if_given(value: float | None) -> float | None:
    return value if value is None else finite(value)


def finite(value: float) -> float:
    """Refuse 'inf' and 'nan', which the parser accepts as floats, and more hours than dates can hold."""
    if not 0 <= value <= LARGEST_NUMBER:
        raise typer.BadParameter(f"{value} is not a number from 0 to {LARGEST_NUMBER:,}")
    return value


class Command(TyperCommand):
    """A command with examples below its help, one per line and never wrapped, so that they can be pasted.

    It refuses a repeated single-value option: the parser would silently take the last value.
    """

    examples: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help, _, examples = (self.help or "").partition("\n\nExamples:\n")
        self.examples = tuple(line.strip() for line in examples.splitlines() if line.strip())

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        super().format_help(ctx, formatter)
        if self.examples:
            typer.echo("Examples:\n" + "".join(f"  {example}\n" for example in self.examples), nl=False)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            if isinstance(option, TyperOption) and not (option.multiple or option.is_flag) and given.count(option) > 1:
                raise InputError(f"{option.opts[0]} is given {given.count(option)} times", hint="give it once")
        return super().parse_args(ctx, args)


All = Annotated[bool, typer.Option("--all", help="List every engine, also those that cannot run here.")]
Champions = Annotated[bool, typer.Option("--champions", help="MLflow's champions, not what is built here.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the result.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more.")]
